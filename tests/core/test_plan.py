"""What a pipeline is going to do, as data: descriptions, plans, the task of a call, branches."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfuse import (
    ClassifierFreeGuidance,
    DiffusionPipeline,
    Input,
    PipelineManifest,
    Program,
    Task,
    step,
)
from perfuse.contract.frozen import FrozenDict
from perfuse.errors import InputError, UnsupportedError
from perfuse.sources import Checkpoint
from perfuse.tasks.choosing import choose
from perfuse_conformance.checkpoints import edit_json

pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]
GIVEN = {"num_inference_steps": 4, "seed": 0, "output_type": "np"}


# ── Data ────────────────────────────────────────────────────────────────────────────────────────


def test_a_frozen_dict_cannot_change() -> None:
    frozen = FrozenDict({"sizes": [8, [16]], "inner": {"a": 1}})
    assert frozen == {"sizes": (8, (16,)), "inner": {"a": 1}}
    assert hash(frozen) == hash(FrozenDict(inner={"a": 1}, sizes=(8, (16,))))
    assert pickle.loads(pickle.dumps(frozen)) == copy.deepcopy(frozen) == frozen
    assert json.loads(json.dumps(frozen))["sizes"] == [8, [16]]
    assert frozen | {"more": 2} == {**frozen, "more": 2}
    for change in (
        lambda: frozen.update(a=1),
        lambda: frozen.pop("sizes"),
        lambda: frozen.__setitem__("a", 1),
        lambda: frozen.setdefault("a", 1),
    ):
        with pytest.raises(TypeError, match="A FrozenDict cannot change"):
            change()


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "lcm", "ddpm", "pixart-sigma", "qwen-edit"])
def test_a_plan_can_be_sent_to_another_process(checkpoint: Make, kind: str) -> None:
    plan = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu").plan
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert hash(again) == hash(plan)
    component = again.components[again.spec.denoiser.name]
    assert sum(parameter.numel() for parameter in component.build().parameters()) > 100


def test_the_refiner_of_sd_xl(copy_of: Make) -> None:
    """One encoder, and five ids: the config gives the sum of the pooled text and of the ids alone."""
    model = copy_of("sdxl")
    base = {t.name: t.shape for t in Checkpoint.open(model).spec.denoiser.signature.inputs}
    width, ids = base["text_embeds"][1], base["time_ids"][1]
    assert ids == 6
    config = json.loads((model / "unet" / "config.json").read_text())
    each = config["addition_time_embed_dim"]
    assert config["projection_class_embeddings_input_dim"] == width + 6 * each
    edit_json(
        model / "unet" / "config.json", projection_class_embeddings_input_dim=width + 5 * each
    )
    edit_json(
        model / "model_index.json",
        text_encoder=[None, None],
        tokenizer=[None, None],
        requires_aesthetics_score=True,
    )
    spec = Checkpoint.open(model).spec
    refiner = {t.name: t.shape for t in spec.denoiser.signature.inputs}
    assert (refiner["text_embeds"], refiner["time_ids"]) == (("batch", width), ("batch", 5))
    assert spec.options["requires_aesthetics_score"] is True


def test_the_refiner_s_own_numbers() -> None:
    """Stability's refiner: 2560 is 1280 of pooled text and five times 256; the base's 2816 six."""
    from perfuse.models import describe, fitted

    encoder = {"hidden_size": 1280, "projection_dim": 1280}
    second = describe("CLIPTextModelWithProjection", "text_encoder_2", "text_encoder_2", encoder)
    for total, ids in ((2560, 5), (2816, 6)):
        config = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": total,
        }
        unet = describe("UNet2DConditionModel", "unet", "unet", config)
        described = fitted({one.name: one for one in (*unet, *second)})["unet"].signature
        shapes = {tensor.name: tensor.shape for tensor in described.inputs}
        assert shapes["text_embeds"] == ("batch", 1280)
        assert shapes["time_ids"] == ("batch", ids)


# ── The task of a call ──────────────────────────────────────────────────────────────────────────


@step(outputs=("images",))
def _nothing(tools: Any) -> dict[str, Any]:
    return {"images": ()}


def _task(name: str, **inputs: Input) -> Task:
    return Task(name=name, inputs=inputs, steps=(_nothing,))


def test_a_call_picks_the_task_that_its_inputs_fit() -> None:
    from perfuse.contract.steps import REQUIRED

    words, needed = Input(help="What to draw."), Input(default=REQUIRED, help="The picture.")
    tasks = {
        "text": _task("text", prompt=words),
        "image": _task("image", prompt=words, image=needed),
        "inpaint": _task("inpaint", prompt=words, image=needed, mask_image=needed),
    }

    def chosen(given: dict[str, Any], asked: str | None = None) -> str:
        return choose(tasks, given, asked).name

    assert chosen({"prompt": "red"}) == "text"
    assert chosen({"prompt": "red", "image": None}) == "text"
    assert chosen({"prompt": "red", "image": 1}) == "image"
    assert chosen({"prompt": "red", "image": 1, "mask_image": 2}) == "inpaint"
    assert chosen({"prompt": "red", "image": 1}, "inpaint") == "inpaint"
    assert chosen({"colour": "red"}) == "text"  # which says what it does not take
    with pytest.raises(InputError, match="Task 'video' was asked for; this pipeline has text, im"):
        chosen({}, "video")
    with pytest.raises(InputError, match="inpaint needs mask_image: The picture"):
        list(tasks["inpaint"].run(None, {"image": 1}))


def test_a_pipeline_with_several_tasks(install: Any, copy_of: Make) -> None:
    code = """
