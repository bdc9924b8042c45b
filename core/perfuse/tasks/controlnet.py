"""Any task with one or more ControlNets (Zhang et al. 2023, arXiv:2302.05543)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfuse.arrays import concatenate, is_torch, place, zeros
from perfuse.contract.backend import Program
from perfuse.contract.control import Call, Control
from perfuse.contract.guider import Moment
from perfuse.contract.spec import Array, ComponentSpec, Role
from perfuse.contract.steps import REQUIRED, Input, Picture, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.control import (
    cropped,
    one_each,
    pictures_for,
    read_scales,
    size_from_control,
    take_image,
)
from perfuse.tasks.guiders.numbers import check_fraction
from perfuse.tasks.image_to_image import IMAGE_TO_IMAGE
from perfuse.tasks.image_to_image_xl import IMAGE_TO_IMAGE_XL, INPAINTING_XL
from perfuse.tasks.inpainting import INPAINTING
from perfuse.tasks.inputs import SIZE
from perfuse.tasks.text_to_image import TEXT_TO_IMAGE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL

__all__ = [
    "CONTROLNET_IMAGE_TO_IMAGE",
    "CONTROLNET_IMAGE_TO_IMAGE_XL",
    "CONTROLNET_INPAINTING",
    "CONTROLNET_INPAINTING_XL",
    "CONTROLNET_TO_IMAGE",
    "CONTROLNET_TO_IMAGE_XL",
    "CONTROL_IMAGE",
    "CONTROL_INPUTS",
    "ControlNet",
    "check_interval",
    "nets_of",
    "positive_only",
    "residual_scales",
    "with_controlnet",
    "within",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlNet(Control):
    """One net with its picture: it runs at the steps of its interval, and not at the others."""

    component: str
    #: Its own inputs, each [pictures, …], on its device: ``control_image``, in [0, 1], …
    given: Mapping[str, Array]
    #: Times each residual, in the order of the component's outputs.
    scales: tuple[float, ...]
    #: The fractions of the loop between which it runs.
    start: float
    stop: float
    #: Whether it runs for the branches with the prompt alone.
    positive_only: bool

    def inputs(self, tools: Tools, call: Call) -> Mapping[str, Array]:
        if not within(call.moment, self.start, self.stop) or not any(self.scales):
            return {}
        follows = [not self.positive_only or b.condition == "positive" for b in call.branches]
        if not any(follows):
            return {}
        program = tools.program(self.component)
        there = call.sample.device if is_torch(call.sample) else None
        given = {
            name: _chosen(array, follows, call.pictures)
            for name, array in self._taken(program, call).items()
        }
        items = len(given["sample"])
        for name, array in self.given.items():
            given[name] = concatenate([array] * (items // call.pictures))
        scales = np.repeat(np.asarray([self.scales], dtype=np.float32), items, axis=0)
        given["residual_scales"] = place(scales, program.torch_device)
        return {
            name: _spread(place(array, there), follows, call.pictures)
            for name, array in program(**given).items()
        }

    def _taken(self, program: Program, call: Call) -> dict[str, Array]:
        """The denoiser's inputs that the net takes too, on its device."""
        given = {**call.inputs, "sample": call.sample, "timestep": call.timesteps}
        return {
            name: place(given[name], program.torch_device)
            for name in program.signature.input_names
            if name in given
        }


def within(moment: Moment, start: float, stop: float) -> bool:
    """Whether a step lies in an interval of the loop, given by fractions of it."""
    return moment.index / moment.total >= start and (moment.index + 1) / moment.total <= stop


def _chosen(array: Array, follows: Sequence[bool], pictures: int) -> Array:
    """The items [branches * pictures, …] of the branches that follow the picture."""
    if all(follows):
        return array
    starts = [i * pictures for i, one in enumerate(follows) if one]
    return concatenate([array[start : start + pictures] for start in starts])


def _spread(array: Array, follows: Sequence[bool], pictures: int) -> Array:
    """Undo ``_chosen``, with zeros for the other branches."""
    if all(follows):
        return array
    nothing = zeros((pictures, *array.shape[1:]), array)
    parts = iter(range(0, len(array), pictures))
    return concatenate(
        [array[(at := next(parts)) : at + pictures] if one else nothing for one in follows]
    )


def nets_of(tools: Tools, *, union: bool = False) -> tuple[ComponentSpec, ...]:
    """The controls that run at each step of the loop.

    Args:
        tools: The pipeline.
        union: Whether the task can tell a net the kinds of its pictures.

    Raises:
        InputError: there are none, or they are told kinds of pictures and the task tells none, or
            the other way round.
    """
    kind = f"ControlNet{'-Union' * union}"
    nets = tuple(n for n in tools.spec.having(Role.CONTROL) if n.signature.input("timestep"))
    if not nets:
        raise InputError(
            f"{tools.spec.class_name} has no {kind} here; it has "
            f"{', '.join(tools.spec.components)}. Open it with one: "
            "from_pretrained(MODEL, controlnet=FOLDER), or --controlnet FOLDER."
        )
    for net in nets:
        if (net.signature.input("control_modes") is not None) != union:
            raise InputError(
                f"{net.name} is a {net.class_name}; {tools.spec.class_name} takes a {kind} there. "
                "Open the model with one of that kind."
            )
    return nets


