"""What the steps of a task see of the pipeline that runs them."""

from typing import TYPE_CHECKING, Any

from perfuse.contract.backend import Program
from perfuse.contract.spec import PipelineSpec
from perfuse.run.witness import Witness
from perfuse.schedulers import Scheduler
from perfuse.sources.tokenizer import Tokenizer

if TYPE_CHECKING:
    from perfuse.run.parts import Parts

__all__ = ["PipelineTools"]


class PipelineTools:
    """The ``Tools`` of a pipeline; its own attributes are the rest of the pipeline's."""

    def __init__(self, pipe: "Parts") -> None:
        self._pipe = pipe
        self.witness = Witness()

    @property
    def spec(self) -> PipelineSpec:
        return self._pipe.spec

    @property
    def scheduler(self) -> Scheduler:
        scheduler: Scheduler = self._pipe.scheduler
        return scheduler

    @property
    def vae_tiling(self) -> bool:
        """Whether pictures are decoded and encoded in tiles."""
        return self._pipe.asks("vae_tiling", "use_tiling")

    @property
    def vae_slicing(self) -> bool:
        """Whether they are decoded and encoded one by one."""
        return self._pipe.asks("vae_slicing", "use_slicing")

    def program(self, component: str) -> Program:
        """The program of a component, prepared on its target on first use."""
        program: Program = self.witness.heard(component, self._pipe.program(component))
        return program

    def precision_of(self, component: str) -> str | None:
        """What a component computes in; ``None`` if the pipeline was opened without it."""
        return self._pipe.precision_of(component)

    def tokenizer(self, name: str) -> Tokenizer:
        """One of the pipeline's tokenizers.

        Raises:
            InputError: the pipeline has no such tokenizer.
        """
        return self._pipe.prompt_tokenizer(name)

    def attribute(self, name: str) -> Any:
        """One of the attributes that the pipeline's class declares, or what a caller made it."""
        return getattr(self._pipe, name)

    def add_transform(self, text: str) -> None:
        """Rewrite the pipeline by a transform from now on.

        Raises:
            InputError: it is unknown, does not fit, or rewrites an exported component.
        """
        self._pipe.add_transform(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)
