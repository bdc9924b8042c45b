"""coremltools, without what it says on the way."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

__all__ = ["Heard", "exact", "import_coremltools", "quiet"]


class Heard(logging.Handler):
    """Keeps what coremltools logs: the operator that it stopped at is named nowhere else."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[Heard]:
    """Keep coremltools' progress bars, warnings and log from the terminal and the log files.

    And numpy's global random state as it was: coremltools draws from it, and seeds it anew.
    """
    import numpy as np

    logger, heard = logging.getLogger("coremltools"), Heard()
    propagate, random = logger.propagate, np.random.get_state()
    logger.addHandler(heard)
    logger.propagate = False
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield heard
    finally:
        np.random.set_state(random)
        logger.propagate = propagate
        logger.removeHandler(heard)


#: Packages that coremltools imports where they are installed, for converters that we do not use;
#: they take longer than itself.
_UNUSED = ("executorch", "lightgbm", "sklearn", "tensorflow", "torchao", "xgboost")


def import_coremltools() -> Any:
    """The ``coremltools`` module, imported without what it says of parts that it does not find."""
    with quiet(), _hidden(_UNUSED if "coremltools" not in sys.modules else ()):
        import coremltools

    return coremltools


@contextmanager
def _hidden(modules: Sequence[str]) -> Iterator[None]:
    """Let imports of modules that are not imported yet fail as if they were not installed."""
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def exact() -> Iterator[None]:
    """Mend what changes the numbers in coremltools, wherever it is run.

    One of its passes writes a scale and a shift as a batch norm of variance one, and leaves that
    its epsilon: each group norm comes out 5 millionths too small. It is left out. And of a graph of
    torch.export it reads no ``approximate``, and gives the exact GELU for the one by tanh (its pull
    request 2863): up to 5e-4 each.
    """
    import_coremltools()
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    name = "common::fuse_elementwise_to_batchnorm"
    nothing = {"apply": lambda self, program: None}
    passes, conversions = PASS_REGISTRY.passes, _TORCH_OPS_REGISTRY.name_to_func_mapping
    known, gelu = passes[name], conversions["gelu"]
    passes[name] = type("Nothing", (known,), nothing)
    conversions["gelu"] = _gelu
    try:
        yield
    finally:
        passes[name] = known
        conversions["gelu"] = gelu


def _gelu(context: Any, node: Any) -> None:
    """A conversion, as coremltools registers them. ``approximate`` is a keyword in every graph."""
    from coremltools.converters.mil import Builder

    (approximate,) = (node.kwinputs or {}).get("approximate", ("none",))
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[approximate]
    context.add(Builder.gelu(x=context[node.inputs[0]], mode=mode, name=node.name))
