"""Single-file checkpoints: what they are recognised as, what is refused, and how it is said."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from tests.single_files import make_folder, original_tensors

from perfuse import DiffusionPipeline
from perfuse.cli import main
from perfuse.errors import CheckpointError, InputError, WeightsError
from perfuse.sources import Checkpoint, open_model
from perfuse.sources.single_file import SingleFile

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Tensors = dict[str, np.ndarray[Any, Any]]
Write = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CALL = {"height": 16, "width": 16, "num_inference_steps": 1, "output_type": "latent", "seed": 0}


@pytest.fixture(scope="module")
def folder(made_once: Callable[..., Path]) -> Path:
    return made_once("single-files", "sd1", lambda folder: make_folder(folder, "sd1"))


@pytest.fixture(scope="module")
def tensors(folder: Path) -> Tensors:
    return {name: tensor.numpy() for name, tensor in original_tensors(folder, "sd1").items()}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(tensors: Tensors, name: str = "model.safetensors", **metadata: str) -> Path:
        save_file(tensors, tmp_path / name, metadata=metadata or None)
        return tmp_path / name

    return write


def without(tensors: Tensors, *prefixes: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}


def widened(tensors: Tensors, channels: int) -> Tensors:
    return {**tensors, FIRST: np.repeat(tensors[FIRST][:, :1], channels, axis=1)}


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.float32)


# ── What a file is recognised as ────────────────────────────────────────────────────────────────


def test_inspect_says_the_layout(tensors: Tensors, write: Write) -> None:
    path = write(tensors)
    shown = CliRunner().invoke(main, ["inspect", "--model", str(path)])
    assert "Stable Diffusion 1, recognised by its tensors" in shown.output
    asked = ["inspect", "--model", str(path), "--prediction-type", "v_prediction", "--json"]
    told = json.loads(CliRunner().invoke(main, asked).output)
    assert told["layout"] == "Stable Diffusion 1"
    assert told["class_name"] == "StableDiffusionPipeline"
    assert told["scheduler"]["prediction_type"] == "v_prediction"
    sizes = {
        part: sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith(prefix))
        for part, prefix in (("unet", "model."), ("vae", "first_"), ("text_encoder", "cond_"))
    }
    assert told["weight_bytes"] == sizes


def test_generate_takes_a_file(
    tensors: Tensors, write: Write, folder: Path, tmp_path: Path
) -> None:
    model = ["--model", str(write(tensors)), "--tokenizer-from", str(folder), "--quiet"]
    size = ["--height", "16", "--width", "16", "--steps", "1"]
    picture = tmp_path / "a.png"
    done = CliRunner().invoke(
        main, ["generate", "a red circle", *model, *size, "--output", str(picture)]
    )
    assert done.exit_code == 0, done.output
    assert picture.is_file()


def test_what_the_file_says_of_its_prediction(tensors: Tensors, write: Write) -> None:
    noted = write(tensors, "noted.safetensors", **{"modelspec.prediction_type": "v"})
    assert SingleFile.open(noted).spec.scheduler["prediction_type"] == "v_prediction"
    marked = write({**tensors, "v_pred": zeros(0), "ztsnr": zeros(0)}, "marked.safetensors")
    scheduler = SingleFile.open(marked).spec.scheduler
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is True
    asked = SingleFile.open(marked, prediction_type="epsilon")
    assert asked.spec.scheduler["prediction_type"] == "epsilon"


def test_further_channels_are_another_pipeline(tensors: Tensors, write: Write) -> None:
    source = SingleFile.open(write(widened(tensors, 9)))
    assert (source.layout, source.spec.class_name) == (
        "Stable Diffusion 1 inpainting",
        "StableDiffusionInpaintPipeline",
    )
    assert source.spec.denoiser.signature.inputs[0].shape[1] == 9


def test_statistics_of_latents(made_once: Callable[..., Path], write: Write) -> None:
    """Playground's files hold the means and deviations of latents as tensors."""
    folder = made_once("single-files", "sdxl", lambda folder: make_folder(folder, "sdxl"))
    tensors = {name: one.numpy() for name, one in original_tensors(folder, "sdxl").items()}
    tensors["edm_mean"] = np.arange(4, dtype=np.float32)[None, :, None, None]
    tensors["edm_std"] = np.full((1, 4, 1, 1), 2, np.float32)
    source = SingleFile.open(write(tensors))
    assert source.layout == "Playground 2.5"
    assert source.spec.scheduler["_class_name"] == "EDMDPMSolverMultistepScheduler"
    latents = source.spec.latents.decode(np.ones((1, 4, 1, 1), np.float32))
    np.testing.assert_array_equal(latents.flatten(), [4, 5, 6, 7])


def test_a_file_of_the_same_name_is_another(tensors: Tensors, write: Write) -> None:
    """Exports are kept by fingerprint: other values of the same shapes are no stale export."""
    found = []
    for factor in (1, 2):
        source = SingleFile.open(write({n: t * factor for n, t in tensors.items()}))
        found += [source.component(name).fingerprint for name in source.spec.components]
    assert len(set(found)) == len(found) == 2 * len(source.spec.components)


