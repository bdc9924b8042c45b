"""Diffusers' face on pipelines and models: what is shared, what is refused, what runs without torch."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import perfuse
from perfuse import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DDPMScheduler,
    DiffusionPipeline,
    PipelineOutput,
)
from perfuse.errors import CheckpointError, InputError
from perfuse.plugins import host

Make = Callable[[str], Path]

LATENT: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}


@pytest.fixture
def pipe(checkpoint: Make) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")


def named(name: str) -> type[DiffusionPipeline]:
    found: type[DiffusionPipeline] = getattr(perfuse, name)
    return found


# ── Classes ─────────────────────────────────────────────────────────────────────────────────────


def test_there_is_a_class_for_each_manifest() -> None:
    for name, manifest in host().pipelines().items():
        assert issubclass(named(name), DiffusionPipeline)
        assert named(name) is getattr(perfuse, manifest.class_name)


def test_a_named_class_decides_the_tasks(checkpoint: Make, pipe: DiffusionPipeline) -> None:
    kind = named("StableDiffusionImg2ImgPipeline")
    opened = kind.from_pretrained(checkpoint("words"), backend="torch:cpu")
    assert list(opened.tasks) == ["image-to-image"]
    assert type(pipe) is named("StableDiffusionPipeline")
    assert isinstance(opened, kind)
    picture = np.zeros((16, 16, 3), np.float32)
    drawn = opened("red", picture, 0.5, **LATENT).images
    assert drawn.shape == (1, 4, 8, 8)
    assert list(kind.from_pipe(pipe).tasks) == ["image-to-image"]


def test_a_class_that_the_model_does_not_fit(checkpoint: Make) -> None:
    kind = named("StableDiffusionXLPipeline")
    with pytest.raises(
        InputError, match="it is a StableDiffusionPipeline: it has no text_encoder_2"
    ):
        kind.from_pretrained(checkpoint("words"))
    with pytest.raises(InputError, match="has text_encoder_2, tokenizer_2, which"):
        named("StableDiffusionPipeline").from_pretrained(checkpoint("sdxl"))
    with pytest.raises(InputError, match="it also needs unet, vae, text_encoder"):
        named("StableDiffusionPipeline")(unet=None, scheduler=DDPMScheduler())


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        (AutoPipelineForText2Image, "StableDiffusionPipeline"),
        (AutoPipelineForImage2Image, "StableDiffusionImg2ImgPipeline"),
        (AutoPipelineForInpainting, "StableDiffusionInpaintPipeline"),
    ],
)
def test_a_class_by_the_task(auto: Any, name: str, checkpoint: Make) -> None:
    opened = auto.from_pretrained(checkpoint("words"), torch_dtype=torch.bfloat16)
    assert type(opened) is named(name)
    assert opened.precision == "bfloat16"
    for other in (AutoPipelineForImage2Image, AutoPipelineForText2Image, auto):
        opened = other.from_pipe(opened)
    assert type(opened) is named(name)
    with pytest.raises(TypeError, match="use AutoPipelineFor.*from_pretrained"):
        auto()
    if auto is not AutoPipelineForText2Image:
        with pytest.raises(InputError, match="DDPMPipeline has no relative"):
            auto.from_pretrained(checkpoint("tiny"))


def test_nothing_is_loaded_twice(pipe: DiffusionPipeline) -> None:
    before = pipe("red", **LATENT).images
    other = named("StableDiffusionPipeline").from_pipe(pipe)
    assert other.program("unet") is pipe.program("unet")
    pipe.close()
    assert (other("red", **LATENT).images == before).all()
    assert other.unet is pipe.unet
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)
    assert not (other("red", **LATENT).images == before).all()
    other.unet = None
    assert pipe.unet is not None


# ── Opening ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        ({"use_safetensors": False}, "safetensors alone"),
        ({"device_map": "balanced"}, "backend='unet=torch:cuda:0"),
        ({"quantization_config": {}}, "precision="),
        ({"provider": "CUDAExecutionProvider"}, "backend='onnxruntime:cuda'"),
        ({"torch_dtype": torch.float64}, "float32, float16, bfloat16"),
        ({"torch_dtype": {"unet": torch.float16, "vae": torch.float32}}, "one precision"),
        (
            {"image_encoder": object()},
            "image_encoder was to be a object, which perfuse does not know",
        ),
        ({"uent": 3}, "uent= was given; StableDiffusionPipeline has"),
    ],
)
def test_arguments_that_are_refused(given: dict[str, Any], instead: str, checkpoint: Make) -> None:
    with pytest.raises(InputError, match=instead):
        DiffusionPipeline.from_pretrained(checkpoint("words"), **given)


def test_arguments_that_are_taken(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(
        pretrained_model_name_or_path=checkpoint("words"),
        torch_dtype="float16",
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=True,
        local_files_only=True,
        low_cpu_mem_usage=False,
        trust_remote_code=False,
        custom_pipeline=None,
        device_map="cpu",
        vae=None,
    )
    assert (pipe.precision, str(pipe.placement), pipe.vae) == ("float16", "torch:cpu", None)
    assert pipe.config.requires_safety_checker is True
    assert pipe.dtype is torch.float16


def in_the_hubs_cache(folder: Path, cache: Path) -> None:
    """A snapshot of OWNER/NAME as ``huggingface_hub`` lays it out."""
    repository = cache / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def test_from_the_hubs_cache(checkpoint: Make, tmp_path: Path) -> None:
    in_the_hubs_cache(checkpoint("tiny"), tmp_path)
    there: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    unet = perfuse.AutoModel.from_pretrained("owner/name", subfolder="unet", **there)
    same = perfuse.UNet2DModel.from_pretrained("owner/name", subfolder="unet", **there)
    assert type(unet) is type(same)
    assert (unet.conv_in.weight == same.conv_in.weight).all()
    scheduler = DDPMScheduler.from_pretrained("owner/name", subfolder="scheduler", **there)
    assert scheduler.config.num_train_timesteps == 1000
    folder = checkpoint("tiny") / "scheduler"
    assert DDPMScheduler.from_config(folder).config == DDPMScheduler.from_pretrained(folder).config
    pipe = DiffusionPipeline.from_pretrained("owner/name", **there)
    assert pipe(batch_size=1, **LATENT).images.shape == (1, 3, 8, 8)
    with pytest.raises(CheckpointError, match="owner/other/unet/ was asked for.*this is offline"):
        perfuse.UNet2DModel.from_pretrained("owner/other", subfolder="unet", **there)
    with pytest.raises(InputError, match="was given in_channels"):
        perfuse.UNet2DModel.from_pretrained(checkpoint("tiny") / "unet", in_channels=9)


def test_a_text_encoder_is_opened_by_its_class(checkpoint: Make) -> None:
    from perfuse import CLIPTextModel  # type: ignore[attr-defined]

    assert perfuse.models.CLIPTextModel is CLIPTextModel
    encoder = CLIPTextModel.from_pretrained(checkpoint("words"), subfolder="text_encoder")
    assert type(encoder) is CLIPTextModel and encoder.config.hidden_size == 32


# ── Calls ───────────────────────────────────────────────────────────────────────────────────────


def test_calls_that_are_refused(pipe: DiffusionPipeline) -> None:
    with pytest.raises(InputError, match="prompt was given by position and by name"):
        pipe("red", prompt="blue")
    with pytest.raises(
        InputError, match="18 inputs were given by position.*takes 17: prompt, height"
    ):
        pipe(*[None] * 18)
    with pytest.raises(InputError, match="has mask; there are latents, prompt_embeds"):
        pipe("red", callback_on_step_end=dict, callback_on_step_end_tensor_inputs=["mask"])
    assert pipe("red", ip_adapter_image=None, **LATENT).images.shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"callback_on_step_end": 3}, "callback_on_step_end=3 was given; give a function"),
        ({"callback_on_step_end": lambda *_: [1]}, "returned a list; return the dict"),
        ({"callback_on_step_end": lambda *_: {"latents": None}}, "returned None as latents"),
        ({"cross_attention_kwargs": [1]}, "cross_attention_kwargs=.1. was given; give a dict"),
        ({"joint_attention_kwargs": "x"}, "joint_attention_kwargs='x' was given; give a dict"),
    ],
)
def test_callbacks_and_attentions_that_are_refused(
    given: dict[str, Any], says: str, pipe: DiffusionPipeline
) -> None:
    with pytest.raises(InputError, match=says):
        pipe("red", **given, **LATENT)


def test_a_pipeline_that_called_back_is_let_go_of(checkpoint: Make) -> None:
    """Its weights, too; what a callback closes over is often the pipeline."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"))
    pipe("red", **LATENT, callback_on_step_end=lambda pipe, index, timestep, tensors: tensors)
    there = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert there() is None


