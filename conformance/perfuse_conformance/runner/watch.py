"""Detects side effects of a backend: use of torch's operators, changed process settings."""

import os
import random
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

__all__ = ["GlobalState", "TorchWatch"]

#: The operators that are a model's work; copies and views are not.
_WORK = (
    "convolution",
    "_convolution",
    "conv2d",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "matmul",
    "native_group_norm",
    "native_layer_norm",
    "_scaled_dot_product",
    "scaled_dot_product",
    "mkldnn",
    "embedding",
)


class TorchWatch:
    """Counts the operators of a model's work that torch computes in the block."""

    def __init__(self) -> None:
        self.operators: Counter[str] = Counter()
        self._mode: Any = None

    def __enter__(self) -> Self:
        from torch.utils._python_dispatch import TorchDispatchMode

        operators = self.operators

        class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
            def __torch_dispatch__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                name = str(func.overloadpacket).rpartition(".")[2]
                if name.startswith(_WORK):
                    operators[name] += 1
                return func(*args, **(kwargs or {}))

        self._mode = Mode()  # type: ignore[no-untyped-call]
        self._mode.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._mode.__exit__(*exc)


@dataclass(frozen=True, kw_only=True)
class GlobalState:
    """Settings of the process that a backend has no business with."""

    folder: str
    numpy_errors: Any
    numpy_seed: Any
    torch_dtype: Any
    torch_seed: Any
    torch_threads: Any
    python_seed: Any
    output: Any

    @classmethod
    def now(cls) -> Self:
        torch = sys.modules.get("torch")
        key, words, position, *_ = np.random.get_state()
        return cls(
            folder=os.getcwd(),
            numpy_errors=tuple(sorted(np.geterr().items())),
            numpy_seed=(key, int(np.asarray(words).sum()), position),
            torch_dtype=torch.get_default_dtype() if torch is not None else None,
            torch_seed=torch.initial_seed() if torch is not None else None,
            torch_threads=torch.get_num_threads() if torch is not None else None,
            python_seed=hash(random.getstate()),
            output=_output(),
        )

    def changed(self) -> list[str]:
        """What is otherwise than it was; torch having been imported meanwhile is no change."""
        now = type(self).now()
        names = {
            "folder": "the working directory",
            "numpy_errors": "numpy's error handling",
            "numpy_seed": "numpy's global random state",
            "torch_dtype": "torch's default dtype",
            "torch_seed": "torch's global seed",
            "torch_threads": "torch's number of threads",
            "python_seed": "the random module's state",
            "output": "standard output",
        }
        return [
            what
            for name, what in names.items()
            if getattr(self, name) is not None and getattr(self, name) != getattr(now, name)
        ]

    def restore(self, output: int) -> None:
        """Restore settings for the next case, and redirect standard output to a descriptor."""
        if _output() != self.output:
            os.dup2(output, 1)
        os.chdir(self.folder)
        np.seterr(**dict(self.numpy_errors))
        torch = sys.modules.get("torch")
        if torch is not None and self.torch_dtype is not None:
            torch.set_default_dtype(self.torch_dtype)
            if self.torch_threads != torch.get_num_threads():
                torch.set_num_threads(self.torch_threads)


def _output() -> tuple[int, int] | None:
    """What identifies standard output's file; ``None`` if it is closed."""
    try:
        found = os.fstat(1)
    except OSError:
        return None
    return found.st_dev, found.st_ino
