"""The safety checker's step, shared by the tasks of pipelines that may have one.

Its rule is that of Stable Diffusion's first release: scores are rounded to three digits, and a
picture near to one of the special concepts is judged a hundredth more strictly by the others.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

from perfuse.arrays import concatenate, place, to_numpy, zeros_like
from perfuse.contract.spec import Array, Role
from perfuse.contract.steps import State, Tools, step

__all__ = ["check_safety", "unsafe"]

_STRICTER = np.float32(0.01)


@step(outputs=("decoded", "nsfw_content_detected"))
def check_safety(tools: Tools, decoded: Array, output_type: str) -> State:
    """Blacken the pictures [B, C, H, W] that the pipeline's safety checker objects to.

    ``nsfw_content_detected`` has a truth value for each picture; it is ``None`` where nothing was
    checked: without a checker, and for latents.

    Raises:
        CheckpointError: the checker's ``preprocessor_config.json`` cannot be used.
        NonFiniteError: the pictures hold NaN or infinity.
    """
    checkers = tools.spec.having(Role.SAFETY_CHECKER)
    if not checkers or output_type == "latent":
        return {"decoded": decoded, "nsfw_content_detected": None}
    from perfuse.arrays.image_processor import ImageProcessor
    from perfuse.arrays.pictures import to_pil

    program = tools.program(checkers[0].name)
    processor = ImageProcessor.from_config(tools.spec.processors["feature_extractor"])
    pixels = processor(to_pil(to_numpy(decoded))).pixel_values
    scores = program(clip_input=place(pixels, program.torch_device))
    found = unsafe(to_numpy(scores["special_scores"]), to_numpy(scores["concept_scores"]))
    if any(found):
        warnings.warn(
            f"The safety checker objected to {sum(found)} of {len(found)} pictures, which are black "
            "instead. Another prompt or seed may help.",
            stacklevel=2,
        )
    return {"decoded": _blackened(decoded, found), "nsfw_content_detected": found}


def unsafe(special: NDArray[np.float32], concepts: NDArray[np.float32]) -> list[bool]:
    """Which pictures are to be black, by their scores [B, 3] and [B, 17].

    >>> low, high = np.float32([[-0.2, -0.1, -0.3]]), np.float32([[-0.2, 0.1, -0.3]])
    >>> almost = np.float32([[-0.005, -0.1]])
    >>> unsafe(low, almost), unsafe(high, almost)
    ([False], [True])
    """
    near = (special.round(3) > 0).any(axis=1, keepdims=True)
    scores = (concepts + near * _STRICTER).round(3)
    return [bool((one > 0).any()) for one in scores]


def _blackened(decoded: Array, found: list[bool]) -> Array:
    """The pictures, those that were found in black: -1 in every channel."""
    if not any(found):
        return decoded
    black = zeros_like(decoded[:1]) - 1
    return concatenate([black if one else decoded[i : i + 1] for i, one in enumerate(found)])
