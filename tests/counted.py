"""What a pipeline asks of its programs, counted there."""

from collections.abc import Callable
from typing import Any, Self

from perfuse import DiffusionPipeline

__all__ = ["Counted"]


class Counted:
    """The denoiser's calls of a pipeline, counted at its programs."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe
        self.calls: dict[str, list[dict[str, Any]]] = {}

    def __enter__(self) -> Self:
        before = self.pipe.program

        def program(name: str) -> Any:
            found = before(name)

            def call(**inputs: Any) -> Any:
                self.calls.setdefault(name, []).append(inputs)
                return found(**inputs)

            return _Watched(found, call)

        object.__setattr__(self.pipe, "program", program)
        return self

    def __exit__(self, *_: object) -> None:
        object.__delattr__(self.pipe, "program")

    def steps(self, name: str = "unet") -> list[float]:
        """The timesteps at which a program ran."""
        return [float(one["timestep"][0]) for one in self.calls.get(name, [])]

    def predictions(self, name: str = "unet") -> int:
        """How many items a program predicted."""
        return sum(len(one["sample"]) for one in self.calls.get(name, []))


class _Watched:
    def __init__(self, program: Any, call: Callable[..., Any]) -> None:
        self._program, self._call = program, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def __call__(self, **inputs: Any) -> Any:
        return self._call(**inputs)
