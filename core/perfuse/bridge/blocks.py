"""Native tasks as blocks of Diffusers' modular pipelines: a block a step, a loop of blocks a loop."""

from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    InsertableDict,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)

from perfuse.contract.steps import (
    REQUIRED,
    Choice,
    Input,
    Loop,
    Node,
    Step,
    Task,
    When,
    inside,
)
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.run.tools import PipelineTools

__all__ = ["NATIVE", "as_blocks"]

#: The component that runs the steps: a pipeline of perfuse.
NATIVE = "native"


def as_blocks(task: Task) -> Any:
    """A task as ``SequentialPipelineBlocks`` of Diffusers, with a sub-block for each of its steps.

    Blocks of Diffusers can be inserted among them, replaced and taken out. The pipeline that they make
    has one component, ``native``: the perfuse pipeline whose components the steps run.

    >>> import perfuse
    >>> pipe = perfuse.DiffusionPipeline.from_pretrained(backend="torch:cpu")
    >>> blocks = as_blocks(pipe.task)
    >>> list(blocks.sub_blocks)[-4:]
    ['denoise', 'decode', 'check_safety', 'finish']
    >>> modular = blocks.init_pipeline()
    >>> modular.update_components(native=pipe)
    >>> modular(prompt="a red circle", num_inference_steps=2, seed=0, output="images")[0].size
    (64, 64)

    Args:
        task: A pipeline's task, ``pipe.task``; or one of the user's own.
    """
    known = {**dict.fromkeys(task.known - {"index"}, Input()), **task.inputs}
    blocks = InsertableDict()
    for node in task.steps:
        blocks[node.name] = _block(node, known)
    return SequentialPipelineBlocks.from_blocks_dict(blocks)


def _block(node: Node, known: Mapping[str, Input]) -> "StepBlock | LoopBlock":
    return LoopBlock(node, known) if isinstance(node, Loop) else StepBlock(node, known)


class StepBlock(ModularPipelineBlocks):  # type: ignore[misc]
    """A step; or a choice or a condition with the steps in it."""

    def __init__(self, node: Node, known: Mapping[str, Input]) -> None:
        self._node, self._known = node, known
        super().__init__()

    @property
    def description(self) -> str:
        """What the step says of itself."""
        return self._node.description if isinstance(self._node, Step) else self._node.name

    @property
    def expected_components(self) -> list[Any]:
        """The pipeline that runs it."""
        return [_native()]

    @property
    def inputs(self) -> list[Any]:
        """The names that it reads and a caller or another step can give."""
        return [_param(n, self._known[n]) for n in _reads(self._node) if n in self._known]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The names that it gives."""
        return [OutputParam(name=name) for name in _gives(self._node)]

    def __call__(self, components: Any, state: Any, **moment: Any) -> tuple[Any, Any]:
        """Run it; in a loop the state is that of the loop's blocks."""
        values = state.values if isinstance(state, PipelineState) else vars(state)
        given = {n: values[n] for n in _reads(self._node) if n in values}
        task = Task(name=self._node.name, inputs=dict.fromkeys(given, Input()), steps=(self._node,))
        after: Mapping[str, Any] = given
        for event in task.run(PipelineTools(getattr(components, NATIVE)), given):
            after = event.state
        for name in self.intermediate_output_names:
            if name in after:
                values[name] = after[name]
        return components, state


class LoopBlock(LoopSequentialPipelineBlocks):  # type: ignore[misc]
    """A loop; its blocks are given ``i``, the round, and ``t``, the item of the round."""

    def __init__(self, loop: Loop, known: Mapping[str, Input]) -> None:
        self._loop = loop
        self.block_names = [node.name for node in loop.steps]
        self.block_classes = [StepBlock(node, known) for node in loop.steps]
        super().__init__()

    @property
    def description(self) -> str:
        """What it is repeated for."""
        return f"For each of {self._loop.over}."

    @property
    def loop_expected_components(self) -> list[Any]:
        """The pipeline that runs it."""
        return [_native()]

    @property
    def loop_inputs(self) -> list[Any]:
        """The items of its rounds."""
        return [InputParam(name=self._loop.over)]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the blocks for each item."""
        block_state = self.get_block_state(state)
        items = block_state[self._loop.over]
        with getattr(components, NATIVE).progress_bar(total=len(items)) as bar:
            for index, item in enumerate(items):
                block_state["index"] = index
                components, block_state = self.loop_step(components, block_state, i=index, t=item)
                bar.update()
        self.set_block_state(state, block_state)
        return components, state


def _native() -> Any:
    about = "The pipeline of perfuse that runs the steps."
    return ComponentSpec(name=NATIVE, type_hint=DiffusionPipeline, description=about)


def _param(name: str, one: Input) -> Any:
    required = one.default is REQUIRED
    default = None if required else one.default
    return InputParam(name=name, default=default, required=required, description=one.help)


def _reads(node: Node) -> tuple[str, ...]:
    """The names that a node, or one in it, reads."""
    return tuple(dict.fromkeys(_reading(node)))


def _reading(node: Node) -> Iterator[str]:
    if isinstance(node, Step | When):
        yield from node.inputs
    elif isinstance(node, Loop):
        yield node.over
    elif isinstance(node, Choice):
        yield from (name for name, _ in node.options if name is not None)
    for one in inside(node):
        yield from _reading(one)


def _gives(node: Node) -> tuple[str, ...]:
    """The names that a node, or one in it, gives."""
    own = node.outputs if isinstance(node, Step) else ()
    return tuple(dict.fromkeys([*own, *(name for one in inside(node) for name in _gives(one))]))
