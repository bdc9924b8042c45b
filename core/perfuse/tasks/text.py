"""What text-conditioned tasks share: reading prompts, encoding them, the default guider."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from perfuse.arrays import is_torch, place
from perfuse.contract.guider import Guider
from perfuse.contract.spec import Array
from perfuse.contract.steps import Tools
from perfuse.errors import InputError
from perfuse.memory import check_memory
from perfuse.tasks.choosing import find_guider, like_diffusers
from perfuse.tasks.guiders import ClassifierFreeGuidance, EmbeddedGuidance
from perfuse.tasks.prompts.encoder import TextEncoder
from perfuse.tasks.prompts.reading import tokenised

__all__ = [
    "Prompt",
    "conditions_of",
    "encode",
    "guider_for",
    "read_conditions",
    "read_texts",
    "repeat",
]

Prompt = str | Sequence[str] | None


def read_texts(prompt: Prompt, name: str) -> list[str]:
    """One text or several as a list; ``InputError`` for anything else."""
    texts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} must be text, or a list of texts; got {prompt!r}.")
    return texts


def guider_for(tools: Tools, guider: Any, scale: float, rescale: float) -> Guider:
    """The guider given, or the default one for the denoiser at this scale.

    A guider of Diffusers is taken as ours of the same name and settings.

    Raises:
        InputError: ``guider`` is no ``Guider``, or a scale is not a number in its range.
    """
    if isinstance(guider, str):
        return find_guider(guider)
    if guider is not None:
        found = guider if isinstance(guider, Guider) else like_diffusers(guider)
        if found is None:
            raise InputError(f"guider must be a perfuse.Guider or its name; got {guider!r}.")
        return found
    usual: Guider = ClassifierFreeGuidance(guidance_scale=scale, guidance_rescale=rescale)
    if tools.spec.denoiser.guidance == "embedded":
        usual = EmbeddedGuidance(guidance_scale=scale)
    return usual


def encode(
    tools: Tools, encoder: str, tokenizer: str, texts: list[str], *, remedy: str | None = None
) -> dict[str, Any]:
    """Run a text encoder; warn, as Diffusers does, if a prompt was truncated.

    ``remedy`` is what the warning says to do, if not to use ``prompt_syntax``.
    """
    reads = TextEncoder(tools=tools, name=encoder, tokenizer_name=tokenizer)
    said = {} if remedy is None else {"remedy": remedy}
    return reads.outputs(tokenised(reads, texts, **said))


def read_conditions(
    guider: Guider,
    times: int,
    *,
    positive: Callable[[], Mapping[str, Array]],
    negative: Callable[[], Mapping[str, Array]],
    empty: Callable[[], Mapping[str, Array]],
) -> dict[str, dict[str, Array]]:
    """The conditions that a guider uses, each read once; the positive one always.

    Args:
        guider: Whose branches name the conditions.
        times: Pictures per prompt.
        positive: Reads the prompts: inputs of the denoiser, each [prompts, …].
        negative: Reads the negative prompts.
        empty: Reads as many empty prompts.
    """
    wanted = {"positive", *(branch.condition for branch in guider.branches)}
    readers = {"positive": positive, "negative": negative, "empty": empty}
    read = {name: reader() for name, reader in readers.items() if name in wanted}
    return conditions_of(read, times)


def conditions_of(
    encoded: Mapping[str, Mapping[str, Array]], times: int
) -> dict[str, dict[str, Array]]:
    """Repeat conditions [prompts, …] for the pictures of each prompt, and move them to one device.

    Args:
        encoded: Condition to its arrays. All go to the device of the first condition's.
        times: Pictures per prompt; pictures of one prompt are adjacent.

    Raises:
        InputError: there is not that much memory.
    """
    numbers = sum(math.prod(one.shape) for arrays in encoded.values() for one in arrays.values())
    check_memory(4 * numbers * times, f"Text for {times} pictures of each prompt")
    first = next(iter(next(iter(encoded.values())).values()))
    device = first.device if is_torch(first) else None
    return {
        condition: {name: repeat(place(array, device), times) for name, array in arrays.items()}
        for condition, arrays in encoded.items()
    }


def repeat(array: Array, times: int) -> Array:
    """Repeat each item along the first axis: [B, …] to [B * times, …], copies adjacent."""
    if times == 1:
        return array
    return array.repeat_interleave(times, dim=0) if is_torch(array) else np.repeat(array, times, 0)