# ── What comes from elsewhere ───────────────────────────────────────────────────────────────────


def test_a_unet_with_the_rest_of_a_folder(tensors: Tensors, write: Write, folder: Path) -> None:
    unet = {n: t for n, t in tensors.items() if n.startswith("model.diffusion_model.")}
    bare = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in unet.items()}
    for path in (write(unet, "unet.safetensors"), write(bare, "bare.safetensors")):
        pipe = DiffusionPipeline.from_single_file(path, config=folder, backend="torch:cpu")
        latents = pipe("a red circle", **CALL).images
        whole = DiffusionPipeline.from_pretrained(folder, backend="torch:cpu")
        np.testing.assert_array_equal(latents, whole("a red circle", **CALL).images)


def test_a_model_that_is_given_need_not_be_there(
    tensors: Tensors, write: Write, folder: Path
) -> None:
    from perfuse.models import AutoencoderKL

    vae = write(
        {
            name.removeprefix("first_stage_model."): tensor
            for name, tensor in tensors.items()
            if name.startswith("first_stage_model.")
        },
        "vae.safetensors",
    )
    told = AutoencoderKL.from_single_file(vae, config=folder, subfolder="vae")
    assert told.config.sample_size == 16
    model = AutoencoderKL.from_single_file(vae, scaling_factor=0.5)
    pipe = DiffusionPipeline.from_single_file(
        write(without(tensors, "first_stage_model.")),
        tokenizer_from=folder,
        vae=model,
        backend="torch:cpu",
    )
    assert pipe.vae is model
    assert pipe.spec.latents.scaling_factor == 0.5
    assert pipe("a red circle", **{**CALL, "output_type": "np"}).images.shape == (1, 16, 16, 3)
    named = DiffusionPipeline.from_pretrained(folder, vae=str(vae), backend="torch:cpu")
    assert named.spec.latents.scaling_factor == 0.18215
    assert named.replaced == ("vae",)
    for name, weight in named.vae.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_stored_in_fewer_bits(tensors: Tensors, folder: Path, dtype: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file as save

    path = tmp_path / "model.safetensors"
    save({name: torch.from_numpy(one).to(dtype) for name, one in tensors.items()}, path)
    pipe = DiffusionPipeline.from_single_file(path, tokenizer_from=folder, backend="torch:cpu")
    stored = torch.from_numpy(tensors[FIRST]).to(dtype).float()
    assert torch.equal(pipe.unet.conv_in.weight, stored)
    assert np.isfinite(np.asarray(pipe("a red circle", **CALL).images)).all()


def test_the_tokenizer_of_clip(tensors: Tensors, write: Write, folder: Path) -> None:
    path = write(tensors)
    with pytest.raises(CheckpointError, match="no tokenizer, as no single file.*tokenizer_from="):
        SingleFile.open(path, offline=True).tokenizer("tokenizer")
    with pytest.raises(CheckpointError, match=r"taken from .*, which has no vocab\.json"):
        SingleFile.open(path, tokenizer_from=folder / "vae").tokenizer("tokenizer")
    source = SingleFile.open(path, tokenizer_from=folder / "tokenizer")
    whole = SingleFile.open(path, config=folder)
    assert len(source.tokenizer("tokenizer")) == len(whole.tokenizer("tokenizer"))
    assert {name.partition("/")[0] for name in source.files()} == {"tokenizer"}
    assert all(file.is_file() for file in source.files().values())


def test_the_merges_in_open_clip(
    tensors: Tensors, write: Write, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is not imported; its merges alone give the vocabulary of CLIP's own files."""
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was imported')", "utf-8")
    merges = (folder / "tokenizer" / "merges.txt").read_text("utf-8").rstrip("\n")
    with gzip.open(package / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as file:
        file.write(merges)
    monkeypatch.syspath_prepend(tmp_path)
    made = SingleFile.open(write(tensors), offline=True).files()
    for name in ("vocab.json", "merges.txt"):
        text, expected = made[f"tokenizer/{name}"].read_text("utf-8"), folder / "tokenizer" / name
        if name == "vocab.json":
            assert json.loads(text) == json.loads(expected.read_text("utf-8"))
        else:
            assert text == expected.read_text("utf-8")


def cached(cache: Path, name: str, files: dict[str, Path]) -> None:
    """Put files into the Hub's cache as a repository."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT, "utf-8")
    for file, source in files.items():
        target = place / "snapshots" / COMMIT / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def test_files_of_the_hub(
    tensors: Tensors,
    write: Write,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached(tmp_path, "owner/files", {"old/model.safetensors": write(tensors)})
    source = open_model("owner/files/old/model.safetensors", offline=True)
    assert source.revision == COMMIT
    url = "https://huggingface.co/owner/files/resolve/main/old/model.safetensors"
    assert open_model(url, offline=True).weight_bytes() == source.weight_bytes()
    clip = {name: folder / "tokenizer" / name for name in ("vocab.json", "merges.txt")}
    cached(tmp_path, "openai/clip-vit-large-patch14", clip)
    ids = source.tokenizer("tokenizer")("a red circle").input_ids
    np.testing.assert_array_equal(
        ids, Checkpoint.open(folder).tokenizer()("a red circle").input_ids
    )
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.[jt]*[nt]")}
    assert not any(file.endswith("safetensors") for file in files)
    cached(tmp_path, "owner/whole", files)
    pipe = DiffusionPipeline.from_single_file(write(tensors), config="owner/whole", offline=True)
    assert pipe.scheduler.config["_class_name"] == "DDIMScheduler"
    assert np.isfinite(np.asarray(pipe("a red circle", **CALL).images)).all()


# ── What is refused ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin"])
def test_a_pickle(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(WeightsError, match="is a pickle: .* can run code .* never does"):
        open_model(path)
    path = path.rename(tmp_path / "model.safetensors")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match="it is a pickle under another name"):
        open_model(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        open_model(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"file a/b\.safetensors of owner/name .* offline"):
        open_model("https://huggingface.co/owner/name/blob/main/a/b.safetensors?download=true")
    with pytest.raises(CheckpointError, match=r"file b\.safetensors of owner/name"):
        open_model("owner/name/b.safetensors", offline=True)


def test_a_truncated_file(tensors: Tensors, write: Write) -> None:
    path = write(tensors)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is damaged: its header describes .* the file has"):
        open_model(path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["lora_unet_mid.lora_down.weight", "lora_unet_mid.lora_up.weight"], "is a LoRA"),
        (["emb_params"], "is an embedding"),
        (
            ["blocks.0.attn.weight", "head.weight"],
            r"Considered were Stable Diffusion 1, .* It holds",
        ),
        (["clip_l", "clip_g"], "is an embedding"),
        (["control_model.input_blocks.0.0.weight"] * 5, "is a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight"] * 5, "is in Diffusers' layout"),
        (
            ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight", *"abcdef"],
            r"does not know\. Considered were Stable Diffusion 1, .* It holds",
        ),
    ],
)
def test_other_files(names: list[str], said: str, write: Write) -> None:
    path = write({name: zeros(2, 3, 1) if i > 3 else zeros(2, 3) for i, name in enumerate(names)})
    with pytest.raises(CheckpointError, match=said):
        open_model(path)


def test_an_autoencoder_alone(tensors: Tensors, write: Write) -> None:
    vae = {n: t for n, t in tensors.items() if n.startswith("first_stage_model.")}
    with pytest.raises(
        CheckpointError, match=r"autoencoder alone.*AutoencoderKL\.from_single_file"
    ):
        open_model(write(vae))


def test_a_unet_of_no_known_pipeline(tensors: Tensors, write: Write) -> None:
    said = "nearest is Stable Diffusion 1, but its in_channels is 7, not 4"
    with pytest.raises(CheckpointError, match=said):
        open_model(write(widened(tensors, 7)))


def test_a_model_that_is_missing(tensors: Tensors, write: Write) -> None:
    said = r"has no text_encoder \(cond_stage_model\.…\); it has unet, vae.*config=FOLDER"
    with pytest.raises(CheckpointError, match=said):
        open_model(write(without(tensors, "cond_stage_model.")))


def test_tensors_that_are_missing(tensors: Tensors, write: Write, folder: Path) -> None:
    early = without(tensors, "model.diffusion_model.out.2.weight")
    with pytest.raises(WeightsError, match=r"the unet, a .*, lacks out\.2\.weight"):
        open_model(write(early))
    flat = {**tensors, FIRST: tensors[FIRST].flatten()}
    with pytest.raises(WeightsError, match="has tensors of shapes that it cannot have"):
        open_model(write(flat))
    late = without(tensors, "model.diffusion_model.middle_block.2.out_layers.3")
    pipe = DiffusionPipeline.from_single_file(write(late), config=folder)
    with pytest.raises(WeightsError, match=r"missing: mid_block\.resnets\.1\.conv2\.weight"):
        pipe.unet  # noqa: B018
    with pytest.raises(WeightsError, match=r"extract_ema\); the file has no model_ema\."):
        SingleFile.open(write(tensors), extract_ema=True)


def test_arguments(tensors: Tensors, write: Write, folder: Path) -> None:
    with pytest.raises(InputError, match="prediction_type='v' was given; use one of epsilon"):
        open_model(write(tensors), prediction_type="v")
    with pytest.raises(InputError, match="config was given; .* is not a single file"):
        open_model(folder, config=folder)
    with pytest.raises(InputError, match="original_config=.*The tensors tell the model's shape"):
        DiffusionPipeline.from_single_file(write(tensors), original_config="v1-inference.yaml")
    from perfuse.models import UNet2DModel

    with pytest.raises(
        CheckpointError, match="UNet2DModel was to be loaded from .*, which has UNet2DC"
    ):
        UNet2DModel.from_single_file(write(tensors))
