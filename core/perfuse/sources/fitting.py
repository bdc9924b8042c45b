"""Whether the tensors of a file are those of a model, by names and shapes alone."""

from collections.abc import Callable, Collection, Mapping

from perfuse.errors import WeightsError
from perfuse.sources.weights import Weights

__all__ = ["Rename", "Shape", "check_fit", "some_names"]

_LISTED = 10
Rename = Callable[[str], str | None]
Shape = tuple[int, ...]


def _fits(found: Shape, expected: Shape) -> bool:
    # Older autoencoders hold the linear layers of their attention as 1×1 convolutions.
    return found == expected or (len(expected) == 2 and found == (*expected, 1, 1))


def check_fit(
    expected: Mapping[str, Shape],
    weights: Weights,
    where: str,
    rename: Rename,
    *,
    others: Collection[str] = (),
) -> dict[str, str]:
    """See that the tensors of a file are those that a model has.

    Args:
        expected: The model's tensors and their shapes.
        weights: The file.
        where: The component's name in an error.
        rename: Maps a tensor's name in the file to its name in the model; ``None`` drops it.
        others: Further tensors that may be there, of any shape.

    Returns:
        Each expected tensor's name in the file.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape.
    """
    found: dict[str, Shape] = {}
    stored: dict[str, str] = {}
    twice, unexpected = [], []
    for old, (_, shape) in weights.shapes.items():
        if (name := rename(old)) is None:
            continue
        if name in others:
            continue
        if name not in expected:
            unexpected.append(old)
        elif name in found:
            twice.append(f"{old} (also as {name})")
        found[name], stored[name] = shape, old
    missing = [name for name in expected if name not in found]
    misshapen = [
        f"{name} ({list(shape)} expected, {list(found[name])} found)"
        for name, shape in expected.items()
        if name in found and not _fits(found[name], shape)
    ]
    kinds = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "given twice": twice,
    }
    if any(kinds.values()):
        said = "; ".join(f"{kind}: {some_names(names)}" for kind, names in kinds.items() if names)
        told, remedy = "its config.json", "Take weights and config.json from one checkpoint."
        if weights.views:
            told, remedy = "what its config says", "Download the file again, or give its config."
        raise WeightsError(
            f"The weights of {where} in {weights.folder} do not fit {told}. {said}. {remedy}"
        )
    return stored


def some_names(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + rest
