"""Runs a component's torch module as it is: the definition of correct."""

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from perfuse.arrays import is_torch, to_numpy
from perfuse.backend import (
    SCHEMES,
    Array,
    Backend,
    Component,
    Device,
    ExecutionReport,
    Options,
    Program,
    Recipe,
    Request,
    Support,
    SupportLevel,
    Target,
)
from perfuse.capture import changed_weights, in_integers, named_weights, replace_tensors
from perfuse.errors import DeviceNotFoundError, ExecutionError, UnsupportedError
from perfuse.plugins import resolve
from perfuse.sources import ArtifactStore
from perfuse_torch.attention import SlicedAttention
from perfuse_torch.devices import DEVICES, TorchDevice, device_of, host_memory
from perfuse_torch.pieces import Pieces
from perfuse_torch.storage import STORAGES, stored

__all__ = ["Torch"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SWITCH = ("true", "false")


class Torch(Backend):
    """PyTorch in eager mode, or compiled where the ``compile`` option asks for it."""

    name: ClassVar[str] = "torch"
    storages = STORAGES
    options: ClassVar[Options] = dict.fromkeys(("compile", "tf32", "channels_last"), _SWITCH)

    def devices(self) -> Sequence[Device]:
        """Every device that this torch sees, accelerators first."""
        found = []
        for kind, entry in DEVICES.items():
            package = entry.brought_by.partition(".")[0]
            if package and importlib.util.find_spec(package) is not None:
                importlib.import_module(entry.brought_by)
            module = getattr(torch, kind, None)
            if module is None or not module.is_available():
                continue
            count = module.device_count() if hasattr(module, "device_count") else 1
            for index in range(count):
                found.append(
                    Device(
                        name=kind if count == 1 else f"{kind}:{index}",
                        description=_describe(module, index, kind),
                        precisions=_precisions(entry),
                    )
                )
        return found

    def supports(self, request: Request) -> Support:
        """Every precision of the device; untested on devices that perfuse has not run on."""
        device = self._device(request.device)
        entry = device_of(device.type)
        if request.precision not in _precisions(entry):
            return Support(
                level=SupportLevel.UNSUPPORTED,
                reason=f"torch:{device} computes in {', '.join(_precisions(entry))}, "
                f"not {request.precision}.",
            )
        if not entry.limits.executed:
            return Support(
                level=SupportLevel.CONDITIONAL,
                reason=f"perfuse has not been executed on torch:{device.type} so far. Measure it: "
                f"perfuse conformance --backend torch:{device}.",
            )
        return Support(level=SupportLevel.FULL)

    def prepare(self, component: Component, target: Target, store: ArtifactStore) -> Program:
        """Build the module, move it to the device, keep it there."""
        options, device, entry = self._asked(component, target)
        dtype = _DTYPES[component.precision]
        # Integers are made of the numbers as they are stored.
        build, scheme = component.recipe, SCHEMES.get(component.storage)
        assert build is not None  # checked before
        if isinstance(build, Recipe) and not component.storage:
            build = build.cast()
        module = build()
        if scheme is not None and not scheme.kept:
            module = in_integers(module, component.storage, component.calibration)
        # The module may be the user's own: tensors with this device and dtype are shared.
        module = replace_tensors(
            module,
            lambda tensor: _moved(
                tensor, entry, device, dtype if tensor.is_floating_point() else tensor.dtype
            ),
        )
        _multiply_whole_batches(module)
        if component.storage and component.storage not in SCHEMES:
            module = stored(module, component.storage)
        if options["channels_last"]:
            module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options["compile"]:
            module.compile(dynamic=not component.static, backend=entry.compiler)
        return TorchProgram(component, module, device, options, entry)

    def footprint(
        self, component: Component, target: Target, *, in_pieces: bool = False
    ) -> float | None:
        """One, cast as it is read. In pieces: of a module that is not compiled, in its precision."""
        compiled = self.switches(target).get("compile") == "true"
        known = component.build is not None and not component.storage
        return None if in_pieces and (compiled or not known) else 1.0

    def prepare_in_pieces(
        self, component: Component, target: Target, store: ArtifactStore, room: int
    ) -> Program:
        """Build the module with weights that are loaded, layer after layer, when they are used."""
        options, device, entry = self._asked(component, target)
        dtype = _DTYPES[component.precision]

        def place(tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.is_floating_point() else tensor.dtype
            moved = _moved(tensor, entry, device, wanted)
            if options["channels_last"] and moved.ndim == 4:
                return moved.contiguous(memory_format=torch.channels_last)
            return moved

        pieces = Pieces(component, dtype, room=room, place=place)
        return PiecedProgram(component, pieces, device, options, entry)

    def _asked(
        self, component: Component, target: Target
    ) -> tuple[dict[str, bool], torch.device, TorchDevice]:
        """The options of a target, its device and the entry of that.

        Raises:
            UnsupportedError: it cannot run the component.
        """
        switches = self.switches(target)
        options = {name: switches.get(name) == "true" for name in self.options}
        device = self._device(target.device)
        if component.build is None:
            raise UnsupportedError(
                f"{component.name} was to run on torch; the model is an exported folder "
                f"({', '.join(component.files)}), which has no torch module. Use the checkpoint "
                "it came from, or the backend of its format."
            )
        self.check_storage(component, target)
        entry = device_of(device.type)
        if component.precision not in _precisions(entry):
            raise UnsupportedError(
                f"{component.name} was to run in {component.precision}; torch:{device} computes in "
                f"{', '.join(_precisions(entry))}."
            )
        for setting in entry.tf32:
            # TF32 is off unless asked for: its 10-bit mantissa is not float32.
            where, _, attribute = setting.rpartition(".")
            setattr(resolve(where), attribute, options["tf32"])
        return options, device, entry

    def _device(self, name: str | None) -> torch.device:
        devices = self.devices()
        if name is None:
            return torch.device(devices[0].name)
        known = [device.name for device in devices]
        # cuda and cuda:0 are the same device whichever way torch counts them
        if name not in known and name not in {known_name.split(":")[0] for known_name in known}:
            alone = name.removesuffix(":0")
            if alone not in known:
                raise DeviceNotFoundError(
                    f"Device {name!r} was asked for; torch {torch.__version__} sees "
                    f"{', '.join(known)}. For an NVIDIA GPU install torch's CUDA build."
                )
        return torch.device(name)


def _precisions(entry: TorchDevice) -> tuple[str, ...]:
    """What this machine's device of a kind computes in."""
    lacks = () if not entry.has_bfloat16 or resolve(entry.has_bfloat16)() else ("bfloat16",)
    return tuple(name for name in entry.limits.precisions if name not in lacks)


def _moved(
    tensor: Tensor,
    entry: TorchDevice,
    device: torch.device,
    dtype: torch.dtype,
    *,
    non_blocking: bool = False,
) -> Tensor:
    """A tensor on a device in a dtype; cast on the way there where the device has not its own."""
    if str(tensor.dtype).removeprefix("torch.") in entry.limits.dtypes:
        tensor = tensor.to(dtype)
    return tensor.to(device, dtype, non_blocking=non_blocking)


def _describe(module: object, index: int, kind: str) -> str:
    name = getattr(module, "get_device_name", None)
    return str(name(index)) if name is not None else kind.upper()


def _multiply_whole_batches(module: nn.Module) -> None:
    """Have linear layers take a batch as one matrix, also where its rows do not lie beside each other.

    PyTorch does so for weights that need gradients, which are not computed in inference mode. For others
    it copies the weight for each item of the batch: a picture's part of a joint sequence, in half
    precision on a CPU, took 1.4 times as long in a step of FLUX.2 (ATen's ``should_fold``).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and type(layer.weight) is nn.Parameter:
            layer.weight.requires_grad_(layer.weight.is_floating_point())


class TorchProgram(Program):
    """A module on a device. Tensors in, tensors out; numpy arrays in, numpy arrays out."""

    def __init__(
        self,
        component: Component,
        module: nn.Module,
        device: torch.device,
        options: Mapping[str, bool],
        entry: TorchDevice,
    ) -> None:
        self.signature = component.signature
        self.torch_device = str(device)
        self.concurrent = not options["compile"]  # a compiler compiles for each new size
        self._component = component
        #: Weights that adapters changed once, as the checkpoint has them: most are in its mapped file.
        self._stored: dict[str, Tensor] = {}
        self._module: nn.Module | None = module
        self._device = device
        self._options = options
        self._entry = entry
        pictures = entry.limits.pictures
        self._largest = pictures * component.spec.branches if pictures is not None else None
        self._attention = _attention(entry)
        self._after_call = _function(entry.after_call)
        precision = _DTYPES[component.precision]
        self._dtypes = {
            tensor.name: precision if tensor.dtype == "float" else getattr(torch, tensor.dtype)
            for tensor in self.signature.inputs
        }

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Run once; numpy arrays out only where every array in was one."""
        if self._module is None:
            raise ExecutionError(f"{self._component.name} was closed; prepare it again.")
        dims = self.signature.bind(inputs, component=self._component.name)
        self._component.spec.check_dims(dims)
        tensors = [self._tensor(inputs[name], dtype) for name, dtype in self._dtypes.items()]
        keep = any(is_torch(array) for array in inputs.values())
        try:
            with torch.inference_mode(), self._attention:
                outputs = self._run(self._module, tensors)
            self._after_call()
            # Devices often report errors only here, when their results are waited for.
            return {
                name: tensor.float() if keep else to_numpy(tensor)
                for name, tensor in zip(self.signature.output_names, outputs, strict=True)
            }
        except RuntimeError as exc:
            raise ExecutionError(
                f"{self._component.name} on torch:{self._device} failed: {str(exc).splitlines()[0]}"
            ) from exc

    def _run(self, module: nn.Module, tensors: list[Tensor]) -> Sequence[Tensor]:
        """One call, or as many as the device's largest batch makes of it."""
        batches = [t.shape[:1] == ("batch",) for t in self._component.spec.signature.inputs]
        if self._largest is None or not all(batches) or len(tensors[0]) <= self._largest:
            outputs: Sequence[Tensor] = module(*tensors)
            return outputs
        parts = zip(*(torch.split(tensor, self._largest) for tensor in tensors), strict=True)
        return [torch.cat(part) for part in zip(*(module(*part) for part in parts), strict=True)]

    def _tensor(self, array: Array, dtype: torch.dtype) -> Tensor:
        if not is_torch(array):
            # torch warns of memory that it could not write to; nothing here writes.
            # PyTorch has no negative strides, and warns of memory that may not be written.
            plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
            array = torch.as_tensor(array if plain else array.copy())
        tensor = _moved(
            array, self._entry, self._device, dtype, non_blocking=self._entry.copies_async
        )
        if self._options["channels_last"] and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def rebind(self, component: Component) -> bool:
        """Replace the weights that adapters change, or changed; the others stay where they are."""
        before, after = self._component.unchanged, component.unchanged
        if self._module is None or before != after or after.build is None:
            return False
        if component.storage or self._options["compile"]:
            return False
        changes = [one.changes for one in (self._component, component) if one.changes is not None]
        own = named_weights(self._module)
        names = {name for one in changes for name in one.names & own.keys()}
        if not names <= self._stored.keys():
            stored = named_weights(after.build())
            self._stored |= {name: stored[name].detach() for name in names}
        values = {name: self._stored[name] for name in names}
        if component.changes is not None:
            for name, value in changed_weights(values, component.changes, component.precision):
                self._put(own[name], value)
                names.remove(name)
        for name in names:
            self._put(own[name], values[name])
        self._component = component
        return True

    def _put(self, weight: Tensor, value: Tensor) -> None:
        """Give one of the module's own weights another value."""
        value = _moved(value, self._entry, self._device, weight.dtype)
        if self._options["channels_last"] and value.ndim == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        weight.data = value

    def report(self) -> ExecutionReport:
        return ExecutionReport(
            device=str(self._device),
            precision=self._component.precision,
            engine=f"torch {torch.__version__}",
            fallbacks=_fallbacks(self._entry),
            details={
                **self._options,
                "largest_batch": self._largest,
                "storage": self._component.storage or self._component.precision,
            },
        )

    def close(self) -> None:
        """Release the weights, and the memory that torch keeps for later."""
        if self._module is not None:
            self._module = None
            self._stored.clear()
            _function(self._entry.synchronize)(self._device)
            _function(self._entry.empty_cache)()


def _function(name: str) -> Callable[..., Any]:
    """The function that an entry of the device table names; one that does nothing if empty."""
    return resolve(name) if name else lambda *given: None


class PiecedProgram(TorchProgram):
    """A module whose weights are loaded while it runs."""

    def __init__(
        self,
        component: Component,
        pieces: Pieces,
        device: torch.device,
        options: Mapping[str, bool],
        entry: TorchDevice,
    ) -> None:
        super().__init__(component, pieces.module, device, options, entry)
        self.concurrent = False
        self._pieces = pieces

    def _run(self, module: nn.Module, tensors: list[Tensor]) -> Sequence[Tensor]:
        with self._pieces:
            return super()._run(module, tensors)

    def rebind(self, component: Component) -> bool:
        """No: it is prepared anew, which loads nothing."""
        return False

    def report(self) -> ExecutionReport:
        known = super().report()
        return dataclasses.replace(known, details={**known.details, **self._pieces.turns.details})

    def close(self) -> None:
        self._pieces.turns.close()
        super().close()


def _attention(entry: TorchDevice) -> AbstractContextManager[Any]:
    """The context of a call: slices attention on devices that need it."""
    memory = host_memory()
    short = memory is not None and memory < entry.slice_attention_below
    most = entry.limits.max_elements if entry.limits.slices_attention else None
    if not short and most is None:
        return nullcontext()
    return SlicedAttention(slices=entry.attention_slices if short else 1, most=most)


def _fallbacks(entry: TorchDevice) -> tuple[str, ...]:
    """A note that torch may compute some operators on the CPU; torch does not report which."""
    variable = entry.fallback_variable
    if not variable or os.environ.get(variable) != "1":
        return ()
    return (f"operators that {entry.kind} lacks are computed on the CPU: {variable}=1",)
