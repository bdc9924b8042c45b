"""Pictures of classes with DiT (Peebles and Xie 2022, arXiv:2212.09748)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perfuse.arrays import to_numpy
from perfuse.contract.spec import Array
from perfuse.contract.steps import REQUIRED, Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.models.dit_transformer.description import classes_of
from perfuse.tasks.denoise import (
    check_output_type,
    check_size,
    decode,
    denoise_loop,
    finish,
    prepare_schedule,
)
from perfuse.tasks.inputs import GUIDANCE, NOISE, OUTPUT, SIZE, STEPS
from perfuse.tasks.text import guider_for, read_conditions
from perfuse.tasks.text_to_image import prepare_latents

__all__ = ["DIT_CLASS_TO_IMAGE", "class_names"]

#: How many names an error shows.
_SHOWN = 5


@step(outputs=("guider", "conditions", "count"))
def read_classes(
    tools: Tools,
    class_labels: Any,
    guidance_scale: float,
    guidance_rescale: float,
    guider: Any,
    num_images_per_prompt: int,
    output_type: str,
) -> State:
    """The class of each picture, by its number or its name; guidance is away from none."""
    check_output_type(output_type)
    asked = [class_labels] if isinstance(class_labels, str | int) else list(to_list(class_labels))
    if not asked:
        raise InputError("class_labels is empty. Give a class for each picture.")
    labels = np.asarray([_number(tools, one) for one in asked], dtype=np.int64)
    none = np.full_like(labels, classes_of(tools.spec.denoiser))
    chosen = guider_for(tools, guider, guidance_scale, guidance_rescale)
    conditions = read_conditions(
        chosen,
        num_images_per_prompt,
        positive=lambda: {"class_labels": labels},
        negative=lambda: {"class_labels": none},
        empty=lambda: {"class_labels": none},
    )
    return {"guider": chosen, "conditions": conditions, "count": len(labels)}


def to_list(labels: Any) -> Sequence[Any]:
    """Classes in a list, a tuple or an array."""
    if isinstance(labels, list | tuple):
        return labels
    array: Array = to_numpy(labels)
    listed: list[Any] = array.reshape(-1).tolist()
    return listed


def _number(tools: Tools, label: Any) -> int:
    """The number of a class.

    Raises:
        InputError: there is no such class.
    """
    count = classes_of(tools.spec.denoiser)
    if isinstance(label, str) and not label.isdecimal():
        names = class_names(tools.spec.options.get("id2label"))
        if label.strip() not in names:
            known = ", ".join(sorted(names)[:_SHOWN])
            said = f"it has {len(names)}: {known}, …" if names else "it names none (id2label)"
            raise InputError(f"The class {label!r} was asked for; of this model {said}.")
        return names[label.strip()]
    number = int(label) if isinstance(label, str | int | np.integer) else -1
    if isinstance(label, bool) or not 0 <= number <= count:
        raise InputError(
            f"The class {label!r} was asked for; this model has the numbers 0 to {count - 1}, and "
            f"{count} for none."
        )
    return number


def class_names(labels: Any) -> dict[str, int]:
    """Name to number: a class may have several names, with commas between them."""
    given = labels if isinstance(labels, Mapping) else {}
    pairs = ((name, number) for number, text in given.items() for name in str(text).split(","))
    return {name.strip(): int(number) for name, number in pairs}


DIT_CLASS_TO_IMAGE = Task(
    name="class-to-image",
    inputs={
        "class_labels": Input(
            default=REQUIRED,
            kind=str,
            option="--class",
            several=True,
            help="A class's number or its name, one for each picture.",
        ),
        **SIZE,
        **STEPS,
        **GUIDANCE,
        "num_images_per_prompt": Input(
            default=1, kind=int, option="--num-images", help="Pictures to draw of each class."
        ),
        **NOISE,
        **OUTPUT,
    },
    steps=(
        read_classes,
        check_size,
        prepare_schedule,
        prepare_latents,
        *denoise_loop,
        decode,
        finish,
    ),
).with_defaults({"guidance_scale": 4.0})