from dataclasses import replace

from perfuse import Input, PipelineManifest, hookimpl, step
from perfuse.contract.steps import REQUIRED
from perfuse.tasks import UNCONDITIONAL

@hookimpl
def perfuse_pipelines():
    tasks = {"unconditional": "perfuse.tasks.unconditional:UNCONDITIONAL",
             "brighter": f"{__name__}:BRIGHTER"}
    return [PipelineManifest(class_name="TwoPipeline", tasks=tasks, needs=("unet",))]

@step(outputs=("decoded",))
def brighten(tools, decoded, by):
    return {"decoded": decoded + by}

MORE = {"by": Input(default=REQUIRED, help="How much to add.")}
BRIGHTER = replace(
    UNCONDITIONAL, name="brighter", inputs={**UNCONDITIONAL.inputs, **MORE}
).insert(brighten, after="decode")
"""
    install("two", code)
    model = copy_of("tiny")
    edit_json(model / "model_index.json", _class_name="TwoPipeline")
    pipe = DiffusionPipeline.from_pretrained(model, backend="torch:cpu")
    assert list(pipe.tasks) == ["unconditional", "brighter"]
    usual = pipe(**GIVEN).images
    brighter = pipe(**GIVEN, by=0.2).images
    assert brighter.mean() > usual.mean() + 0.05
    assert (pipe(**GIVEN, task="unconditional").images == usual).all()
    with pytest.raises(InputError, match="brighter needs by: How much to add"):
        pipe(**GIVEN, task="brighter")


# ── Branches ────────────────────────────────────────────────────────────────────────────────────


class Counted(Program):
    """A program that notes the batch of each call, and may take so many items at once."""

    def __init__(self, program: Program, max_batch: int | None = None) -> None:
        self.program, self.max_batch = program, max_batch
        self.signature, self.torch_device = program.signature, program.torch_device
        self.batches: list[int] = []

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        self.batches.append(len(inputs["sample"]))
        return self.program(**inputs)

    def report(self) -> Any:
        return self.program.report()


def _counted(checkpoint: Make, max_batch: int | None = None) -> tuple[DiffusionPipeline, Counted]:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    counted = Counted(pipe.program("unet"), max_batch)
    pipe._programs.prepare("unet", id(counted), lambda: counted)
    return pipe, counted


def test_a_branch_that_is_dropped_costs_nothing(checkpoint: Make) -> None:
    pipe, counted = _counted(checkpoint)
    between = ClassifierFreeGuidance(guidance_scale=3.0, start=0.25, stop=0.75)
    images = pipe("a red circle", guider=between, **GIVEN).images
    assert counted.batches == [1, 2, 2, 1]
    counted.batches.clear()
    always = pipe("a red circle", guidance_scale=3.0, **GIVEN).images
    assert counted.batches == [2, 2, 2, 2]
    assert np.abs(images - always).max() > 1e-4
    counted.batches.clear()
    pipe("a red circle", guidance_scale=1.0, **GIVEN)
    assert counted.batches == [1, 1, 1, 1]


def test_branches_are_asked_one_by_one_where_a_batch_does_not_fit(checkpoint: Make) -> None:
    pipe, counted = _counted(checkpoint)
    together = pipe("a red circle", guidance_scale=3.0, **GIVEN).images
    assert counted.batches == [2] * 4
    apart, narrow = _counted(checkpoint, max_batch=1)
    assert np.abs(apart("a red circle", guidance_scale=3.0, **GIVEN).images - together).max() < 1e-5
    assert narrow.batches == [1] * 8


# ── How weights are stored ──────────────────────────────────────────────────────────────────────


def test_weights_stored_in_fewer_bits(checkpoint: Make) -> None:
    def drawn(*transforms: str, **settings: Any) -> np.ndarray:
        pipe = DiffusionPipeline.from_pretrained(
            checkpoint("words"), backend="torch:cpu", transforms=transforms, **settings
        )
        images = np.asarray(pipe("a red circle", **GIVEN).images)
        report = pipe.program("unet").report()
        assert report.precision == "float32"
        assert report.details["storage"] == (transforms[0][15:22] if transforms else "float32")
        return images

    plain = drawn()
    difference = np.abs(drawn("storage:scheme=float16") - plain).max()
    assert 0 < difference < 0.02
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("words"), transforms=["storage:scheme=int3,component=unet"]
    )
    with pytest.raises(UnsupportedError, match="its weights as int3 on torch.*float16, bfloat16"):
        pipe("a red circle", **GIVEN)
    with pytest.raises(InputError, match="component=unett was given, and the pipeline has"):
        DiffusionPipeline.from_pretrained(
            checkpoint("words"), transforms=["storage:component=unett"]
        )


def test_manifests_of_pipelines_say_what_is_optional() -> None:
    from perfuse.plugins import host

    manifests = host().pipelines()
    assert "feature_extractor" in manifests["StableDiffusionXLPipeline"].optional
    assert all(isinstance(one, PipelineManifest) for one in manifests.values())
