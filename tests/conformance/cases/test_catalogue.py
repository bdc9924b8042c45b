"""Which cases there are, for which model and which declared capabilities."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perfuse import DiffusionPipeline
from perfuse.plugins import host
from perfuse.shapes import BUNDLED
from perfuse.sources.opening import open_model
from perfuse.spec import PipelineSpec
from perfuse.tasks.choosing import tasks_of
from perfuse_conformance.cases.bundle import hash_of
from perfuse_conformance.cases.catalogue import Capability, cases_of
from perfuse_conformance.cases.draws import drawn_of, draws_of
from perfuse_conformance.cases.models import RANDOM_MODELS
from perfuse_conformance.cases.opening import open_source
from perfuse_conformance.cases.probes import inputs_of, probes_of, sizes_of
from perfuse_conformance.cases.trials import probe_for, trials_of
from perfuse_conformance.checkpoints import KINDS
from perfuse_conformance.reference.draws import run_draw

YES, NO = Capability(level="full", reason=""), Capability(level="unsupported", reason="no kernels")
PRECISIONS = ("float32", "float16", "bfloat16")


@pytest.fixture(params=[*BUNDLED, *KINDS])
def spec(request: pytest.FixtureRequest) -> PipelineSpec:
    if request.param in BUNDLED:
        return open_model(request.param).spec
    folder: Path = request.getfixturevalue("checkpoint")(request.param)
    return open_source(str(folder)).spec


def declared(
    spec: PipelineSpec, *, symbolic: Capability = YES, halves: Capability = YES
) -> dict[tuple[str, str, str], Capability]:
    return {
        (name, precision, mode): (
            NO
            if precision != "float32" and halves is NO
            else symbolic
            if mode == "symbolic"
            else YES
        )
        for name in spec.components
        for precision in PRECISIONS
        for mode in ("static", "symbolic")
    }


def test_every_size_is_one_that_the_model_takes(spec: PipelineSpec) -> None:
    for component in spec.components.values():
        sizes = sizes_of(spec, component)
        for dims in sizes.values():
            assert dims.keys() == set(component.signature.dims)
            component.check_dims(dims)
        assert len({tuple(dims.items()) for dims in sizes.values()}) >= 3


def test_inputs_follow_from_the_probe_and_the_seed_alone(spec: PipelineSpec) -> None:
    for probe in probes_of(spec).values():
        component = spec.components[probe.component]
        calls = inputs_of(component, probe)
        again = inputs_of(component, probe)
        other = inputs_of(component, probe, seed=1)
        for about, inputs, same, different in zip(probe.calls, calls, again, other, strict=True):
            dims = component.signature.bind(inputs, component=probe.id)
            assert dims == {name: probe.dims[name] for name in dims}
            assert hash_of(inputs) == hash_of(same)
            empty = "input_ids" in inputs and about == 0  # nothing to draw
            assert empty or hash_of(inputs) != hash_of(different)
        alike = [hash_of(inputs) == hash_of(calls[0]) for inputs in calls[1:]]
        assert all(alike) if probe.manner == "same" else not any(alike)


def test_what_a_seed_draws_is_what_the_model_takes(spec: PipelineSpec) -> None:
    drawn = trials_of(spec, 1)
    assert {id.split("/")[1] for id in drawn} == set(spec.components)
    for id, trials in drawn.items():
        component = spec.components[id.split("/")[1]]
        probe = probe_for(spec, component, trials[-1], id)  # the smallest
        component.check_dims(probe.dims)
        (inputs,) = inputs_of(component, probe)
        assert component.signature.bind(inputs, component=id).items() <= probe.dims.items()
    assert set(drawn_of(spec, 1)) == {"drawn"}


def test_what_a_denoiser_is_asked(spec: PipelineSpec) -> None:
    probes = probes_of(spec)
    name = spec.denoiser.name
    fractions = inputs_of(spec.denoiser, probes[f"{name}/fractional"])
    asked = np.array([946.421, 12.9, 0.5])
    if (
        spec.class_name == "StableDiffusionLatentUpscalePipeline"
    ):  # whose timesteps are log(sigma) / 4
        asked = np.log(asked / 100) / 4
    assert [float(call["timestep"][0]) for call in fractions] == pytest.approx(asked.tolist())
    (mixed,) = inputs_of(spec.denoiser, probes[f"{name}/item-timesteps"])
    assert len(set(mixed["timestep"])) == 2
    guided = inputs_of(spec.denoiser, probes[f"{name}/guided"])[0]
    assert np.array_equal(guided["sample"][0], guided["sample"][1])
    if "encoder_hidden_states" in guided:
        states = guided["encoder_hidden_states"]
        assert not np.array_equal(states[0], states[1])


def test_ids_are_there_once_and_every_level_has_some(spec: PipelineSpec) -> None:
    cases = cases_of(spec, declared(spec), PRECISIONS, "L3")
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids)
    assert {case.level for case in cases} == {"L0", "L1", "L2", "L3"}
    assert {profile for case in cases for profile in case.profiles} == {"dyn", "fp16", "bf16"}
    only = cases_of(spec, declared(spec), PRECISIONS, "L1")
    assert [case.id for case in only] == [c.id for c in cases if c.level in ("L0", "L1")]


def test_what_is_declined_is_asked_to_be_refused(spec: PipelineSpec) -> None:
    cases = cases_of(spec, declared(spec, symbolic=NO), ("float32",), "L2")
    assert not any("dyn" in case.profiles for case in cases)
    assert not any(case.kind == "component" and case.mode == "symbolic" for case in cases)
    refusals = [case for case in cases if case.kind == "refusal"]
    assert {case.component for case in refusals} == set(spec.components)
    assert all(case.declined == "no kernels" for case in refusals)
    # The level itself is judged all the same, with fixed sizes.
    for name in spec.components:
        assert any(case.component == name and case.kind == "component" for case in cases)
    everything = cases_of(spec, {}, ("float32",), "L2")
    assert not any(case.kind in ("component", "draw") for case in everything)


def test_a_family_s_own_inputs_are_drawn_with(spec: PipelineSpec) -> None:
    draws = draws_of(spec)
    inputs = [draw.inputs for draw in draws.values()]
    if spec.denoiser.guidance == "embedded":
        # Those of flow matching are drawn with by their own schedulers.
        assert {draw.scheduler for draw in draws.values()} in ({"lcm"}, {None})
        return
    if spec.tokenizers:
        named = ("true_cfg_scale", "guidance_scale")
        scales = {next(given[name] for name in named if name in given) for given in inputs}
        assert 1.0 in scales and max(scales) > 3
    two = {"text_encoder", "text_encoder_2"} <= spec.components.keys()
    if two and spec.class_name != "HunyuanDiTPipeline":  # whose encoders read one prompt
        assert all(given["prompt"] != given["prompt_2"] for given in inputs)
    assert any(draw.forced for draw in draws.values())


#: Kind to the tasks that are drawn: those of its pipeline's class that its denoiser can do.
TASKS = {
    "sd1": {"text-to-image", "image-to-image", "inpainting"},
    "sdxl": {"text-to-image", "image-to-image", "inpainting"},
    "lcm": {"text-to-image", "image-to-image"},
    "refiner": {"image-to-image"},
    "inpaint": {"inpainting"},
    "edited": {"inpainting"},
    "pix2pix": {"instruct-pix2pix"},
    "depth": {"depth-to-image"},
    "upscale": {"upscale"},
    "variation": {"image-variation"},
    "unclip": {"unclip"},
    "depth-estimated": {"depth-to-image"},
    "latent-upscaler": {"latent-upscale"},
    "control": {"text-to-image", "image-to-image", "inpainting"},
    "adapter": {"text-to-image"},
}


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_is_drawn(kind: str, checkpoint: Callable[[str], Path]) -> None:
    spec = open_source(str(checkpoint(kind))).spec
    draws = list(draws_of(spec).values())
    assert {d.task if d.task is not None else spec.tasks[0] for d in draws} == TASKS[kind]
    assert draws[0].forced and draws[0].halves
    asked = {name for draw in draws for name in draw.inputs}
    takes = {name for task in tasks_of(spec).values() for name in task.inputs}
    told = {"image", "mask_image", "control_image", "depth_map", "noise_level", "strength"}
    told |= {"denoising_end", "denoising_start", "image_guidance_scale", "guess_mode"}
    assert takes & told <= asked | (
        {"mask_image", "denoising_start"} if kind == "refiner" else set()
    )


def test_every_guider_is_drawn_where_the_denoiser_has_worse_versions(
    checkpoint: Callable[[str], Path],
) -> None:
    model = RANDOM_MODELS["random-guided"]
    spec = open_source(str(checkpoint(model.kind)), model.transforms).spec
    drawn = {draw.inputs.get("guider") for draw in draws_of(spec).values()} - {None}
    assert drawn == host().guiders().keys() - {"embedded", "instruct-pix2pix"}
    asked = {probe.component for probe in probes_of(spec).values()}
    entries = {name for name, one in spec.components.items() if one.entry_of is not None}
    assert len(entries) == len(model.transforms) and entries <= asked
    plain = open_source(str(checkpoint(model.kind))).spec
    assert not any("guider" in draw.inputs for draw in draws_of(plain).values())


def test_a_steered_encoder_reads_learned_words_and_every_syntax(
    checkpoint: Callable[[str], Path],
) -> None:
    model = RANDOM_MODELS["random-steered"]
    spec = open_source(str(checkpoint(model.kind)), model.transforms).spec
    draws = draws_of(spec)
    assert {d.inputs.get("prompt_syntax") for d in draws.values()} == {None, "a1111", "compel"}
    assert any(draw.learned for draw in draws.values())
    assert any("clip_skip" in draw.inputs for draw in draws.values())
    encoder = spec.components["text_encoder"]
    ids = [call["input_ids"] for call in inputs_of(encoder, probes_of(spec)["text_encoder/texts"])]
    assert max(int(array.max()) for array in ids) == encoder.config["vocab_size"]


def test_of_a_masked_text_what_fills_it_up_is_hidden(checkpoint: Callable[[str], Path]) -> None:
    spec = open_source(str(checkpoint("chroma"))).spec
    encoder, seen = spec.components["text_encoder"], 0
    end = encoder.config["vocab_size"] - 1
    for inputs in inputs_of(encoder, probes_of(spec)["text_encoder/texts"]):
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            words = next(i for i, token in enumerate(ids) if token == end)
            assert mask[0] == 1 and not mask[words + 1 :].any()
            seen += int(mask[1 : words + 1].sum())
            hidden = words + 1 - int(mask[: words + 1].sum())
            assert words < 9 or 0 < hidden < words
    assert seen


def test_of_the_strict_checker_s_pictures_some_are_black(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint(RANDOM_MODELS["random-sd-checked"].kind)
    pipe = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
    with pytest.warns(UserWarning, match="objected to 1 of 2"):
        images = run_draw(pipe, draws_of(pipe.spec)["two-wide"])["images"]
    assert [bool(image.any()) for image in images] == [True, False]
