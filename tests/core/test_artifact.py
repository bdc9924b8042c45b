"""Exported folders: opened, and refused where something else was asked for."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perfuse import Artifact, Checkpoint, DiffusionPipeline
from perfuse.errors import ArtifactError, InputError
from perfuse.sources.manifest import MANIFEST, ExportedComponent, Manifest, sha256

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]


@pytest.fixture
def folder(checkpoint: Make, tmp_path: Path) -> Path:
    """An artifact of Stable Diffusion as far as its manifest goes, in float16 for one size."""
    folder = tmp_path / "exported"
    source = Checkpoint.open(checkpoint("sd1"))
    static = {"unet": {"latent_height": 8, "latent_width": 8}}
    components = {}
    for name, spec in source.spec.components.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "model.bin").write_bytes(name.encode())
        fixed = static.get(name, {})
        components[name] = ExportedComponent(
            format="numbers",
            file=f"{name}/model.bin",
            precision="float16",
            signature=spec.signature.resolve(fixed),
            static=fixed,
        )
    for name, path in source.files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in folder.rglob("*")
        if path.is_file()
    }
    Manifest(
        spec=source.spec, components=components, source={"model": "x"}, files=files, tools={}
    ).write(folder)
    return folder


def test_open(folder: Path, checkpoint: Make) -> None:
    artifact = Artifact.open(folder)
    assert artifact.model == str(folder)
    assert artifact.format == "numbers"
    assert artifact.spec == Checkpoint.open(checkpoint("sd1")).spec
    artifact.manifest.verify(folder)


def test_component(folder: Path) -> None:
    component = Artifact.open(folder).component("unet")
    assert component.build is None
    assert component.precision == "float16"
    assert component.files == {"numbers": folder / "unet" / "model.bin"}
    assert component.static == {"latent_height": 8, "latent_width": 8}
    assert component.signature.inputs[0].shape == ("batch", 4, 8, 8)


def test_what_it_was_not_made_for(folder: Path) -> None:
    artifact = Artifact.open(folder)
    with pytest.raises(InputError, match="unet.*float32.*float16.*--precision float32"):
        artifact.component("unet", precision="float32")
    with pytest.raises(InputError, match=r"'latent_height': 16.*'latent_height': 8"):
        artifact.component("unet", static={"latent_height": 16, "latent_width": 16})
    with pytest.raises(InputError, match="any size"):
        artifact.component("vae_decoder", static={"batch": 1})
    with pytest.raises(ArtifactError, match="controlnet.*text_encoder, unet"):
        artifact.component("controlnet")
    assert artifact.component("unet", precision="float16").precision == "float16"
    same = artifact.component("unet", static={"latent_width": 8, "latent_height": 8})
    assert same.static == {"latent_height": 8, "latent_width": 8}


def test_tokenizer(folder: Path, checkpoint: Make) -> None:
    ours = Artifact.open(folder).tokenizer("tokenizer")("a red circle")
    expected = Checkpoint.open(checkpoint("sd1")).tokenizer()("a red circle")
    assert (ours.input_ids == expected.input_ids).all()
    with pytest.raises(InputError, match="tokenizer_2.*tokenizer"):
        Artifact.open(folder).tokenizer("tokenizer_2")


def test_tokenizer_folder_outside(folder: Path) -> None:
    path = folder / MANIFEST
    data = json.loads(path.read_text("utf-8"))
    data["pipeline"]["tokenizers"]["tokenizer"] = "../elsewhere"
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(ArtifactError, match="outside the folder"):
        Artifact.open(folder).tokenizer("tokenizer")


def test_no_backend_for_its_format(folder: Path) -> None:
    from perfuse.errors import BackendError

    with pytest.raises(BackendError, match="numbers.*perfuse backends"):
        DiffusionPipeline.from_pretrained(folder)


def test_another_engine_s_backend_cannot_run_it(exported: Export) -> None:
    from perfuse.errors import BackendError

    folder = exported("tiny", "onnx")
    for backend in ("torch:cpu", "openvino", "unet=torch"):
        with pytest.raises(BackendError, match="holds onnx.*Use --backend onnxruntime"):
            DiffusionPipeline.from_pretrained(folder, backend=backend)


def test_a_static_export_says_its_size(checkpoint: Make, tmp_path: Path) -> None:
    """A wrong size is an error that says which size it was made for."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    source = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    folder = source.export(tmp_path / "static", to="onnx", height=8, width=8, batch=2)
    manifest = Artifact.open(folder).manifest
    assert manifest.components["unet"].static == {"batch": 2, "height": 8, "width": 8}
    pipe = DiffusionPipeline.from_pretrained(folder)
    given = {"num_inference_steps": 2, "seed": [1, 2, 3], "output_type": "np"}
    drawn = pipe(batch_size=3, **given).images  # in parts of two
    assert np.abs(drawn - source(batch_size=3, **given).images).max() < 1e-3
    with pytest.raises(InputError, match="8") as caught:
        pipe(height=16, width=16, num_inference_steps=1)
    assert "16" in str(caught.value)
    assert "xport" in str(caught.value)
