"""Pictures to draw: whole pipeline runs of every task that a model can do.

A draw's inputs follow from the names of the task's inputs, so that a task that is new is drawn as
well. Pictures are written as the seeds that they are made from; ``reference.draws`` makes them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from perfuse import Task
from perfuse.errors import InputError
from perfuse.plugins import host
from perfuse.spec import PipelineSpec, Role
from perfuse.tasks import adapters_of, find_guider, tasks_of

__all__ = ["Draw", "drawn_of", "draws_of"]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One run of the whole pipeline."""

    #: ``"euler-karras"``.
    id: str
    #: A scheduler's short name and the fields that it changes; ``None`` for the model's own.
    scheduler: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    #: The task; ``None`` for the one that the inputs tell.
    task: str | None = None
    #: What the task is given, as JSON has it: ``{"picture": 3, "size": [16, 16]}`` for a picture of
    #: the seed 3, and so ``mask``, ``depth``, ``latents`` and ``masks``.
    inputs: Mapping[str, Any]
    #: Tokens that are added to the text encoders before, each with the seed of its vectors.
    learned: Mapping[str, int] = field(default_factory=dict)
    #: The denoiser's calls are also made one by one, with the reference's inputs.
    forced: bool = False
    halves: bool = False


def draws_of(spec: PipelineSpec, *, seed: int = 0) -> dict[str, Draw]:
    """Every picture to draw, by id, each with its own seed."""
    return {draw.id: draw for draw in _draws(spec, seed)}


#: Schedulers that a seed chooses from, with what each is given.
_SCHEDULERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("ddim", {}),
    ("euler", {"timestep_spacing": "linspace"}),
    ("euler", {"use_karras_sigmas": True}),
    ("dpm++", {}),
    ("euler-ancestral", {}),
)
_WORDS = "a large small red green blue circle square triangle on white black background above"


def drawn_of(spec: PipelineSpec, seed: int, count: int = 1) -> dict[str, Draw]:
    """Pictures of what the model is made for, by id, of which the seed draws the rest.

    Sizes, prompts and how many, steps, guidance, the scheduler.
    """
    tasks = [task for task in tasks_of(spec).values() if _runs(spec, task)]
    given = _Given(spec, seed)
    found = {}
    for number in range(count if tasks else 0):
        id = "drawn" + (f"-{number + 1}" if number else "")
        random = np.random.default_rng((seed, number))
        found[id] = _drawn(given, tasks[0], id, random)
    return found


