"""Text to image with one or more T2I-Adapters (Mou et al. 2023, arXiv:2302.08453)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from perfuse.arrays import concatenate, place
from perfuse.contract.control import Call, Control
from perfuse.contract.spec import Array, ComponentSpec, Role
from perfuse.contract.steps import REQUIRED, Input, Picture, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.control import pictures_for, read_scales, size_from_control, take_image
from perfuse.tasks.guiders.numbers import check_fraction
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL

__all__ = ["ADAPTER_TO_IMAGE", "ADAPTER_TO_IMAGE_XL", "Features"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Features(Control):
    """What the adapters made of the pictures, once for the whole loop."""

    #: Input of the denoiser to its array, [pictures, …], on the denoiser's device.
    arrays: Mapping[str, Array]
    #: The steps, from the first, at which they are added.
    steps: int

    def inputs(self, tools: Tools, call: Call) -> Mapping[str, Array]:
        if call.moment.index >= self.steps:
            return {}
        times = len(call.branches)
        return {name: concatenate([array] * times) for name, array in self.arrays.items()}


def _adapters_of(tools: Tools) -> tuple[ComponentSpec, ...]:
    found = tools.spec.having(Role.CONTROL)
    adapters = tuple(one for one in found if one.signature.input("timestep") is None)
    if not adapters:
        raise InputError(
            f"{tools.spec.class_name} has no T2I-Adapter here; it has "
            f"{', '.join(tools.spec.components)}. Open it with one: "
            "from_pretrained(MODEL, adapter=FOLDER)."
        )
    return adapters


@step(outputs=("controls",))
def read_features(
    tools: Tools,
    control_image: Any,
    adapter_conditioning_scale: Any,
    adapter_conditioning_factor: float,
    num_inference_steps: int,
    timesteps: Any,
    sigmas: Any,
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
) -> State:
    """Run each adapter on its picture, and sum what they give, each times its scale."""
    adapters = _adapters_of(tools)
    scales = read_scales(adapter_conditioning_scale, adapters, "adapter_conditioning_scale")
    check_fraction("adapter_conditioning_factor", adapter_conditioning_factor)
    pictures = pictures_for(
        control_image, adapters, prompts=count, times=num_images_per_prompt, size=(height, width)
    )
    device = tools.program(tools.spec.denoiser.name).torch_device
    total: dict[str, Array] = {}
    for adapter, scale, picture in zip(adapters, scales, pictures, strict=True):
        program = tools.program(adapter.name)
        out = program(control_image=place(picture, program.torch_device))
        for name, array in out.items():
            scaled = place(array, device) * scale
            total[name] = total[name] + scaled if name in total else scaled
    given = timesteps if timesteps is not None else sigmas
    steps = num_inference_steps if given is None else len(given)
    features = Features(arrays=total, steps=int(steps * adapter_conditioning_factor))
    return {"controls": (features,)}


_INPUTS = {
    "adapter_conditioning_scale": Input(
        default=1.0,
        kind=float,
        option="--control-scale",
        help="How much the picture to follow counts; a list for several adapters.",
    ),
    "adapter_conditioning_factor": Input(
        default=1.0, kind=float, help="The fraction of the steps, from the first, that follow it."
    ),
}
_PICTURE = Input(
    default=REQUIRED,
    kind=Picture,
    option="--control-image",
    several=True,
    help="The picture to follow: edges, depth, poses, as the adapter was trained.",
)


def _with_adapter(task: Task) -> Task:
    inputs = {"prompt": task.inputs["prompt"], "image": _PICTURE, **task.inputs, **_INPUTS}
    return (
        replace(task, inputs=inputs, steps=(take_image, *task.steps))
        .insert(size_from_control, before="check_size")
        .insert(read_features, before="prepare_schedule")
    )


ADAPTER_TO_IMAGE = _with_adapter(TEXT_TO_IMAGE)
ADAPTER_TO_IMAGE_XL = _with_adapter(TEXT_TO_IMAGE_XL)