@step(outputs=("controls",))
def read_controls(
    tools: Tools,
    control_image: Any,
    controlnet_conditioning_scale: Any,
    guess_mode: bool,
    control_guidance_start: Any,
    control_guidance_end: Any,
    count: int,
    num_images_per_prompt: int,
    height: int,
    width: int,
    box: Any = None,
) -> State:
    """A control for each ControlNet; of a part of a picture, for the same part."""
    nets = nets_of(tools)
    strengths = read_scales(controlnet_conditioning_scale, nets, "controlnet_conditioning_scale")
    starts = one_each(control_guidance_start, nets, "control_guidance_start")
    stops = one_each(control_guidance_end, nets, "control_guidance_end")
    for start, stop in zip(starts, stops, strict=True):
        check_interval(start, stop)
    if box is not None:
        control_image = cropped(control_image, box, (height, width))
    pictures = pictures_for(
        control_image, nets, prompts=count, times=num_images_per_prompt, size=(height, width)
    )
    program = tools.program
    return {
        "controls": tuple(
            ControlNet(
                component=net.name,
                given={"control_image": place(pictures[i], program(net.name).torch_device)},
                scales=residual_scales(nets, net, strengths[i], guess_mode),
                start=starts[i],
                stop=stops[i],
                positive_only=positive_only(nets, guess_mode),
            )
            for i, net in enumerate(nets)
        )
    }


def positive_only(nets: Sequence[ComponentSpec], guess_mode: bool) -> bool:
    """Whether nets run for the prompt alone: as in Diffusers, a first net that pools does so."""
    return guess_mode or _pools(nets[0])


def residual_scales(
    nets: Sequence[ComponentSpec], net: ComponentSpec, strength: float, guess_mode: bool
) -> tuple[float, ...]:
    """What each residual of a net is multiplied by."""
    scales = np.full(len(net.signature.outputs), strength, dtype=np.float32)
    if positive_only(nets, guess_mode) and not _pools(net):
        scales *= np.logspace(-1, 0, len(scales), dtype=np.float32)
    return tuple(float(one) for one in scales)


def check_interval(start: Any, stop: Any) -> None:
    """Raise ``InputError`` unless two fractions of the steps are an interval of some length."""
    check_fraction("control_guidance_start", start)
    check_fraction("control_guidance_end", stop)
    if start >= stop:
        raise InputError(
            f"A ControlNet was to run from {start} to {stop} of the steps: control_guidance_start "
            "must be less than control_guidance_end."
        )


def _pools(net: ComponentSpec) -> bool:
    """Whether a net gives one value a channel, for all positions."""
    return net.signature.outputs[0].shape[2:] == (1, 1)


CONTROL_INPUTS = {
    "controlnet_conditioning_scale": Input(
        default=1.0,
        kind=float,
        option="--control-scale",
        help="How much the picture to follow counts; a list for several ControlNets.",
    ),
    "guess_mode": Input(
        default=False, kind=bool, help="Follow the picture without a prompt; guidance 3 to 5."
    ),
    "control_guidance_start": Input(
        default=0.0, kind=float, option="--control-start", help="Fraction of the steps, 0 to 1."
    ),
    "control_guidance_end": Input(
        default=1.0, kind=float, option="--control-end", help="Fraction of the steps, 0 to 1."
    ),
}
CONTROL_IMAGE = Input(
    default=REQUIRED,
    kind=Picture,
    option="--control-image",
    several=True,
    help="The picture to follow: edges, depth, poses, as the ControlNet was trained.",
)


def with_controlnet(task: Task, **defaults: Any) -> Task:
    """A task that starts from a picture, with ``control_image`` as one more: to follow."""
    inputs = {**task.inputs, **SIZE, "control_image": CONTROL_IMAGE, **CONTROL_INPUTS}
    changed = replace(task, inputs=inputs).insert(read_controls, before="prepare_schedule")
    return changed.with_defaults(defaults)


def _from_text(task: Task) -> Task:
    """Text to image, where the picture to follow is the only one."""
    inputs = {
        "prompt": task.inputs["prompt"],
        "image": CONTROL_IMAGE,
        **task.inputs,
        **CONTROL_INPUTS,
    }
    steps = (take_image, *task.steps)
    return (
        replace(task, inputs=inputs, steps=steps)
        .insert(size_from_control, before="check_size")
        .insert(read_controls, before="prepare_schedule")
    )


CONTROLNET_TO_IMAGE = _from_text(TEXT_TO_IMAGE)
CONTROLNET_TO_IMAGE_XL = _from_text(TEXT_TO_IMAGE_XL)

# The defaults are those of Diffusers' pipelines, which differ from one another.
_SCALE = "controlnet_conditioning_scale"
CONTROLNET_IMAGE_TO_IMAGE = with_controlnet(IMAGE_TO_IMAGE, **{_SCALE: 0.8})
CONTROLNET_INPAINTING = with_controlnet(INPAINTING.without("show_kept"), **{_SCALE: 0.5})
CONTROLNET_IMAGE_TO_IMAGE_XL = with_controlnet(IMAGE_TO_IMAGE_XL, strength=0.8, **{_SCALE: 0.8})
CONTROLNET_INPAINTING_XL = with_controlnet(INPAINTING_XL, guidance_scale=5.0)
