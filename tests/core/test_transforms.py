"""Transforms and pipeline classes that real distributions bring."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.distributions import Install

from perfuse import ArtifactStore, DiffusionPipeline
from perfuse.errors import CheckpointError, InputError, PluginError

pytest.importorskip("torch")

Make = Callable[[str], Path]

#: ``halve`` halves the denoiser's prediction, ``mirror`` turns the picture over, ``both`` does both.
PLUGIN = """
from perfuse import TransformManifest, hookimpl

@hookimpl
def perfuse_transforms():
    return [
        TransformManifest(name=name, impl=f"plugin_acme:{name.title()}")
        for name in ("halve", "mirror", "both", "fails", "wrong")
    ] + [TransformManifest(name="absent", impl="x:X", requires=("no_such_module",),
                           install="pip install acme[fast]")]

from perfuse import Step, Transform

def halved(module):
    import torch

    class Half(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module
        def forward(self, *inputs):
            return tuple(0.5 * output for output in self.module(*inputs))

    return Half(module).eval()

class Halve(Transform):
    def apply(self, plan, options):
        return plan.with_component(plan.components["unet"].rebuilt(halved))

def turned(tools, samples):
    import numpy
    return {"samples": (numpy.asarray(samples[0])[:, :, ::-1].copy(),)}

TURN = Step(name="turn", outputs=("samples",), run=turned)

class Mirror(Transform):
    def apply(self, plan, options):
        return plan.with_tasks(lambda task: task.insert(TURN, after="denoise"))

class Both(Transform):
    def apply(self, plan, options):
        return Mirror().apply(Halve().apply(plan, None), None)

class Fails(Transform):
    def apply(self, plan, options):
        raise RuntimeError("no kernels")

class Wrong(Transform):
    def apply(self, plan, options):
        return None
"""


def draw(model: Path, **settings: object) -> np.ndarray:
    pipe = DiffusionPipeline.from_pretrained(model, backend="torch:cpu", **settings)
    images = pipe(num_inference_steps=2, seed=0, output_type="np").images
    return np.asarray(images)


def test_what_a_transform_changes(install: Install, checkpoint: Make) -> None:
    install("acme", PLUGIN)
    plain = draw(checkpoint("tiny"))
    halved = draw(checkpoint("tiny"), transforms=["halve"])
    mirrored = draw(checkpoint("tiny"), transforms="mirror")
    assert np.abs(halved - plain).max() > 0.01
    assert (mirrored == plain[:, ::-1]).all()
    assert (draw(checkpoint("tiny"), transforms=["both"]) == halved[:, ::-1]).all()
    both = draw(checkpoint("tiny"), transforms=["mirror", "halve"])
    assert (both == halved[:, ::-1]).all()
    assert (draw(checkpoint("tiny")) == plain).all()


def test_a_transform_leaves_the_user_s_module_as_it_is(install: Install, checkpoint: Make) -> None:
    install("acme", PLUGIN)
    plain = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("tiny"), backend="torch:cpu", transforms=["halve"], unet=plain.unet
    )
    given = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    halved = pipe(**given).images
    assert (halved == draw(checkpoint("tiny"), transforms=["halve"])).all()
    assert (plain(**given).images == draw(checkpoint("tiny"))).all()


@pytest.mark.export
@pytest.mark.exhaustive
def test_the_cache_keeps_both(install: Install, checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    install("acme", PLUGIN)
    store = ArtifactStore(tmp_path / "store")
    drawn = []
    for transforms in ([], ["halve"], ["mirror"], ["halve"], []):
        pipe = DiffusionPipeline.from_pretrained(
            checkpoint("tiny"), backend="onnxruntime", store=store, transforms=transforms
        )
        drawn.append(pipe(num_inference_steps=2, seed=0, output_type="np").images)
    assert len(store.entries()) == 2
    plain, halved, mirrored, again, last = drawn
    assert np.abs(halved - plain).max() > 0.01
    assert (mirrored == plain[:, ::-1]).all()
    assert (again == halved).all()
    assert (last == plain).all()


@pytest.mark.export
def test_an_export_keeps_what_was_rewritten(
    install: Install, checkpoint: Make, tmp_path: Path
) -> None:
    """The components are as they were written; the loop is rewritten again where that is asked."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    install("acme", PLUGIN)
    folders = {}
    for name in ("plain", "both"):
        pipe = DiffusionPipeline.from_pretrained(
            checkpoint("tiny"), transforms=[name] if name == "both" else []
        )
        folders[name] = pipe.export(tmp_path / name, to="onnx")

    def run(folder: Path, *transforms: str) -> np.ndarray:
        pipe = DiffusionPipeline.from_pretrained(folder, transforms=transforms)
        return np.asarray(pipe(num_inference_steps=2, seed=0, output_type="np").images)

    halved = run(folders["both"])
    assert np.abs(halved - run(folders["plain"])).max() > 0.01
    assert (run(folders["both"], "both") == halved[:, ::-1]).all()
    assert (run(folders["plain"], "mirror") == run(folders["plain"])[:, ::-1]).all()
    with pytest.raises(InputError, match="'halve' was asked for; it rewrites components.*export"):
        run(folders["plain"], "halve")


def test_a_transform_that_cannot_be_put_on(install: Install, checkpoint: Make) -> None:
    install("acme", PLUGIN)
    for name, error, words in (
        (
            "halv",
            InputError,
            "'halv' was asked for; installed: absent, both, .*fails, .*halve, .*mirror",
        ),
        ("absent", InputError, r"no_such_module is not installed. Run: pip install acme\[fast\]"),
        ("fails", PluginError, "'fails' raised RuntimeError: no kernels"),
        ("wrong", PluginError, "'wrong' returned None, not a Plan"),
    ):
        with pytest.raises(error, match=words):
            draw(checkpoint("tiny"), transforms=[name])


def test_on_the_command_line(
    install: Install, checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner
    from PIL import Image

    from perfuse.cli import main

    monkeypatch.chdir(tmp_path)
    install("acme", PLUGIN)
    given = ["--model", str(checkpoint("tiny")), "--steps", "2", "--seed", "0"]
    for name in ("plain", "mirror"):
        options = ["--transform", name] if name == "mirror" else []
        result = CliRunner().invoke(main, ["generate", *given, *options, "--output", f"{name}.png"])
        assert result.exit_code == 0, result.stderr
    plain, mirrored = (np.asarray(Image.open(f"{name}.png")) for name in ("plain", "mirror"))
    assert (mirrored == plain[::-1]).all()
    result = CliRunner().invoke(main, ["generate", *given, "--transform", "nothing"])
    assert result.exit_code == 2
    assert "'nothing' was asked for; installed: absent" in result.stderr


# ── Pipeline classes ────────────────────────────────────────────────────────────────────────────

PIPELINE = """
from perfuse import PipelineManifest, hookimpl

@hookimpl
def perfuse_pipelines():
    return [
        PipelineManifest(
            class_name="TheirPipeline",
            tasks={{"unconditional": "plugin_theirs:TASK"}},
            needs={needs},
            defaults={{"num_inference_steps": 2}},
        )
    ]

def __getattr__(name):
    if name != "TASK":
        raise AttributeError(name)
    from perfuse import Step
    from perfuse.tasks.unconditional import UNCONDITIONAL

    def turned(tools, samples):
        import numpy
        return {{"samples": (numpy.asarray(samples[0])[:, :, ::-1].copy(),)}}
    turn = Step(name="turn", outputs=("samples",), run=turned)
    return UNCONDITIONAL.insert(turn, after="denoise")
"""


def renamed(model: Path, class_name: str) -> Path:
    path = model / "model_index.json"
    path.write_text(path.read_text().replace("DDPMPipeline", class_name))
    return model


def test_a_pipeline_class_with_steps_of_its_own(
    install: Install, checkpoint: Make, copy_of: Make
) -> None:
    install("theirs", PIPELINE.format(needs=("unet",)))
    model = renamed(copy_of("tiny"), "TheirPipeline")
    pipe = DiffusionPipeline.from_pretrained(model, backend="torch:cpu")
    assert pipe.spec.tasks == ("unconditional",)
    assert pipe.task.inputs["num_inference_steps"].default == 2
    drawn = pipe(seed=0, output_type="np").images
    assert (drawn == draw(checkpoint("tiny"))[:, ::-1]).all()


def test_a_pipeline_class_that_cannot_be_run(install: Install, copy_of: Make) -> None:
    model = renamed(copy_of("tiny"), "TheirPipeline")
    with pytest.raises(CheckpointError, match="'TheirPipeline', which perfuse does not know"):
        draw(model, bridged=False)
    site = install("theirs", PIPELINE.format(needs=("unet", "upscaler")))
    with pytest.raises(CheckpointError, match="has no upscaler, which a TheirPipeline needs"):
        draw(model)
    code = PIPELINE.format(needs=("unet",)).replace("plugin_theirs:TASK", "plugin_theirs:TSAK")
    (site / "plugin_theirs.py").write_text(code)
    from perfuse.plugins import host

    host.cache_clear()
    with pytest.raises(PluginError, match="task of TheirPipeline is plugin_theirs:TSAK"):
        draw(model)