def test_attentions_of_a_transformer_take_the_scale_of_adapters_alone() -> None:
    flow = DiffusionPipeline.from_pretrained("shapes-flow")
    for entry in ({"foo": 1}, {"ip_adapter_masks": [np.ones((1, 1, 64, 64))]}):
        with pytest.raises(InputError, match="was given cross_attention_kwargs"):
            flow("a red circle", cross_attention_kwargs=entry, num_inference_steps=1)


def test_layers_of_a_guidance_that_is_not_there(pipe: DiffusionPipeline) -> None:
    with pytest.raises(
        InputError, match="no perturbed-attention guidance. Open it with enable_pag"
    ):
        pipe.set_pag_applied_layers(["mid"])


def test_what_a_call_returns(pipe: DiffusionPipeline, checkpoint: Make) -> None:
    out = pipe("red", **LATENT)
    assert isinstance(out, PipelineOutput)
    assert isinstance(out.images, torch.Tensor)
    assert (out[0] is out.images, out.nsfw_content_detected, out.seeds) == (True, None, (0,))
    assert list(out) == ["images"]
    out.images.add_(1)  # it is the caller's own
    picture = pipe("red", **{**LATENT, "output_type": "pt"}).images
    assert (picture.shape, picture.dtype) == ((1, 3, 16, 16), torch.float32)
    unconditional = DiffusionPipeline.from_pretrained(checkpoint("tiny"))
    assert len(unconditional(**LATENT, return_dict=False)) == 1


