"""What commands that measure draw where nothing was said."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfuse.contract.source import Source

__all__ = ["usual_prompts"]

_PROMPTS = (
    "a photograph of a cat on a wooden chair",
    "a mountain lake at sunrise",
    "a portrait of an old man in a red coat, oil on canvas",
    "a busy street at night in the rain",
)


def usual_prompts(source: "Source") -> tuple[str, ...]:
    """Four prompts for a model; none where it takes none.

    The bundled models have captions of their kind that they were not trained with.
    """
    from perfuse.shapes import BUNDLED
    from perfuse.shapes.grammar import held_out
    from perfuse.tasks.choosing import tasks_of

    if source.model in BUNDLED:
        return tuple(scene.caption() for scene in held_out()[: len(_PROMPTS)])
    task = next(iter(tasks_of(source.spec).values()))
    return _PROMPTS if "prompt" in task.inputs else ()
