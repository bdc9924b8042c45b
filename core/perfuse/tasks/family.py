"""Text-to-image tasks of families other than Stable Diffusion: its steps, some of them replaced."""

from collections.abc import Mapping
from typing import Any

from perfuse.contract.spec import Array
from perfuse.contract.steps import Encoding, Input, Node, Task
from perfuse.tasks.image_prompt import IMAGE_PROMPT
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE

__all__ = ["family_task", "pooled_conditions"]

#: What Stable Diffusion's tasks take and do, and these do not.
_NOT_TAKEN = ("clip_skip", "prompt_syntax", *IMAGE_PROMPT)
_NOT_DONE = ("encode_image_prompt", "check_safety")


def family_task(
    inputs: Mapping[str, Input],
    defaults: Mapping[str, Any],
    *steps: Node,
    encoding: Encoding | None = None,
) -> Task:
    """A text-to-image task of a family.

    Args:
        inputs: What the family takes besides what all take.
        defaults: The family's defaults.
        steps: Those that replace the ones of the same names: at least ``encode_prompt``, which gives
            the conditions of the family's denoiser.
        encoding: The family's ``encode_prompt``; that of Stable Diffusion by default.
    """
    others = {n: one for n, one in TEXT_TO_IMAGE.inputs.items() if n not in _NOT_TAKEN}
    kept = (node for node in TEXT_TO_IMAGE.steps if node.name not in _NOT_DONE)
    changed = {node.name: node for node in steps}
    return Task(
        name=TEXT_TO_IMAGE.name,
        inputs={**others, **inputs},
        steps=tuple(changed.get(node.name, node) for node in kept),
        encoding=TEXT_TO_IMAGE.encoding if encoding is None else encoding,
    ).with_defaults(defaults)


def pooled_conditions(states: Array, pooled: Array | None) -> Mapping[str, Array]:
    """Text states [B, S, D] and pooled text [B, P], which ``check_pooled`` has seen to be both there."""
    assert pooled is not None
    return {"encoder_hidden_states": states, "pooled_projections": pooled}
