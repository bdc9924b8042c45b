"""Each kind of thing that can be added is one file: a plugin, and no line of perfuse changed.

The six files in ``plugins`` are installed as a stranger's distributions are. What each brings draws on
three engines, and components that it brings or changes pass conformance on each of them.
"""

import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.distributions import Install

from perfuse import ClassifierFreeGuidance, DiffusionPipeline
from perfuse.errors import InputError
from perfuse.sources import open_model
from perfuse_conformance.checkpoints import edit_json, vae_config, write_json

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.export

HERE = Path(__file__).parent / "plugins"
TARGETS = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")
Make = Callable[[str], Path]


@pytest.fixture
def plugin(install: Install, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install one of the six, for this process and those that conformance starts."""

    def one(name: str) -> None:
        site = install(name, (HERE / f"{name}.py").read_text("utf-8"))
        monkeypatch.setenv("PYTHONPATH", str(site))

    return one


def save(folder: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Weights drawn at random, in the layout of a checkpoint's component."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(shape, generator=generator) / max(shape[-1], 1) ** 0.5
        for name, shape in tensors.items()
    }
    save_file(drawn, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def packed(folder: Path) -> Path:
    """A checkpoint of the small transformer with an autoencoder as Stable Diffusion's."""
    from perfuse.models import AutoencoderKL
    from perfuse_conformance.checkpoints import randomise

    config = {"_class_name": "PackedTransformer", "channels": 4, "head_dim": 16, "size": 8}
    write_json(folder / "transformer" / "config.json", {**config, "classes": 3})
    shapes = {"enter": (16, 16), "time": (16, 2), "qkv": (48, 16), "leave": (16, 16)}
    tensors = {f"{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    save(folder / "transformer", {**tensors, "label.weight": (3, 16)})
    randomise(AutoencoderKL(**vae_config())).save_pretrained(folder / "vae")
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    )
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "PackedPipeline",
            "transformer": ["theirs", "PackedTransformer"],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        },
    )
    return folder


def widened(model: Path) -> Path:
    """A Stable Diffusion whose latents have 16 channels, with the other decoder."""
    from perfuse.models import UNet2DConditionModel
    from perfuse_conformance.checkpoints import randomise

    config = json.loads((model / "unet" / "config.json").read_text())
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    unet = UNet2DConditionModel(**{**fields, "in_channels": 16, "out_channels": 16})
    randomise(unet).save_pretrained(model / "unet")
    for file in (model / "vae").iterdir():
        file.unlink()
    write_json(
        model / "vae" / "config.json",
        {"_class_name": "WideDecoder", "scaling_factor": 0.3611, "shift_factor": 0.1159},
    )
    shapes = {"enter.weight": (8, 16, 3, 3), "enter.bias": (8,)}
    save(model / "vae", {**shapes, "leave.weight": (12, 8, 3, 3), "leave.bias": (12,)})
    edit_json(model / "model_index.json", vae=["theirs", "WideDecoder"])
    return model


def drawn(model: Any, given: dict[str, Any], **opening: Any) -> np.ndarray:
    """What all three engines draw; they agree."""
    images = []
    for target in TARGETS:
        pipe = DiffusionPipeline.from_pretrained(model, backend=target, **opening)
        images.append(np.asarray(pipe(**given, output_type="np").images))
        pipe.close()
    assert np.isfinite(images[0]).all()
    assert images[0].std() > 0.01
    for image in images[1:]:
        assert np.abs(image - images[0]).max() < 2e-3
    return images[0]


def conforms(model: str, **settings: Any) -> None:
    """Every component is what the reference computes, on every engine.

    Asked are the cases of L1 with one program for all sizes; a program for each size, which takes an
    export each, is asked of the denoiser with a task alone.
    """
    from perfuse_conformance.runner.session import open_session

    for target in TARGETS:
        session = open_session(target, model=model, level="L1", precisions=("float32",), **settings)
        try:
            cases = [case for case in session.cases() if case.id.startswith("component/")]
            results = [session.judge(case) for case in cases if "/symbolic/" in case.id]
        finally:
            session.close()
        assert {result.component for result in results} == set(session.spec.components)
        wrong = [(one.id, one.status, one.reason) for one in results if one.status.failed]
        assert not wrong
        assert all(one.status.executed for one in results)


GIVEN = {"prompt": "a red circle", "num_inference_steps": 4, "seed": 0}


@pytest.mark.exhaustive
def test_a_scheduler(plugin: Any, copy_of: Make) -> None:
    plugin("quadratic")
    model = copy_of("words")
    usual = drawn(model, GIVEN)
    edit_json(model / "scheduler" / "scheduler_config.json", _class_name="QuadraticScheduler")
    edit_json(model / "model_index.json", scheduler=["theirs", "QuadraticScheduler"])
    assert np.abs(drawn(model, GIVEN) - usual).max() > 1e-3


@pytest.mark.exhaustive
def test_a_denoiser_with_a_task(plugin: Any, tmp_path: Path) -> None:
    plugin("packed")
    model = packed(tmp_path / "packed")
    given = {"num_inference_steps": 4, "seed": 0, "height": 16, "width": 24}
    first = drawn(model, given)
    assert first.shape == (1, 16, 24, 3)
    assert np.abs(drawn(model, {**given, "label": 2}) - first).max() > 1e-3
    assert np.abs(drawn(model, {**given, "guidance_scale": 7.0}) - first).max() > 1e-4
    pipe = DiffusionPipeline.from_pretrained(model)
    with pytest.raises(InputError, match="height 18 .* multiples of 4, for example 16 or 20"):
        pipe(height=18)
    with pytest.raises(InputError, match="label 3 was asked for"):
        pipe(label=3)
    folder = pipe.export(tmp_path / "exported", to="onnx")
    again = DiffusionPipeline.from_pretrained(folder)
    assert np.abs(again(**given, output_type="np").images - first).max() < 2e-3
    assert again.spec.latents == pipe.spec.latents
    conforms(str(model))


