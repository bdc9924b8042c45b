"""Programs as the host calls them: what they return and what they raise is checked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from perfuse.contract.backend import ExecutionReport, Program
from perfuse.contract.component import Component
from perfuse.contract.spec import Array, Signature, TensorSpec
from perfuse.errors import ExecutionError, InputError, PerfuseError
from perfuse.plugins.importing import is_stop, said

__all__ = ["GuardedProgram", "guarding"]


class GuardedProgram(Program):
    """A backend's program. A backend's fault is an ``ExecutionError`` that names it."""

    def __init__(self, program: Program, *, component: str, target: str) -> None:
        """Of a program.

        Args:
            program: What a backend prepared.
            component: What it computes.
            target: Where, for messages.
        """
        with guarding(component, target):
            if not isinstance(program, Program) or not isinstance(program.signature, Signature):
                raise TypeError(f"it prepared a {type(program).__name__}, which is no program")
        self.program = program
        self.signature = program.signature
        self.torch_device, self.max_batch = program.torch_device, program.max_batch
        self.concurrent = program.concurrent
        self._component, self._target = component, target

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once, and check names, shapes and dtypes of what is returned.

        Raises:
            InputError: the arrays do not fit the signature.
            ExecutionError: the engine failed, or the backend did.
        """
        with self._guarding():
            out = self.program(**inputs)
            self._check(out, inputs)
        self.torch_device = self.program.torch_device  # one for each size may choose at a call
        return out

    def _check(self, out: Any, inputs: Mapping[str, Array]) -> None:
        """Raise ``TypeError`` for what is not the signature's outputs."""
        if not isinstance(out, Mapping):
            raise TypeError(f"it returned a {type(out).__name__}; a dict of arrays was expected")
        dims = self._dims(inputs)
        for tensor in self.signature.outputs:
            if tensor.name not in out:
                names = ", ".join(map(str, out)) or "nothing"
                raise TypeError(f"it returned {names}; {tensor.name} was expected")
            _check_array(tensor, out[tensor.name], dims)

    def _dims(self, inputs: Mapping[str, Array]) -> dict[str, int]:
        """The sizes of this call; of what the program took although it does not fit, none."""
        try:
            return self.signature.bind(inputs, component=self._component)
        except InputError:
            return {}

    def _guarding(self) -> Any:
        return guarding(self._component, self._target)

    def report(self) -> ExecutionReport:
        """What really ran, as the backend reports it.

        Raises:
            ExecutionError: the backend cannot tell.
        """
        with self._guarding():
            found = self.program.report()
            if not isinstance(found, ExecutionReport):
                raise TypeError(f"it reported a {type(found).__name__}, which is no report")
        return found

    def rebind(self, component: Component) -> bool:
        with self._guarding():
            return self.program.rebind(component)

    def close(self) -> None:
        with self._guarding():
            self.program.close()


def _check_array(tensor: TensorSpec, array: Any, dims: Mapping[str, int]) -> None:
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
        raise TypeError(f"its {tensor.name} is a {type(array).__name__}; an array was expected")
    wanted = tensor.resolve(dims)
    if len(wanted) != len(shape) or any(
        isinstance(want, int) and want != size for want, size in zip(wanted, shape, strict=True)
    ):
        said = ", ".join(map(str, wanted))
        raise TypeError(f"its {tensor.name} has the shape {tuple(shape)}; ({said}) was expected")
    kind = "float32" if tensor.dtype == "float" else tensor.dtype
    if str(dtype).removeprefix("torch.") != kind:
        raise TypeError(f"its {tensor.name} is of {dtype}; {kind} was expected")


@contextmanager
def guarding(component: str, target: str) -> Iterator[None]:
    """Make an ``ExecutionError`` of whatever a backend raises that is no error of perfuse's.

    Also of what would end the process with status 0, or look like the user's Ctrl-C.
    """
    try:
        yield
    except PerfuseError:
        raise
    except MemoryError as exc:
        raise ExecutionError(
            f"{component} ran on {target}, which needs more memory than there is: {said(exc)}. Ask "
            "for a smaller size or batch."
        ) from exc
    except BaseException as exc:
        if is_stop(exc):
            raise
        raise ExecutionError(
            f"{component} was to run on {target}, and the backend is at fault: {said(exc)}. Use "
            "another backend, or tell its authors."
        ) from exc