def test_seeds_of_torch_are_honoured_and_others_are_known(pipe: DiffusionPipeline) -> None:
    given = {name: value for name, value in LATENT.items() if name != "seed"}
    state = torch.get_rng_state()
    try:
        torch.manual_seed(3)
        first, second = pipe("red", **given), pipe("red", **given)
        torch.manual_seed(3)
        again = pipe("red", **given)
        assert (first.images == again.images).all()
        assert not (first.images == second.images).all()
        torch.seed()
        assert isinstance(pipe("red", **given).seeds[0], int)
    finally:
        torch.set_rng_state(state)


def test_a_bar_where_one_is_asked_for(
    pipe: DiffusionPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe("red", **LATENT)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False, desc="drawing")
    pipe("red", **LATENT)
    assert "drawing: 100%" in capsys.readouterr().err
    assert list(pipe.progress_bar([1, 2])) == [1, 2]
    with pytest.raises(InputError, match="either an iterable or total="):
        pipe.progress_bar()


# ── Switches ────────────────────────────────────────────────────────────────────────────────────


def test_one_component_at_a_time(pipe: DiffusionPipeline) -> None:
    before = pipe("red", **{**LATENT, "output_type": "np"}).images
    assert set(pipe.programs()) == {"text_encoder", "unet", "vae_decoder"}
    pipe.enable_model_cpu_offload()
    assert (pipe("red", **{**LATENT, "output_type": "np"}).images == before).all()
    assert set(pipe.programs()) == {"vae_decoder"}
    pipe.maybe_free_model_hooks()
    assert not pipe.programs()
    pipe.remove_all_hooks()
    assert (pipe("red", **{**LATENT, "output_type": "np"}).images == before).all()
    assert len(pipe.programs()) == 3
    with pytest.warns(UserWarning, match="not layer by layer"):
        pipe.enable_sequential_cpu_offload()
    with pytest.raises(InputError, match="gpu_id and device"):
        pipe.enable_model_cpu_offload(gpu_id=0, device="cuda")


def test_settings_that_steps_read(pipe: DiffusionPipeline) -> None:
    from perfuse.run.tools import PipelineTools

    tools = PipelineTools(pipe)
    assert (tools.vae_tiling, tools.vae_slicing) == (False, False)
    pipe.enable_vae_tiling()
    pipe.vae.enable_slicing()
    assert (tools.vae_tiling, tools.vae_slicing) == (True, True)
    pipe.disable_vae_tiling()
    pipe.vae.disable_slicing()
    assert (tools.vae_tiling, tools.vae_slicing) == (False, False)


def test_weights_stored_in_a_smaller_type(pipe: DiffusionPipeline) -> None:
    before = pipe("red", **LATENT).images
    pipe.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn)
    difference = (pipe("red", **LATENT).images - before).abs().max()
    assert 0 < float(difference)
    assert pipe.program("unet").report().details["storage"] == "float8_e4m3fn"
    with pytest.raises(InputError, match="stores float16, bfloat16"):
        pipe.enable_layerwise_casting(storage_dtype=torch.int16)
    with pytest.raises(InputError, match="Call the pipeline's"):
        pipe.unet.enable_layerwise_casting()