def _drawn(given: "_Given", task: Task, id: str, random: np.random.Generator) -> Draw:
    steps, numbers = int(random.integers(2, 13)), int(random.integers(10**6))
    guidance = round(float(random.uniform(1, 12)), 2)
    more: dict[str, Any] = {}
    if {"height", "width"} <= set(task.inputs):
        step = given.spec.size_multiple
        for name, length in zip(("height", "width"), given.size, strict=True):
            more[name] = max(int(length * random.uniform(0.5, 1.5)) // step, 1) * step
    if "prompt" in task.inputs:
        words = _WORDS.split()
        prompts = [" ".join(random.choice(words, random.integers(1, 20))) for _ in range(2)]
        more["prompt"] = prompts[0]
        if "negative_prompt" in task.inputs and not given.embedded:
            more["negative_prompt"] = prompts[1]
    scheduler: str | None
    scheduler, fields = _SCHEDULERS[int(random.integers(len(_SCHEDULERS)))]
    if task.name == "latent-upscale":  # k-diffusion's own, as in every draw of it
        scheduler, fields = None, {}
    elif given.scheduler != "ddim":
        scheduler, fields = given.scheduler, {}
    inputs = given(task, numbers, steps, guidance, **more)
    if "class_labels" in task.inputs:
        inputs["class_labels"] = [int(one) for one in random.integers(0, 10, 2)]
    elif "prompt" not in task.inputs and not _starts_from_pictures(task):
        inputs = {"num_inference_steps": steps, "seed": numbers, "batch_size": 2}
    return Draw(id=id, scheduler=scheduler, fields=fields, task=task.name, inputs=inputs)


def _draws(spec: PipelineSpec, seed: int) -> Iterator[Draw]:
    tasks = [task for task in tasks_of(spec).values() if _runs(spec, task)]
    given = _Given(spec, seed)
    for i, task in enumerate(tasks):
        if i > 0 or _starts_from_pictures(task):
            yield from _task_draws(given, task, main=i == 0)
        elif "prompt" in task.inputs:
            yield from _word_draws(given, task)
        elif "class_labels" in task.inputs:
            yield from _class_draws(given, task)
        else:
            yield from _plain_draws(seed)
        yield from _further_draws(given, task, main=i == 0)
    if tasks and "prompt" in tasks[0].inputs:
        yield from _guider_draws(given, tasks[0])
        yield from _prompt_draws(given, tasks[0])


def _runs(spec: PipelineSpec, task: Task) -> bool:
    """Whether a model can do a task of its class: one made for inpainting draws nothing else."""
    for node in task.steps:
        if node.name == "check_model":
            try:
                node.run(tools=SimpleNamespace(spec=spec))  # type: ignore[union-attr]
            except InputError:
                return False
    return True


def _starts_from_pictures(task: Task) -> bool:
    """Whether ``image`` is more than a picture to follow on the way."""
    follows = "guess_mode" in task.inputs or "adapter_conditioning_scale" in task.inputs
    return "image" in task.inputs and (not follows or "control_image" in task.inputs)


#: Latents of a side of what is drawn by a model whose config names no size.
_SIDE = 16


class _Given:
    """What tasks are given, by the names of their inputs."""

    def __init__(self, spec: PipelineSpec, seed: int) -> None:
        self.spec, self.seed = spec, seed
        self.size = list(spec.default_size)
        if "sample_size" not in spec.denoiser.config:  # as large as anyone likes: small ones do
            self.size = [_SIDE * spec.latents.downscale] * 2
        self.two = "text_encoder_2" in spec.components and "text_encoder" in spec.components
        self.embedded = spec.denoiser.guidance == "embedded"
        #: A model of flows is drawn with by its own scheduler: others take another prediction.
        kind = str(spec.scheduler.get("_class_name", ""))
        of_flows = kind.startswith(("FlowMatch", "SCM"))
        self.flow = of_flows or bool(spec.scheduler.get("use_flow_sigmas", False))
        noise = "lcm" if self.embedded else "ddim"
        self.scheduler = None if self.flow else noise

    def __call__(
        self, task: Task, number: int, steps: int, guidance: float, **more: Any
    ) -> dict[str, Any]:
        """The inputs of a run, each with a number for its seeds; ``more`` wins."""
        height, width = more.get("height", self.size[0]), more.get("width", self.size[1])
        usual = {
            "prompt": "a large red circle on a white background",
            "height": height,
            "width": width,
            **self._pictures(task, number, [height, width]),
        }
        if self.two:
            usual["prompt_2"] = "a small blue square"
        if "time_ids" in self.spec.denoiser.signature.input_names:
            usual["aesthetic_score"] = 5.5
        if "strength" in task.inputs:
            usual["strength"] = 0.6
        usual["control_mode"] = [1 for _ in self.spec.having(Role.CONTROL)]
        known = {name: value for name, value in usual.items() if name in task.inputs}
        scale: dict[str, Any] = {"guidance_scale": guidance}
        if (
            "true_cfg_scale" in task.inputs and not self.embedded
        ):  # guidance only away from something
            scale = {"true_cfg_scale": guidance, "negative_prompt": "a green square"}
        fixed = {"num_inference_steps": steps, **scale}
        return {**known, **fixed, "seed": self.seed + number, **more}

    def _pictures(self, task: Task, number: int, size: list[int]) -> dict[str, Any]:
        """The pictures that a task takes; small ones where it makes them large."""
        times = {"upscale": self.spec.latents.downscale, "latent-upscale": 2}.get(task.name, 1)
        shown = [length // times for length in size]
        nets = self.spec.having(Role.CONTROL)
        follow: Any = [{"picture": number + i, "size": size} for i, _ in enumerate(nets)]
        follow = follow if len(follow) > 1 else follow[0] if follow else None
        image = {"picture": number, "size": shown}
        pictures = {
            "image": image if _starts_from_pictures(task) else follow,
            "control_image": follow,
            "mask_image": {"mask": number, "size": size},
            "depth_map": {"depth": number, "size": size},
            "ip_adapter_image": [
                {"picture": 50 + i, "size": size} for i in range(adapters_of(self.spec.denoiser))
            ],
        }
        return {name: value for name, value in pictures.items() if value not in (None, [])}


def _word_draws(given: _Given, task: Task) -> Iterator[Draw]:
    """Text to image."""
    if given.flow:
        yield from _flow_draws(given, task)
        return
    if given.embedded:
        one = Draw(id="lcm", scheduler="lcm", inputs=given(task, 0, 4, 8.5))
        yield replace(one, forced=True, halves=True)
        yield Draw(id="lcm-weak", scheduler="lcm", inputs=given(task, 1, 4, 1.5))
        return
    negative = {"negative_prompt": "a green square"}
    # A guidance scale of 1 runs one branch: the denoiser gets the loop's latents unchanged.
    first = Draw(id="ddim", scheduler="ddim", inputs=given(task, 0, 10, 7.5))
    yield replace(first, forced=True, halves=True)
    yield Draw(id="ddim-unguided", scheduler="ddim", inputs=given(task, 1, 10, 1.0), forced=True)
    yield Draw(
        id="euler-linspace",
        scheduler="euler",
        fields={"timestep_spacing": "linspace"},
        inputs=given(task, 2, 10, 3.0),
        forced=True,
        halves=True,
    )
    yield Draw(
        id="euler-karras",
        scheduler="euler",
        fields={"use_karras_sigmas": True},
        inputs=given(task, 3, 10, 3.0),
        forced=True,
    )
    yield Draw(id="dpm-multistep", scheduler="dpm++", inputs=given(task, 4, 10, 3.0, **negative))
    yield Draw(id="euler-ancestral", scheduler="euler-ancestral", inputs=given(task, 5, 10, 3.0))
    pair = ["a small red circle", "a large blue square on a black background"]
    wide: dict[str, Any] = {"prompt": pair, "width": given.size[1] + given.size[1] // 2}
    if given.two and "prompt_2" in task.inputs:
        wide["prompt_2"] = pair[::-1]
    yield Draw(id="two-wide", scheduler="ddim", inputs=given(task, 6, 6, 7.5, **wide))


def _flow_draws(given: _Given, task: Task) -> Iterator[Draw]:
    """Text to image by flow matching, by the scheduler of the model."""
    one = Draw(id="flow", inputs=given(task, 0, 8, 3.5))
    yield replace(one, forced=True, halves=True)
    yield Draw(id="flow-unguided", inputs=given(task, 1, 8, 1.0), forced=True)
    pair = ["a small red circle", "a large blue square on a black background"]
    wide: dict[str, Any] = {"prompt": pair, "width": given.size[1] + given.size[1] // 2}
    yield Draw(id="two-wide", inputs=given(task, 6, 6, 5.0, **wide))


def _class_draws(given: _Given, task: Task) -> Iterator[Draw]:
    """Pictures of classes."""
    first: dict[str, Any] = {"class_labels": [3]}
    one = Draw(id="ddim", scheduler="ddim", inputs=given(task, 0, 10, 4.0, **first))
    yield replace(one, forced=True, halves=True)
    inputs = given(task, 1, 10, 1.0, **first)
    yield Draw(id="ddim-unguided", scheduler="ddim", inputs=inputs, forced=True)
    yield Draw(id="dpm-multistep", scheduler="dpm++", inputs=given(task, 2, 10, 3.0, **first))
    wide = {"class_labels": [1, 7], "width": given.size[1] + given.size[1] // 2}
    yield Draw(id="two-wide", scheduler="ddim", inputs=given(task, 6, 6, 4.0, **wide))


def _plain_draws(seed: int) -> Iterator[Draw]:
    yield Draw(
        id="ddim",
        scheduler="ddim",
        inputs={"num_inference_steps": 10, "seed": seed},
        forced=True,
        halves=True,
    )
    yield Draw(
        id="ddpm",
        scheduler="ddpm",
        inputs={"num_inference_steps": 10, "seed": seed + 1, "batch_size": 2},
    )


def _task_draws(given: _Given, task: Task, *, main: bool) -> Iterator[Draw]:
    """A task that starts from pictures: once, and more if it is what the model is made for."""
    # k-diffusion's upscaler predicts what other schedulers do not take.
    own = task.name == "latent-upscale"
    scheduler, name = None if own else given.scheduler, task.name
    strong = 8.5 if given.embedded else 5.0
    one = Draw(id=name, scheduler=scheduler, task=name, inputs=given(task, 10, 8, strong))
    yield replace(one, forced=main, halves=main)
    if not main:
        return
    if given.flow:
        yield Draw(id=f"{name}-unguided", task=name, inputs=given(task, 12, 8, 1.0))
        return
    inputs = given(task, 11, 8, 3.0)
    euler = {"timestep_spacing": "linspace"}
    one = Draw(id=f"{name}-euler", scheduler="euler", fields=euler, task=name, inputs=inputs)
    yield replace(one, forced=True)
    inputs = given(task, 12, 8, 1.0)
    yield Draw(id=f"{name}-unguided", scheduler=scheduler, task=name, inputs=inputs)
    inputs = given(task, 13, 6, strong)
    inputs["image"] = [inputs["image"], {**inputs["image"], "picture": 14}]
    if "prompt" in task.inputs:
        inputs["prompt"] = ["a small red circle", "a large blue square on a black background"]
    yield Draw(id=f"{name}-two", scheduler=scheduler, task=name, inputs=inputs)


def _further_draws(given: _Given, task: Task, *, main: bool) -> Iterator[Draw]:
    """A draw for each input that takes a run another way."""
    usual = 8.5 if given.embedded else 5.0
    latents = {"latents": 20, "size": given.size}
    # Diffusers has masks for the adapters of UNets alone.
    masks = [
        {"masks": 21 + i, "size": given.size}
        for i in range(0 if given.flow else adapters_of(given.spec.denoiser))
    ]
    pairs = [
        [{"picture": 60 + 2 * i + k, "size": given.size} for k in (0, 1)]
        for i, _ in enumerate(masks)
    ]
    whole = {"strength": 1.0} if "strength" in task.inputs else {}
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "strength": ("whole", whole),
        "denoising_end": ("begun", {"denoising_end": 0.6, **whole}),
        "noise_level": ("noisy", {"noise_level": 200}),
        "image_guidance_scale": ("near", {"image_guidance_scale": 2.5}),
        "guess_mode": ("guessed", {"guess_mode": True, "control_guidance_end": 0.8}),
        "control_guidance_start": (
            "partly",
            {"controlnet_conditioning_scale": 0.6, "control_guidance_start": 0.3},
        ),
        "adapter_conditioning_factor": (
            "partly",
            {"adapter_conditioning_scale": 0.7, "adapter_conditioning_factor": 0.5},
        ),
    }
    if "mask_image" not in task.inputs and "strength" in task.inputs:
        ways["denoising_start"] = ("continued", {"denoising_start": 0.4, "image": latents})
    followed = [{"picture": 70 + i, "size": given.size} for i in range(2)]
    ways["control_mode"] = ("both", {"control_image": followed, "control_mode": [0, 3]})
    if masks:
        shown = {"ip_adapter_image": pairs, "cross_attention_kwargs": {"ip_adapter_masks": masks}}
        ways["ip_adapter_image"] = ("masked", shown)
    for number, (name, (suffix, changed)) in enumerate(ways.items(), 20):
        # What a model is not made for is drawn as a whole, and every way of what it is made for.
        if name in task.inputs and (main or name in ("strength", "denoising_start")):
            inputs = given(task, number, 8, usual, **changed)
            noise = "lcm" if given.embedded else "euler-ancestral"
            scheduler = None if given.flow else noise
            id = f"{task.name}-{suffix}"
            yield Draw(id=id, scheduler=scheduler, task=task.name, inputs=inputs)


def _guider_draws(given: _Given, task: Task) -> Iterator[Draw]:
    """Every guider, for a model that has the worse versions of its denoiser that some run."""
    denoiser = given.spec.denoiser.name
    entries = {n for n, one in given.spec.components.items() if one.entry_of == denoiser}
    for number, name in enumerate(sorted(host().guiders()) if entries else (), 40):
        guider = find_guider(name)
        conditions = {branch.condition for branch in guider.branches}
        worse = {b.perturbation.entry for b in guider.branches if b.perturbation is not None}
        # InstructPix2Pix has a condition of its own and its own task, as an embedded scale has.
        usual = conditions <= {"positive", "negative", "empty"} and guider.embedded is None
        if usual and worse <= entries:
            inputs = given(task, number, 10, 7.5, guider=name, negative_prompt="a green square")
            yield Draw(id=f"guider-{name}", scheduler="ddim", task=task.name, inputs=inputs)


_LONG = "a large red circle on a white background, " * 12


def _prompt_draws(given: _Given, task: Task) -> Iterator[Draw]:
    """Prompts with weights, of any length, with learned words, for text encoders that take them."""
    encoders = given.spec.having(Role.TEXT_ENCODER)
    if not any(one.signature.input("added_embeddings") for one in encoders):
        return
    ways: dict[str, dict[str, Any]] = {
        "clip-skip": {"clip_skip": 1},
        "weighted": {"prompt_syntax": "compel", "prompt": "a (red)1.4 circle on a white--"},
        "long": {"prompt_syntax": "a1111", "prompt": _LONG + "(green:1.3) [square]"},
    }
    for number, (id, changed) in enumerate(ways.items(), 60):
        inputs = given(task, number, 6, 5.0, **changed)
        yield Draw(id=f"prompt-{id}", scheduler="ddim", task=task.name, inputs=inputs)
    inputs = given(task, 63, 6, 5.0, prompt="a <learned> circle")
    learned = Draw(id="prompt-learned", scheduler="ddim", task=task.name, inputs=inputs)
    yield replace(learned, learned={"<learned>": 7})