@pytest.mark.exhaustive
def test_a_denoiser_is_granted_its_level(plugin: Any, tmp_path: Path) -> None:
    from perfuse_conformance.runner.session import run_conformance

    plugin("packed")
    run, _ = run_conformance(
        "onnxruntime:cpu",
        model=str(packed(tmp_path / "packed")),
        level="L1",
        precisions=("float32",),
    )
    assert not [one.id for one in run.results if one.status.failed]
    assert (run.claim.level, "dyn" in run.claim.profiles) == ("L1", True)


@pytest.mark.exhaustive
def test_a_latent_decoder(plugin: Any, copy_of: Make) -> None:
    plugin("wide")
    model = widened(copy_of("words"))
    assert drawn(model, GIVEN).shape == (1, 16, 16, 3)
    spec = open_model(model).spec
    assert spec.latents.shape(2, 16, 24) == (2, 16, 8, 12)
    latents = np.random.default_rng(0).normal(size=(1, 16, 2, 2)).astype(np.float32)
    assert np.allclose(spec.latents.encode(spec.latents.decode(latents)), latents, atol=1e-6)
    conforms(str(model))


@pytest.mark.exhaustive
def test_a_guider(plugin: Any, checkpoint: Make) -> None:
    plugin("three")
    from plugin_three import Three

    model = checkpoint("words")
    negative = {**GIVEN, "negative_prompt": "a green square"}
    three = drawn(model, {**negative, "guider": Three(away=1.25)})
    assert (drawn(model, {**negative, "guider": "three:away=1.25"}) == three).all()
    with pytest.raises(InputError, match="the option far; it has guidance_scale, away"):
        drawn(model, {**negative, "guider": "three:far=1"})
    with pytest.raises(
        InputError, match="'four' was asked for; there are .*classifier-free, .*three"
    ):
        drawn(model, {**negative, "guider": "four"})
    # Without words as the negative prompt, it is what the usual guidance of that scale draws.
    usual = drawn(model, {**GIVEN, "guider": ClassifierFreeGuidance(guidance_scale=4.0)})
    alone = drawn(model, {**GIVEN, "guider": Three(away=0.0)})
    assert np.abs(alone - usual).max() < 1e-4
    assert np.abs(three - usual).max() > 1e-3


@pytest.mark.exhaustive
def test_a_transform(plugin: Any, checkpoint: Make, tmp_path: Path) -> None:
    plugin("skipping")
    model = checkpoint("words")
    usual = drawn(model, GIVEN)
    name = "skipping:every=2,soft=0.25"
    skipped = drawn(model, GIVEN, transforms=[name])
    assert np.abs(skipped - usual).max() > 1e-3
    pipe = DiffusionPipeline.from_pretrained(model, transforms=[name])
    calls: list[int] = []
    unet = pipe.program("unet")
    counted: Any = type(
        "Counted",
        (),
        {
            "signature": unet.signature,
            "torch_device": unet.torch_device,
            "max_batch": None,
            "__call__": lambda self, **inputs: (calls.append(1), unet(**inputs))[1],
            "close": lambda self: unet.close(),
            "report": lambda self: unet.report(),
        },
    )()
    pipe._programs.prepare("unet", id(counted), lambda: counted)
    assert np.abs(pipe(**GIVEN, output_type="np").images - skipped).max() < 2e-3
    assert len(calls) == 2  # of four steps
    folder = pipe.export(tmp_path / "exported", to="onnx")
    again = DiffusionPipeline.from_pretrained(folder, transforms=[name])
    assert np.abs(again(**GIVEN, output_type="np").images - skipped).max() < 2e-3
    sent = pickle.loads(pickle.dumps(pipe.plan))
    assert sent == pipe.plan
    with pytest.raises(InputError, match="every=half; every is of type int"):
        DiffusionPipeline.from_pretrained(model, transforms=["skipping:every=half"])
    with pytest.raises(InputError, match="the option often; it has every, soft"):
        DiffusionPipeline.from_pretrained(model, transforms=["skipping:often=2"])
    with pytest.raises(InputError, match="every=0 was given"):
        DiffusionPipeline.from_pretrained(model, transforms=["skipping:every=0"])
    conforms(str(model), transforms=[name])


@pytest.mark.exhaustive
def test_a_source(plugin: Any, tmp_path: Path) -> None:
    plugin("memory")
    given = {"num_inference_steps": 3, "seed": 0}
    named = drawn("memory:7", given)
    source = open_model("memory:7")
    assert (drawn(source, given) == named).all()
    assert pickle.loads(pickle.dumps(source)) == source
    assert np.abs(drawn("memory:8", given) - named).max() > 1e-3
    with pytest.raises(InputError, match="write memory:SEED"):
        open_model("memory:seven")
    folder = DiffusionPipeline.from_pretrained(source).export(tmp_path / "exported", to="onnx")
    exported = DiffusionPipeline.from_pretrained(folder)(**given, output_type="np").images
    assert np.abs(exported - named).max() < 2e-3
    conforms("memory:7")


@pytest.mark.parametrize("file", sorted(HERE.glob("*.py")), ids=lambda file: file.stem)
def test_one_file_needs_torch_only_where_it_builds(file: Path) -> None:
    """What is listed and described needs none: no file imports it at its top."""
    import ast

    tree = ast.parse(file.read_text("utf-8"))
    imported = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or node.names[0].name for node in imported]
    assert not [name for name in names if name.split(".")[0] == "torch"]
    assert inspect.cleandoc(ast.get_docstring(tree) or "")
