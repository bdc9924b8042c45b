"""From sizes in pixels to the dimensions of each component."""

from collections.abc import Callable, Mapping, Sequence

from perfuse.contract.spec import ComponentSpec, PipelineSpec
from perfuse.contract.steps import Tools
from perfuse.errors import InputError
from perfuse.tasks.denoise import pick_size

__all__ = ["fixed_dims", "shapes_of", "usual_sizes"]


def fixed_dims(
    tools: Tools,
    height: int | None,
    width: int | None,
    batch: int | None,
    lengths: Callable[[], Sequence[int]],
) -> dict[str, dict[str, int]]:
    """For each component, the dimensions to fix.

    Args:
        tools: The pipeline.
        height: In pixels; ``None`` leaves sizes symbolic if ``width`` is ``None`` too.
        width: In pixels.
        batch: Of every component; ``None`` leaves it symbolic.
        lengths: Returns the tokens of a prompt for each tokenizer; called only if sizes are fixed.

    Raises:
        InputError: the model cannot take a size.
    """
    spec = tools.spec
    sizes: dict[str, int] = {}
    if batch is not None:
        if batch < 1:
            raise InputError(f"batch must be at least 1; got {batch}.")
        sizes["batch"] = batch
    if height is not None or width is not None:
        sizes |= spec.latents.dims(*pick_size(tools, height, width))
        if spec.tokenizers and _reads_any_length(spec):
            sizes["sequence"] = max(lengths())
    return {
        name: {
            dim: _taken(component, dim, sizes[dim])
            for dim in component.signature.dims
            if dim in sizes
        }
        for name, component in spec.components.items()
    }


def _reads_any_length(spec: PipelineSpec) -> bool:
    return any("sequence" in one.signature.dims for one in spec.components.values())


def _taken(component: ComponentSpec, dim: str, size: int) -> int:
    """A size; of text as much as the component takes of it, in whole multiples."""
    if dim != "sequence":
        return size
    taken = component.dim(dim)
    whole = -(-size // taken.multiple) * taken.multiple
    return whole if taken.maximum is None else min(whole, taken.maximum)


def usual_sizes(component: ComponentSpec, known: Mapping[str, int]) -> dict[str, int]:
    """A size for every dimension: the known one, else the least that the dimension takes."""
    return {
        name: known.get(name, component.dim(name).multiple) for name in component.signature.dims
    }


def shapes_of(
    spec: PipelineSpec, each: Sequence[Mapping[str, Mapping[str, int]]], *, fixed: bool
) -> dict[str, tuple[dict[str, int], tuple[dict[str, int], ...]]]:
    """For each component, the dimensions to fix, and the sizes that the others may have.

    Args:
        spec: The pipeline.
        each: ``fixed_dims`` of each size that was asked for.
        fixed: Whether to fix every dimension, including the batch.
    """
    shapes = {}
    for name, component in spec.components.items():
        own = [one[name] for one in each]
        static = {dim: n for dim, n in own[0].items() if all(one[dim] == n for one in own)}
        if fixed and "batch" in component.signature.dims:
            static.setdefault("batch", component.branches)
        open_dims = [dim for dim in own[0] if dim not in static]
        listed = [{dim: one[dim] for dim in open_dims} for one in own] if open_dims else []
        shapes[name] = (static, tuple(s for i, s in enumerate(listed) if s not in listed[:i]))
    return shapes
