"""Reading checkpoints: what is found, what is refused and in which words, folders and the Hub."""

import copy
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from perfuse.backend import Recipe
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse.plugins import host
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.manifest import is_artifact
from perfuse.sources.plain import from_plain, to_plain
from perfuse.spec import PipelineSpec, PixelLatents
from perfuse_conformance.checkpoints import (
    KINDS,
    edit_json,
    make_checkpoint,
    write_checker,
    write_json,
)


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: make_checkpoint(folder / kind, kind) for kind in KINDS}


@pytest.fixture
def sd(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["sd1"], tmp_path / "sd"))


@pytest.fixture
def ddpm(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["ddpm"], tmp_path / "ddpm"))


class TestSpec:
    def test_stable_diffusion(self, originals: dict[str, Path]) -> None:
        checkpoint = Checkpoint.open(originals["sd1"])
        spec = checkpoint.spec
        assert spec.class_name == "StableDiffusionPipeline"
        assert spec.tasks == ("text-to-image", "image-to-image", "inpainting")
        assert set(spec.components) == {"text_encoder", "unet", "vae_encoder", "vae_decoder"}
        assert spec.latents is not None
        assert (spec.latents.channels, spec.latents.downscale) == (4, 2)
        assert (spec.latents.scaling_factor, spec.latents.shift_factor) == (0.18215, 0.0)
        assert spec.scheduler["_class_name"] == "DDIMScheduler"
        assert spec.tokenizers == {"tokenizer": "tokenizer"}
        assert spec.options == {"requires_safety_checker": False}
        assert (spec.default_size, spec.size_multiple) == ((16, 16), 2)
        assert checkpoint.ignored == ()
        assert (checkpoint.revision, checkpoint.variant) == (None, None)
        assert checkpoint.path == originals["sd1"]

    def test_v_prediction(self, originals: dict[str, Path]) -> None:
        spec = Checkpoint.open(originals["sd2"]).spec
        assert spec.scheduler["prediction_type"] == "v_prediction"
        assert spec.denoiser.config["attention_head_dim"] == (2, 4)

    def test_xl(self, originals: dict[str, Path]) -> None:
        spec = Checkpoint.open(originals["sdxl"]).spec
        assert spec.components["text_encoder_2"].class_name == "CLIPTextModelWithProjection"
        assert "text_embeds" in spec.components["text_encoder_2"].signature.output_names
        assert set(spec.tokenizers) == {"tokenizer", "tokenizer_2"}
        assert spec.options == {"force_zeros_for_empty_prompt": True}
        assert {"text_embeds", "time_ids"} <= set(spec.denoiser.signature.input_names)

    def test_ddpm(self, originals: dict[str, Path]) -> None:
        spec = Checkpoint.open(originals["ddpm"]).spec
        assert spec.tasks == ("unconditional",)
        assert list(spec.components) == ["unet"]
        assert spec.latents == PixelLatents(channels=3)
        assert spec.scheduler["clip_sample"] is True
        assert spec.default_size == (16, 16)

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_plain_data(self, originals: dict[str, Path], kind: str) -> None:
        spec = Checkpoint.open(originals[kind]).spec
        assert from_plain(PipelineSpec, json.loads(json.dumps(to_plain(spec)))) == spec
        assert pickle.loads(pickle.dumps(spec)) == spec
        assert copy.deepcopy(spec) == spec
        assert len({spec, Checkpoint.open(originals[kind]).spec}) == 1

    def test_without_torch(self, originals: dict[str, Path]) -> None:
        code = (
            "import sys; from perfuse.sources.checkpoint import Checkpoint\n"
            f"c = Checkpoint.open({str(originals['sdxl'])!r})\n"
            "c.component('unet'); c.tokenizer('tokenizer_2'); c.files()\n"
            "loaded = {'torch', 'transformers', 'diffusers', 'huggingface_hub', 'safetensors'}\n"
            "assert not loaded & set(sys.modules), loaded & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_unused_parts_are_noted(self, sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = "StableDiffusionPipeline"
        known = {**host().pipelines()}
        known[name] = dataclasses.replace(known[name], unused=("scorer",))
        monkeypatch.setattr(type(host()), "pipelines", lambda self: known)
        edit_json(sd / "model_index.json", scorer=["acme", "Scorer"])
        assert Checkpoint.open(sd).ignored == ("scorer",)

    def test_latent_statistics(self, sd: Path) -> None:
        mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
        config = {"latents_mean": mean, "latents_std": std, "shift_factor": 0.5}
        edit_json(sd / "vae" / "config.json", **config)
        latents = Checkpoint.open(sd).spec.latents
        assert latents is not None
        assert (latents.mean, latents.std) == (tuple(mean), tuple(std))
        assert latents.shift_factor == 0.5

    def test_class_may_be_a_list(self, ddpm: Path) -> None:
        edit_json(ddpm / "model_index.json", _class_name=["pipeline", "DDPMPipeline"])
        assert Checkpoint.open(ddpm).spec.class_name == "DDPMPipeline"

    def test_early_layout_at_the_root(self, ddpm: Path) -> None:
        """google/ddpm-cifar10-32 and its siblings have no folders."""
        for file in [*(ddpm / "unet").iterdir(), *(ddpm / "scheduler").iterdir()]:
            file.rename(ddpm / file.name)
        (ddpm / "unet").rmdir()
        (ddpm / "scheduler").rmdir()
        checkpoint = Checkpoint.open(ddpm)
        assert checkpoint.component("unet").build is not None
        assert checkpoint.weights(checkpoint.spec.denoiser.folder).parameters > 0
        assert list(checkpoint.files()) == ["scheduler_config.json"]

    def test_projection_is_decided_by_the_index(self, originals: dict[str, Path]) -> None:
        path = originals["sdxl"] / "text_encoder_2" / "config.json"
        text = path.read_text()
        try:
            edit_json(path, architectures=...)
            spec = Checkpoint.open(originals["sdxl"]).spec
        finally:
            path.write_text(text)
        assert spec.components["text_encoder_2"].class_name == "CLIPTextModelWithProjection"

    @pytest.mark.parametrize(
        ("class_name", "given", "expected"),
        [
            ("StableDiffusionPipeline", {}, {"steps_offset": 1, "clip_sample": False}),
            ("StableDiffusionPipeline", {"steps_offset": 0}, {"steps_offset": 1}),
            ("StableDiffusionImg2ImgPipeline", {"clip_sample": True}, {"clip_sample": False}),
            ("StableDiffusionInpaintPipeline", {"clip_sample": True}, {"clip_sample": True}),
            ("LatentConsistencyModelPipeline", {"steps_offset": 0}, {"steps_offset": 0}),
        ],
    )
    def test_outdated_schedulers(
        self, sd: Path, class_name: str, given: dict[str, Any], expected: dict[str, Any]
    ) -> None:
        edit_json(sd / "model_index.json", _class_name=class_name)
        fields = {"steps_offset": ..., "clip_sample": ..., **given}
        edit_json(sd / "scheduler" / "scheduler_config.json", **fields)
        scheduler = Checkpoint.open(sd).spec.scheduler
        assert {name: scheduler[name] for name in expected} == expected

    def test_ddpm_keeps_its_scheduler(self, ddpm: Path) -> None:
        path = ddpm / "scheduler" / "scheduler_config.json"
        edit_json(path, clip_sample=True, steps_offset=0)
        assert Checkpoint.open(ddpm).spec.scheduler == json.loads(path.read_text())


class TestComponents:
    @pytest.mark.parametrize("kind", KINDS)
    def test_build(self, originals: dict[str, Path], kind: str) -> None:
        checkpoint = Checkpoint.open(originals[kind])
        fingerprints = set()
        for name in checkpoint.spec.components:
            component = checkpoint.component(name)
            assert component.build is not None
            module = component.build()
            assert not any(tensor.is_meta for tensor in module.state_dict().values())
            fingerprints.add(component.fingerprint)
        assert len(fingerprints) == len(checkpoint.spec.components)

    def test_precision_and_static(self, originals: dict[str, Path]) -> None:
        checkpoint = Checkpoint.open(originals["sd1"])
        static = {"batch": 2, "latent_height": 8}
        component = checkpoint.component("unet", precision="bfloat16", static=static)
        assert component.signature.inputs[0].shape == (2, 4, 8, "latent_width")
        assert component.precision == "bfloat16"
        assert component.build is not None
        # As stored: whoever prepares it casts, and nothing is copied before that.
        assert {str(p.dtype) for p in component.build().parameters()} == {"torch.float32"}

    def test_cast_while_reading(self, originals: dict[str, Path]) -> None:
        """Tensor by tensor for who asks, with the numbers that a cast afterwards gives."""
        torch = pytest.importorskip("torch")
        build = Checkpoint.open(originals["sd1"]).component("unet", precision="bfloat16").build
        assert isinstance(build, Recipe)
        whole, cast = build().state_dict(), build.cast()().state_dict()
        assert {tensor.dtype for tensor in cast.values()} == {torch.bfloat16}
        assert all(torch.equal(whole[n].bfloat16(), tensor) for n, tensor in cast.items())

    def test_fingerprint_follows_config_and_weights(self, ddpm: Path) -> None:
        first = Checkpoint.open(ddpm).component("unet").fingerprint
        assert Checkpoint.open(ddpm).component("unet").fingerprint == first
        edit_json(ddpm / "unet" / "config.json", sample_size=32)
        second = Checkpoint.open(ddpm).component("unet").fingerprint
        os.utime(ddpm / "unet" / "diffusion_pytorch_model.safetensors", (1, 1))
        third = Checkpoint.open(ddpm).component("unet").fingerprint
        assert len({first, second, third}) == 3

    def test_bad_requests(self, originals: dict[str, Path]) -> None:
        checkpoint = Checkpoint.open(originals["ddpm"])
        with pytest.raises(InputError, match=r"'vae' was asked for; .* has unet"):
            checkpoint.component("vae")
        with pytest.raises(InputError, match="'int8' was asked for unet; use one of float32"):
            checkpoint.component("unet", precision="int8")
        with pytest.raises(InputError, match="no dimension depth to fix; it has batch"):
            checkpoint.component("unet", static={"depth": 3})
        with pytest.raises(InputError, match="height in multiples of 2; got 7"):
            checkpoint.component("unet", static={"height": 7})
        with pytest.raises(InputError, match="'tokenizer' was asked for; .* has none"):
            checkpoint.tokenizer("tokenizer")

    def test_tokenizer(self, originals: dict[str, Path]) -> None:
        checkpoint = Checkpoint.open(originals["sdxl"])
        assert (
            checkpoint.tokenizer().pad_token_id != checkpoint.tokenizer("tokenizer_2").pad_token_id
        )
        assert checkpoint.tokenizer()("a red circle").input_ids.shape == (1, 77)

    def test_files(self, originals: dict[str, Path]) -> None:
        files = Checkpoint.open(originals["sd1"]).files()
        assert set(files) == {
            "scheduler/scheduler_config.json",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
        }
        assert all(path.is_file() for path in files.values())

    def test_weights_of_another_model(self, sd: Path) -> None:
        edit_json(sd / "unet" / "config.json", cross_attention_dim=64)
        component = Checkpoint.open(sd).component("unet")
        assert component.build is not None
        with pytest.raises(WeightsError, match=r"of unet .*attn2\.to_k\.weight \(\[.*expected"):
            component.build()

    def test_config_that_cannot_be_built(self, sd: Path) -> None:
        edit_json(sd / "unet" / "config.json", norm_num_groups=7)
        component = Checkpoint.open(sd).component("unet")
        assert component.build is not None
        with pytest.raises(CheckpointError, match="unet, a UNet2DConditionModel, cannot be built"):
            component.build()

    def test_text_encoder_that_cannot_be_built(self, sd: Path) -> None:
        edit_json(sd / "text_encoder" / "config.json", num_attention_heads=5)
        component = Checkpoint.open(sd).component("text_encoder")
        assert component.build is not None
        with pytest.raises(CheckpointError, match="read as a CLIPTextModel's; Transformers"):
            component.build()


class TestVariants:
    def rename(self, folder: Path, variant: str) -> None:
        stem = "model" if folder.name.startswith("text") else "diffusion_pytorch_model"
        file = folder / f"{stem}.safetensors"
        file.rename(folder / f"{stem}.{variant}.safetensors")

    def test_mixed(self, sd: Path) -> None:
        self.rename(sd / "unet", "fp16")
        checkpoint = Checkpoint.open(sd, variant="fp16")
        assert checkpoint.weights("unet").variant == "fp16"
        assert checkpoint.weights("vae").variant is None
        with pytest.raises(WeightsError, match="unet has no plain .* variants: fp16"):
            Checkpoint.open(sd).component("unet")

    def test_no_component_has_it(self, sd: Path) -> None:
        with pytest.raises(CheckpointError, match="'fp16' of .* no component has it. Found: only"):
            Checkpoint.open(sd, variant="fp16")
        self.rename(sd / "unet", "fp16")
        self.rename(sd / "vae", "non_ema")
        with pytest.raises(CheckpointError, match="Found: fp16, non_ema"):
            Checkpoint.open(sd, variant="bf16")


def remove(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def write(path: str, content: bytes | str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / path).write_bytes(data)

    return change


def edit(path: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / path, **changes)


INDEX, UNET = "model_index.json", "unet/config.json"
BAD: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no index": (remove(INDEX), ["no model_index.json", "it holds scheduler, text_encoder"]),
    "empty folder": (
        lambda folder: (shutil.rmtree(folder), folder.mkdir())[0],
        ["no model_index.json", "it holds nothing"],
    ),
    "index is not JSON": (
        write(INDEX, '{\n  "_class_name": "x",\n  oops\n}'),
        ["model_index.json, line 3, column 3", "is not JSON", "again"],
    ),
    "index is not UTF-8": (write(INDEX, b'{"a": "\xff"}'), ["model_index.json is not UTF-8 text"]),
    "index is a list": (write(INDEX, "[]"), ["holds a JSON list", "object was expected"]),
    "index is deep": (write(INDEX, "[" * 100_000), ["model_index.json"]),
    "index is a folder": (
        lambda folder: (remove(INDEX)(folder), (folder / INDEX).mkdir())[0],
        ["model_index.json cannot be read"],
    ),
    "pipeline class unknown": (
        edit(INDEX, _class_name="AllegroPipeline"),
        ["'AllegroPipeline'", "it knows", "StableDiffusionPipeline", "DDPMPipeline"],
    ),
    "pipeline class missing": (edit(INDEX, _class_name=...), ["None", "it knows"]),
    "pipeline class is a number": (
        edit(INDEX, _class_name=3),
        ["_class_name is 3", "a class was expected"],
    ),
    "component class unknown": (
        edit(INDEX, vae=["diffusers", "AutoencoderWhat"]),
        ["vae", "AutoencoderKL"],
    ),
    "scheduler class unknown": (
        edit(INDEX, scheduler=["diffusers", "WhatScheduler"]),
        ["WhatScheduler", "DDIMScheduler"],
    ),
    "component missing": (edit(INDEX, vae=...), ["has no vae, which a StableDiffusionPipeline"]),
    "component empty": (edit(INDEX, unet=[None, None]), ["has no unet"]),
    "component malformed": (edit(INDEX, vae=["diffusers"]), ["vae is ['diffusers']", "[library"]),
    "component malformed too": (edit(INDEX, vae=[1, "x"]), ["vae is [1, 'x']"]),
    "component leaves": (
        edit(INDEX, **{"../vae": ["diffusers", "AutoencoderKL"]}),
        ["'../vae'", "plain folder name"],
    ),
    "component is a path": (
        edit(INDEX, **{"a/b": ["diffusers", "AutoencoderKL"]}),
        ["'a/b'", "plain folder name"],
    ),
    "component is dots": (
        edit(INDEX, **{"..": ["diffusers", "AutoencoderKL"]}),
        ["'..'", "plain folder name"],
    ),
    "folder missing": (remove("vae"), ["names vae", "no folder", "incomplete"]),
    "tokenizer folder missing": (remove("tokenizer"), ["names tokenizer", "no folder"]),
    "scheduler folder missing": (remove("scheduler"), ["names scheduler", "no folder"]),
    "config missing": (
        remove(UNET),
        ["unet/config.json is missing", "holds diffusion_pytorch_model.safetensors"],
    ),
    "config is not JSON": (write(UNET, '{"a":\n1,}'), ["unet/config.json, line 2"]),
    "config of another class": (
        edit(UNET, _class_name="UNet2DModel"),
        ["unet is a UNet2DConditionModel", "says UNet2DModel"],
    ),
    "text where a number belongs": (
        edit(UNET, layers_per_block="2"),
        ["unet/config.json: layers_per_block is '2'", "int", "expected"],
    ),
    "text in a list": (
        edit(UNET, block_out_channels=[32, "64"]),
        ["block_out_channels is [32, '64']", "tuple[int, ...]"],
    ),
    "a number where a list belongs": (
        edit("vae/config.json", block_out_channels=32),
        ["vae/config.json: block_out_channels is 32"],
    ),
    "a truth where a number belongs": (edit(UNET, in_channels=True), ["in_channels is True"]),
    "a negative width": (
        edit(UNET, block_out_channels=[32, -64]),
        ["block_out_channels is [32, -64]", "no int below 0"],
    ),
    "null where a number belongs": (edit(UNET, in_channels=None), ["in_channels is None"]),
    "text where a width belongs": (
        edit("text_encoder/config.json", hidden_size="32"),
        ["text_encoder/config.json: hidden_size is '32'"],
    ),
    "blocks missing": (
        edit(UNET, down_block_types=["DownBlock2D"]),
        ["down_block_types has 1 entries", "one a block, 2"],
    ),
    "no blocks": (
        edit(UNET, block_out_channels=[], down_block_types=[], up_block_types=[]),
        ["unet/config.json"],
    ),
    "block unknown": (
        edit(UNET, down_block_types=["What2D", "DownBlock2D"]),
        ["'What2D'", "CrossAttnDownBlock2D"],
    ),
    "statistics of other channels": (
        edit("vae/config.json", latents_mean=[0.0], latents_std=[1.0]),
        ["latents_mean has 1 entries", "one a latent channel, 4"],
    ),
    "scheduler config missing": (
        remove("scheduler/scheduler_config.json"),
        ["scheduler_config.json is missing"],
    ),
    "scheduler setting unusable": (
        edit("scheduler/scheduler_config.json", num_train_timesteps="many"),
        ["scheduler_config.json was read as the config of a DDIMScheduler"],
    ),
    "schedule unknown": (
        edit("scheduler/scheduler_config.json", beta_schedule="what"),
        ["scheduler_config.json was read as the config of a DDIMScheduler", "what"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints(case: str, sd: Path) -> None:
    change, said = BAD[case]
    change(sd)
    with pytest.raises(CheckpointError) as error:
        Checkpoint.open(sd)
    message = str(error.value)
    assert all(words in message for words in said), message
    assert str(sd) in message, message


def test_not_a_pipeline_folder(sd: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder.*OWNER/NAME"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        Checkpoint.open("nowhere")
    with pytest.raises(CheckpointError, match="is a file; .*from_single_file"):
        Checkpoint.open(sd / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="no model_index.json: it is UNet2DConditionModel"):
        Checkpoint.open(sd / "unet")
    write_json(tmp_path / "artifact" / "perfuse.json", {})
    assert is_artifact(tmp_path / "artifact")
    assert not is_artifact(sd)
    with pytest.raises(CheckpointError, match="is an exported artifact"):
        Checkpoint.open(tmp_path / "artifact")


def test_names_that_are_no_paths(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b", str(tmp_path / "a" / ("y" * 300))):
        with pytest.raises(InputError, match="no file can have that name"):
            Checkpoint.open(name)


def test_links_that_leave(sd: Path, tmp_path: Path) -> None:
    (sd / "vae").rename(tmp_path / "vae")
    (sd / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(CheckpointError, match=r"vae leads to .* outside of the checkpoint"):
        Checkpoint.open(sd)
    (sd / "vae").unlink()
    (tmp_path / "vae").rename(sd / "vae")
    (sd / "tokenizer" / "vocab.json").unlink()
    (sd / "tokenizer" / "vocab.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"vocab\.json leads to"):
        Checkpoint.open(sd).files()
    with pytest.raises(CheckpointError, match=r"vocab\.json leads to"):
        Checkpoint.open(sd).tokenizer()


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX permissions")
def test_unreadable(originals: dict[str, Path]) -> None:
    # Not in the tests' own folder, where another user sees nothing.
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        sd = Path(shutil.copytree(originals["sd1"], folder / "sd"))
        Checkpoint.open(sd)  # what it imports may not be readable to the other user
        for file, said in [
            (sd / "unet" / "config.json", "config.json cannot be read: Permission denied"),
            (sd / "unet" / "diffusion_pytorch_model.safetensors", "cannot be read: Permission"),
        ]:
            file.chmod(0)
            with as_nobody(), pytest.raises(CheckpointError, match=said):
                Checkpoint.open(sd).component("unet")
            file.chmod(0o644)
        for place in (sd / "unet", sd):
            place.chmod(0)
            with as_nobody(), pytest.raises(CheckpointError, match="Permission denied"):
                Checkpoint.open(sd)
            place.chmod(0o755)
    finally:
        shutil.rmtree(folder)


class as_nobody:
    """Root reads everything: take its rights away."""

    def __enter__(self) -> None:
        self.user = os.geteuid()
        if self.user == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        os.seteuid(self.user)


COMMIT, NAME = "0123456789abcdef0123456789abcdef01234567", "owner/tiny"


def cached(folder: Path, source: Path, *, without: str = "") -> None:
    """Lay a checkpoint out as the Hub's cache does: blobs, and links to them."""
    repository = folder / f"models--{NAME.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for i, file in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        name = file.relative_to(source)
        if without and str(name).startswith(without):
            continue
        blob = repository / "blobs" / f"{i:040x}"
        shutil.copyfile(file, blob)
        link = repository / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


class TestHubCache:
    def test_offline(self, cache: Path, originals: dict[str, Path]) -> None:
        cached(cache, originals["sd1"])
        for revision in (None, "main", COMMIT):
            checkpoint = Checkpoint.open(NAME, offline=True, revision=revision)
            assert checkpoint.revision == COMMIT
            assert checkpoint.model == NAME
        component = checkpoint.component("unet")
        assert component.build is not None
        component.build()
        assert checkpoint.tokenizer()("red").input_ids.shape == (1, 77)
        assert len(checkpoint.files()) == 5

    def test_environment(
        self, cache: Path, originals: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        cached(cache, originals["ddpm"])
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets
        assert Checkpoint.open(NAME).revision == COMMIT

    def test_not_cached(self, cache: Path, originals: dict[str, Path]) -> None:
        with pytest.raises(CheckpointError, match="owner/tiny was asked for; .*this is offline"):
            Checkpoint.open(NAME, offline=True)
        cached(cache, originals["ddpm"])
        with pytest.raises(CheckpointError, match="owner/tiny at v2 was asked for"):
            Checkpoint.open(NAME, offline=True, revision="v2")

    def test_cached_in_part(self, cache: Path, originals: dict[str, Path]) -> None:
        cached(cache, originals["sd1"], without="vae")
        with pytest.raises(CheckpointError, match=r"names vae; there is no folder"):
            Checkpoint.open(NAME, offline=True)

    def test_a_folder_comes_first(
        self, cache: Path, ddpm: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ddpm.parent)
        ddpm.rename(ddpm.parent / "tiny")
        assert Checkpoint.open("./tiny").revision is None
        assert Checkpoint.open("tiny", offline=True).spec.class_name == "DDPMPipeline"


class Hub(ThreadingHTTPServer):
    """As much of the Hub's API as a download takes, over the files of a folder."""

    daemon_threads = True

    def __init__(self, source: Path) -> None:
        self.source = source
        self.asked: list[str] = []
        self.refuse: tuple[int, str] | None = None
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        if self.server.refuse is not None:
            status, code = self.server.refuse
            return self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)
        path = path.replace("/resolve/main/", f"/resolve/{COMMIT}/")
        api, resolve = f"/api/models/{NAME}", f"/{NAME}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            files = sorted(p for p in self.server.source.rglob("*") if p.is_file())
            names = [str(p.relative_to(self.server.source)) for p in files]
            info = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            return self.send(200, json.dumps(info).encode(), {}, body)
        if path.startswith(api):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if path.startswith(resolve) and (self.server.source / path[len(resolve) :]).is_file():
            name = path[len(resolve) :]
            if body:
                self.server.asked.append(name)
            data = (self.server.source / name).read_bytes()
            etag = f'"{abs(hash(name)):040x}"'
            return self.send(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)
        code = "EntryNotFound" if path.startswith(resolve) else "RepoNotFound"
        return self.send(404, b"{}", {"X-Error-Code": code}, body)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(sd: Path) -> Iterator[Hub]:
    for name in ("flax_model.msgpack", "unet/diffusion_pytorch_model.bin", "model.ckpt"):
        (sd / name).write_bytes(b"never read")
    (sd / "unet" / "openvino_model.xml").write_bytes(b"never read")
    half = sd / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copyfile(sd / "unet" / "diffusion_pytorch_model.safetensors", half)
    write_checker(sd)
    server = Hub(sd)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Any]:
    """Open a model in a process of its own: the Hub's address is read when it is imported."""

    def run(url: str, model: str = NAME, **options: Any) -> Any:
        code = (
            "import json, sys\n"
            "from perfuse.sources.checkpoint import Checkpoint\n"
            "from perfuse.errors import CheckpointError\n"
            "try:\n"
            f"    c = Checkpoint.open({model!r}, **{options!r})\n"
            "    c.component('unet')\n"
            "    print(json.dumps({'revision': c.revision, 'path': str(c.path)}))\n"
            "except CheckpointError as error:\n"
            "    print(json.dumps({'error': str(error)}))\n"
        )
        environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return json.loads(done.stdout.splitlines()[-1])

    return run


class TestHub:
    def test_only_what_is_needed_is_downloaded(self, hub: Hub, ask: Callable[..., Any]) -> None:
        answer = ask(hub.url)
        assert answer["revision"] == COMMIT
        assert set(hub.asked) == {
            "feature_extractor/preprocessor_config.json",
            "model_index.json",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "tokenizer/merges.txt",
            "tokenizer/special_tokens_map.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        }
        count = len(hub.asked)
        assert ask(hub.url) == answer
        assert len(hub.asked) == count  # all of it came from the cache
        assert ask("http://127.0.0.1:9") == answer  # and so without a connection
        assert ask("http://127.0.0.1:9", offline=True) == answer

    def test_variant(self, hub: Hub, ask: Callable[..., Any]) -> None:
        assert ask(hub.url, variant="fp16", revision="main")["revision"] == COMMIT
        assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.asked
        assert "unet/diffusion_pytorch_model.safetensors" not in hub.asked
        assert "vae/diffusion_pytorch_model.safetensors" in hub.asked

    def test_variant_missing(self, hub: Hub, ask: Callable[..., Any]) -> None:
        said = ask(hub.url, variant="bf16")["error"]
        assert "'bf16' of owner/tiny" in said
        assert "Found: fp16" in said
        assert hub.asked == ["model_index.json"]

    def test_only_pickles(self, hub: Hub, ask: Callable[..., Any]) -> None:
        for file in hub.source.glob("unet/*.safetensors"):
            file.unlink()
        said = ask(hub.url)["error"]
        assert "unet has no safetensors weights, only diffusion_pytorch_model.bin" in said
        assert hub.asked == ["model_index.json"]

    @pytest.mark.parametrize(
        ("refuse", "said"),
        [
            ((404, "RepoNotFound"), ["neither a folder nor a Hub repository", "hf auth login"]),
            ((401, "RepoNotFound"), ["neither a folder nor a Hub repository", "hf auth login"]),
            ((403, "GatedRepo"), ["on request only", "hf auth login"]),
            ((404, "RevisionNotFound"), ["no such revision"]),
        ],
    )
    def test_refusals(
        self, hub: Hub, ask: Callable[..., Any], refuse: tuple[int, str], said: list[str]
    ) -> None:
        hub.refuse = refuse
        message = ask(hub.url)["error"]
        assert NAME in message
        assert all(words in message for words in said), message

    def test_not_a_pipeline(self, hub: Hub, ask: Callable[..., Any]) -> None:
        (hub.source / INDEX).unlink()
        assert "the repository has no model_index.json" in ask(hub.url)["error"]

    def test_no_connection(self, ask: Callable[..., Any]) -> None:
        message = ask("http://127.0.0.1:9")["error"]
        assert "cannot be reached" in message
        assert "Name a folder" in message


def test_a_scheduler_s_setting_that_is_text(copy_of: Callable[[str], Path]) -> None:
    model = copy_of("tiny")
    edit_json(model / "scheduler" / "scheduler_config.json", beta_start="small")
    with pytest.raises(
        CheckpointError, match="scheduler_config.json was read as the config of a DDPM"
    ):
        Checkpoint.open(model)
