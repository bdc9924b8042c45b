"""Any task of SD XL with ControlNet-Unions: https://github.com/xinsir6/ControlNetPlus."""

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perfuse.arrays import place
from perfuse.contract.backend import Program
from perfuse.contract.control import Call, Control
from perfuse.contract.spec import Array, ComponentSpec
from perfuse.contract.steps import Input, State, Task, Tools, step
from perfuse.errors import InputError
from perfuse.tasks.control import cropped, one_each, pictures_for, read_scales, size_from_control
from perfuse.tasks.controlnet import (
    CONTROL_IMAGE,
    CONTROL_INPUTS,
    ControlNet,
    check_interval,
    nets_of,
    positive_only,
    residual_scales,
    within,
)
from perfuse.tasks.image_to_image_xl import IMAGE_TO_IMAGE_XL, INPAINTING_XL
from perfuse.tasks.inputs import SIZE
from perfuse.tasks.text_to_image_xl import TEXT_TO_IMAGE_XL

__all__ = ["UNION_IMAGE_TO_IMAGE_XL", "UNION_INPAINTING_XL", "UNION_TO_IMAGE_XL", "Joined"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of several pictures that a net reads at once."""

    scale: float
    #: The fractions of the loop between which it counts.
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined(Control):
    """A net that reads several pictures at once, each with a scale and an interval of its own.

    As in Diffusers, it runs at every step, also where none of its pictures counts.
    """

    net: ControlNet
    parts: tuple[Part, ...]

    def inputs(self, tools: Tools, call: Call) -> Mapping[str, Array]:
        scales = [
            part.scale if within(call.moment, part.start, part.stop) else 0.0 for part in self.parts
        ]
        rows = np.repeat(np.asarray([scales], dtype=np.float32), call.pictures, axis=0)
        rows = place(rows, tools.program(self.net.component).torch_device)
        return replace(self.net, given={**self.net.given, "control_scales": rows}).inputs(
            tools, call
        )


@step(outputs=("controls",))
def read_unions(
    tools: Tools,
    control_image: Any,
    control_mode: Any,
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
    """A control for each ControlNet-Union: of one, for all its pictures; of several, for each."""
    nets = nets_of(tools, union=True)
    if box is not None:
        control_image = cropped(control_image, box, (height, width))
    given = _by_net(nets, control_image, control_mode)
    several = len(nets) == 1 and len(given[0][1]) > 1
    whose = nets * len(given[0][1]) if several else nets  # what the scales and intervals are of
    strengths = read_scales(controlnet_conditioning_scale, whose, "controlnet_conditioning_scale")
    starts = one_each(control_guidance_start, whose, "control_guidance_start")
    stops = one_each(control_guidance_end, whose, "control_guidance_end")
    for start, stop in zip(starts, stops, strict=True):
        check_interval(start, stop)
    settings = [
        Part(scale=scale, start=start, stop=stop)
        for scale, start, stop in zip(strengths, starts, stops, strict=True)
    ]
    controls: list[Control] = []
    for i, (net, (images, modes)) in enumerate(zip(nets, given, strict=True)):
        pictures = [
            pictures_for(
                one, (net,), prompts=count, times=num_images_per_prompt, size=(height, width)
            )[0]
            for one in images
        ]
        whole = Part(scale=1.0, start=0.0, stop=1.0) if several else settings[i]
        control = ControlNet(
            component=net.name,
            given=_arrays(net, tools.program(net.name), pictures, modes),
            scales=residual_scales(nets, net, whole.scale, guess_mode),
            start=whole.start,
            stop=whole.stop,
            positive_only=positive_only(nets, guess_mode),
        )
        controls.append(Joined(net=control, parts=tuple(settings)) if several else control)
    return {"controls": tuple(controls)}


def _by_net(
    nets: Sequence[ComponentSpec], control_image: Any, control_mode: Any
) -> list[tuple[list[Any], list[int]]]:
    """For each net the pictures that it reads, and the kind of each.

    One net takes a list of pictures with a list of kinds. Several take a list of one picture each
    with one kind each, or of lists, for several pictures each.
    """
    modes = _listed(control_mode)
    if len(nets) == 1:
        flat = modes[0] if len(modes) == 1 and isinstance(modes[0], list | tuple) else modes
        pairs = [(_listed(control_image), list(flat))]
    else:
        images = _listed(control_image)
        if not len(nets) == len(images) == len(modes):
            raise InputError(
                f"{len(images)} pictures to follow and {len(modes)} control_mode were given; this "
                f"pipeline has {', '.join(net.name for net in nets)}. Give a list of one for each."
            )
        pairs = [
            (_listed(image), list(mode)) if isinstance(mode, list | tuple) else ([image], [mode])
            for image, mode in zip(images, modes, strict=True)
        ]
    for net, (pictures, kinds) in zip(nets, pairs, strict=True):
        _check_kinds(net, pictures, kinds)
    return pairs


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _check_kinds(net: ComponentSpec, pictures: Sequence[Any], kinds: Sequence[Any]) -> None:
    known = _kinds(net)
    for kind in kinds:
        whole = isinstance(kind, numbers.Integral) and not isinstance(kind, bool)
        if not whole or not 0 <= kind < known:
            raise InputError(
                f"control_mode has {kind!r}; {net.name} knows the kinds of pictures 0 to "
                f"{known - 1}. Its model card says which is which; give one for each picture: "
                "control_mode=[0]."
            )
    if len(pictures) != len(kinds):
        raise InputError(
            f"{len(pictures)} pictures to follow and {len(kinds)} control_mode were given for "
            f"{net.name}. Give the kind of each picture: control_image=[A, B], control_mode=[0, 3]."
        )


def _kinds(net: ComponentSpec) -> int:
    modes = net.signature.input("control_modes")
    assert modes is not None  # it is what makes it a union
    return int(modes.shape[-1])


def _arrays(
    net: ComponentSpec, program: Program, pictures: Sequence[np.ndarray], modes: Sequence[int]
) -> dict[str, Array]:
    """The inputs of a net for its pictures, each [pictures, …]."""
    batch = program.signature.inputs[0].shape[0]
    if isinstance(batch, int) and any((one != one[:1]).any() for one in pictures):
        raise InputError(
            f"{net.name} was given different pictures for one batch, which it looks at together; it "
            f"was made for a batch of {batch}. Draw them one by one, or export it for any batch."
        )
    rows = np.eye(_kinds(net), dtype=np.float32)[list(modes)]
    items = len(pictures[0])
    arrays = {
        "control_image": np.stack(pictures, axis=1),
        "control_kinds": np.repeat(rows.max(axis=0, keepdims=True), items, axis=0),
        "control_modes": np.repeat(rows[None], items, axis=0),
        "control_scales": np.ones((items, len(modes)), dtype=np.float32),
    }
    return {name: place(array, program.torch_device) for name, array in arrays.items()}


_MODE = Input(
    kind=int,
    option="--control-mode",
    several=True,
    help="The kind of each picture to follow, by the number that the ControlNet-Union gives it.",
)


def _with_union(task: Task, **defaults: Any) -> Task:
    inputs = {
        **task.inputs,
        **SIZE,
        "control_image": CONTROL_IMAGE,
        **CONTROL_INPUTS,
        "control_mode": _MODE,
    }
    changed = replace(task, inputs=inputs).insert(read_unions, before="prepare_schedule")
    return changed.with_defaults(defaults)


_SCALE = "controlnet_conditioning_scale"
UNION_TO_IMAGE_XL = _with_union(TEXT_TO_IMAGE_XL).insert(size_from_control, before="check_size")
UNION_IMAGE_TO_IMAGE_XL = _with_union(IMAGE_TO_IMAGE_XL, strength=0.8, **{_SCALE: 0.8})
UNION_INPAINTING_XL = _with_union(INPAINTING_XL, guidance_scale=5.0)