def test_a_method_that_is_left_out(pipe: DiffusionPipeline) -> None:
    assert not hasattr(pipe, "push_to_hub")
    with pytest.raises(AttributeError, match="left out of perfuse.*hf upload"):
        pipe.push_to_hub("owner/name")


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────


def test_printed(pipe: DiffusionPipeline) -> None:
    assert repr(pipe).startswith("StableDiffusionPipeline(")
    assert "unet=torch:cpu (UNet2DConditionModel)" in repr(pipe)
    assert "scheduler (DDIMScheduler)" in repr(pipe)


def test_saving_what_has_no_weights(pipe: DiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was given push_to_hub"):
        pipe.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(InputError, match="variant='../a' was given; it is a word"):
        pipe.save_pretrained(tmp_path, variant="../a")
    with pytest.raises(InputError, match="was given safe_serialization=False"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)
    pipe.unet = pipe.program("unet")
    with pytest.raises(InputError, match="its unet is a GuardedProgram"):
        pipe.save_pretrained(tmp_path)


def test_a_pipeline_without_parts_is_saved_without_them(
    pipe: DiffusionPipeline, tmp_path: Path
) -> None:
    pipe.vae = None
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert "vae" not in index
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]
    assert not (tmp_path / "vae").exists()


def test_a_tokenizer_of_transformers(pipe: DiffusionPipeline, checkpoint: Make) -> None:
    import transformers

    before = pipe("a red circle", **LATENT).images
    theirs = transformers.CLIPTokenizer.from_pretrained(checkpoint("words") / "tokenizer")
    ours, pipe.tokenizer = pipe.tokenizer, theirs
    assert pipe.tokenizer is theirs
    assert (pipe("a red circle", **LATENT).images == before).all()
    with pytest.warns(UserWarning, match="this was cut off: 'red'"):
        pipe("a " * 75 + "red", **LATENT)
    pipe.tokenizer = ours
    assert (pipe("a red circle", **LATENT).images == before).all()


def test_tokenizers_refuse(pipe: DiffusionPipeline) -> None:
    for given, said in (
        ({"return_tensors": "tf"}, "use 'pt', 'np' or None"),
        ({"padding": "left"}, "use 'max_length', 'longest'"),
    ):
        with pytest.raises(InputError, match=said):
            pipe.tokenizer("red", **given)
    with pytest.raises(InputError, match="Texts of 3, 4 tokens were to be one tensor"):
        pipe.tokenizer(["red", "a red"], return_tensors="np")


def test_what_a_compiled_module_is(pipe: DiffusionPipeline) -> None:
    unet = pipe.unet
    pipe.unet = SimpleNamespace(_orig_mod=unet)  # as torch.compile returns it
    assert pipe.unet is unet
    assert pipe.options == {"unet.compile": "true"}


# ── Pictures ────────────────────────────────────────────────────────────────────────────────────


def test_pictures_that_cannot_be_used(tmp_path: Path) -> None:
    from perfuse.utils import export_to_gif, export_to_video, load_image, make_image_grid

    with pytest.raises(InputError, match="There is no picture at"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        load_image(tmp_path / "text.png")
    with pytest.raises(InputError, match="0 pictures were given for a grid of 1 x 2"):
        make_image_grid([], rows=1, cols=2)
    for export in (export_to_gif, export_to_video):
        with pytest.raises(InputError, match="No picture was given"):
            export([])


def test_a_video(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v3

    from perfuse.utils import export_to_video

    frames = [np.full((16, 16, 3), level, np.float32) for level in (0.0, 0.5, 1.0)]
    path = export_to_video(frames, tmp_path / "a.mp4", fps=3)
    read = imageio.v3.imread(path)
    assert read.shape == (3, 16, 16, 3)
    assert np.abs(read.mean(axis=(1, 2, 3)) - [0, 127, 255]).max() < 4


def test_sizes_of_tiles_have_no_effect() -> None:
    from perfuse.models.autoencoder_halves import Switches

    switches = Switches()
    with pytest.warns(UserWarning, match="tile_sample_min_height of enable_tiling has no effect"):
        switches.enable_tiling(tile_sample_min_height=1024)
    assert switches.use_tiling
