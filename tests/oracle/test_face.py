"""Code written for Diffusers, run with its import and with perfuse's: the same results.

Each case is a list of lines as a user types them. ``LIB`` is the library's name in an import; ``SD``
and ``DDPM`` are checkpoints' folders, ``pipe`` is one opened from the first, and ``seeded(n)`` is a
generator. The lines leave ``result``.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.oracle.pairs import CLOSE, check_same, make_gentle, run_lines

import perfuse
from perfuse.plugins import host

pytestmark = pytest.mark.slow

Make = Callable[[str], Path]

CASES = {
    "a loop of one's own": """
from LIB import DDPMScheduler, UNet2DModel
scheduler = DDPMScheduler.from_pretrained(DDPM, subfolder="scheduler")
model = UNet2DModel.from_pretrained(DDPM, subfolder="unet", use_safetensors=True).to("cpu")
scheduler.set_timesteps(5)
sample_size = model.config.sample_size
input = torch.randn((1, 3, sample_size, sample_size), generator=seeded(0)).to("cpu")
for t in scheduler.timesteps:
    with torch.no_grad():
        noisy_residual = model(input, t).sample
    previous_noisy_sample = scheduler.step(noisy_residual, t, input, generator=seeded(1)).prev_sample
    input = previous_noisy_sample
image = (input / 2 + 0.5).clamp(0, 1).squeeze()
result = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
""",
    "Stable Diffusion taken apart": """
from transformers import CLIPTextModel, CLIPTokenizer
from LIB import AutoencoderKL, UNet2DConditionModel, UniPCMultistepScheduler
vae = AutoencoderKL.from_pretrained(SD, subfolder="vae", use_safetensors=True)
tokenizer = CLIPTokenizer.from_pretrained(SD, subfolder="tokenizer")
text_encoder = CLIPTextModel.from_pretrained(SD, subfolder="text_encoder", use_safetensors=True)
unet = UNet2DConditionModel.from_pretrained(SD, subfolder="unet", use_safetensors=True)
scheduler = UniPCMultistepScheduler.from_pretrained(SD, subfolder="scheduler")
text_input = tokenizer(["a red circle"], padding="max_length", max_length=tokenizer.model_max_length,
                       truncation=True, return_tensors="pt")
uncond_input = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt")
with torch.no_grad():
    text_embeddings = text_encoder(text_input.input_ids)[0]
    uncond_embeddings = text_encoder(uncond_input.input_ids)[0]
text_embeddings = torch.cat([uncond_embeddings, text_embeddings])
latents = torch.randn((1, unet.config.in_channels, 8, 8), generator=seeded(0))
latents = latents * scheduler.init_noise_sigma
scheduler.set_timesteps(4)
for t in scheduler.timesteps:
    latent_model_input = torch.cat([latents] * 2)
    latent_model_input = scheduler.scale_model_input(latent_model_input, timestep=t)
    with torch.no_grad():
        noise_pred = unet(latent_model_input, t, encoder_hidden_states=text_embeddings).sample
    noise_pred_uncond, noise_pred_text = noise_pred.chunk(2)
    noise_pred = noise_pred_uncond + 7.5 * (noise_pred_text - noise_pred_uncond)
    latents = scheduler.step(noise_pred, t, latents).prev_sample
with torch.no_grad():
    image = vae.decode(latents / vae.config["scaling_factor"]).sample
    latents = vae.encode(image).latent_dist.sample(seeded(3))
    result = vae.decode(latents, return_dict=False)[0]
""",
    "a pipeline of one's own": """
import tempfile
from LIB import DDPMScheduler, DiffusionPipeline, UNet2DModel
class UnetSchedulerOneForwardPipeline(DiffusionPipeline):
    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
    def __call__(self):
        config = self.unet.config
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        image = torch.randn(shape, generator=seeded(4)).to(self.device)
        self.scheduler.set_timesteps(2)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            model_output = self.unet(image, timestep).sample
            output = self.scheduler.step(model_output, timestep, image, generator=seeded(5))
            image = output.prev_sample
        return image.detach()
opened = UnetSchedulerOneForwardPipeline.from_pretrained(DDPM, use_safetensors=True)
opened.set_progress_bar_config(disable=True)
unet = UNet2DModel.from_pretrained(DDPM, subfolder="unet")
made = UnetSchedulerOneForwardPipeline(unet=unet, scheduler=DDPMScheduler()).to("cpu")
made.set_progress_bar_config(disable=True)
with tempfile.TemporaryDirectory() as folder:
    made.save_pretrained(folder)
    again = UnetSchedulerOneForwardPipeline.from_pretrained(folder)
result = torch.cat([opened(), made(), again()])
""",
    "arguments by position": """
from LIB import DDPMPipeline
ddpm = DDPMPipeline.from_pretrained(DDPM, use_safetensors=True)
ddpm.set_progress_bar_config(disable=True)
pictures = ddpm(2, seeded(0), 3).images
given = ("a red circle", 16, 16, 3, None, None, 5.0, "blue", 2, 0.0, seeded(0))
result = (pictures[0].size, len(pictures)), pipe(*given, output_type="latent").images
""",
    "torch.manual_seed, tensors and tuples": """
torch.manual_seed(5)
first, nsfw = pipe("red", num_inference_steps=2, output_type="pt", return_dict=False)
second = pipe("red", num_inference_steps=2, output_type="pt")
assert second[0] is second.images and second["images"] is second.images
result = nsfw, len(second.to_tuple()), torch.cat([first, second.images])
""",
    "a generator for each picture, embeddings of prompts": """
embeds, negative = pipe.encode_prompt(["red", "blue"], pipe.device, 1, True, ["green", "a"])
alone, nothing = pipe.encode_prompt("red", pipe.device, 2, False)
latents = pipe(prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=2,
               generator=[seeded(3), seeded(4)], output_type="latent").images
result = nothing, torch.cat([embeds, negative, alone]).detach(), latents
""",
    "guidance that ends early": """
seen = []
def dynamic(pipe, step_index, timestep, callback_kwargs):
    seen.append((step_index, int(timestep), pipe.guidance_scale, pipe.num_timesteps))
    if step_index == int(pipe.num_timesteps * 0.4):
        callback_kwargs["prompt_embeds"] = callback_kwargs["prompt_embeds"].chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return callback_kwargs
latents = pipe("a red circle", num_inference_steps=5, generator=seeded(0), output_type="latent",
               callback_on_step_end=dynamic,
               callback_on_step_end_tensor_inputs=["prompt_embeds"]).images
result = seen, latents
""",
    "a callback that changes tensors and interrupts": """
steps = []
def change(pipe, i, t, callback_kwargs):
    steps.append(i)
    pipe._interrupt = i == 2
    return {name: tensor * 1.1 for name, tensor in callback_kwargs.items()}
names = ["latents", "prompt_embeds"]
latents = pipe("red", num_inference_steps=5, generator=seeded(0), callback_on_step_end=change,
               callback_on_step_end_tensor_inputs=names, output_type="latent").images
result = steps, latents
""",
    "callbacks that Diffusers has": """
from LIB.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
class Noted(PipelineCallback):
    tensor_inputs = ["latents"]
    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        noted.append((step_index, int(timestep), sorted(callback_kwargs)))
        return callback_kwargs
noted, given = [], {"num_inference_steps": 4, "output_type": "latent"}
early = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
both = MultiPipelineCallbacks([Noted(), SDCFGCutoffCallback(cutoff_step_ratio=0.6)])
drawn = [pipe("red", generator=seeded(0), callback_on_step_end=one, **given).images
         for one in (None, early, both)]
assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
result = noted, torch.cat(drawn)
""",
    "all that a callback may be given, and what the pipeline shows": """
shown = []
def look(pipe, i, t, callback_kwargs):
    shown.append([(name, tuple(one.shape)) for name, one in callback_kwargs.items()])
    shown.append((pipe.clip_skip, pipe.guidance_rescale, pipe.cross_attention_kwargs,
                  pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.interrupt))
    return callback_kwargs
names = pipe._callback_tensor_inputs
for given in ({}, {"guidance_rescale": 0.3}):
    pipe("red", num_inference_steps=2, callback_on_step_end=look, output_type="latent",
         callback_on_step_end_tensor_inputs=names, **given)
pipe("red", num_inference_steps=1, cross_attention_kwargs={"scale": 0.5}, output_type="latent")
result = names, shown
""",
    "the callback of former versions": """
result = []
pipe("red", num_inference_steps=4, callback=lambda i, t, l: result.append((i, int(t), l.shape)),
     callback_steps=2, output_type="latent")
""",
    "what a pipeline shows": """
result = (sorted(pipe.components), pipe.vae_scale_factor, str(pipe.device), str(pipe.dtype),
          type(pipe).__name__, type(pipe.unet).__name__, pipe.unet.config.sample_size,
          pipe.unet.config["sample_size"], pipe.unet.config.get("nothing", 3), pipe.config.unet[1],
          pipe.config["vae"][1], pipe.safety_checker, pipe.feature_extractor,
          pipe.vae.config.scaling_factor, hasattr(pipe, "controlnet"))
""",
    "pipelines of pipelines": """
from LIB import AutoPipelineForText2Image, DiffusionPipeline, StableDiffusionPipeline
without = {"safety_checker": None, "requires_safety_checker": False}
auto = AutoPipelineForText2Image.from_pretrained(SD, torch_dtype=torch.float32, **without)
two = StableDiffusionPipeline(**auto.components)
three = StableDiffusionPipeline.from_pipe(two)
four = AutoPipelineForText2Image.from_pipe(auto)
assert three.unet is two.unet and four.unet is auto.unet
given = {"num_inference_steps": 1, "output_type": "latent"}
for one in (two, three, four):
    one.set_progress_bar_config(disable=True)
drawn = [one("red", generator=seeded(0), **given).images for one in (two, three, four)]
named = type(DiffusionPipeline.from_pretrained(SD, **without)).__name__
result = named, type(auto).__name__, torch.cat(drawn)
""",
    "tokenizers": """
tok = pipe.tokenizer
filled = tok(["a red circle on blue", "a"], padding="max_length", max_length=tok.model_max_length,
             truncation=True, return_tensors="pt")
longest = tok(["a red circle", "a"], padding=True, return_tensors="pt")
ids = filled.input_ids[0]
result = (filled.input_ids, filled["attention_mask"], longest.input_ids, longest.attention_mask,
          dict(tok("a red circle")), tok.decode(ids[:6]), tok.batch_decode(filled.input_ids[:, :4]),
          tok.decode(ids, skip_special_tokens=True), tok.encode("red"), tok.tokenize("a red zz!"),
          tok.convert_tokens_to_ids(["a</w>", "zzzz"]), tok.convert_tokens_to_ids("a</w>"),
          tok.convert_ids_to_tokens(ids.tolist()[:3]), tok.model_max_length, tok.bos_token,
          tok.eos_token_id, tok.pad_token, len(tok), tok.vocab_size, len(tok.get_vocab()),
          tok("a red circle", max_length=3, truncation=True).input_ids,
          tok("a red", add_special_tokens=False).input_ids)
""",
    "image processors": """
from PIL import Image
from LIB.image_processor import VaeImageProcessor
random = np.random.RandomState(0)
image = Image.fromarray((random.rand(20, 27, 3) * 255).astype(np.uint8))
tensor = torch.rand(1, 3, 16, 16, generator=seeded(0))
mask = VaeImageProcessor(vae_scale_factor=2, do_normalize=False, do_binarize=True,
                         do_convert_grayscale=True)
done = pipe.image_processor
result = (done.preprocess(image, height=16, width=16),
          done.preprocess(random.rand(1, 16, 16, 3).astype(np.float32)), done.preprocess(tensor),
          mask.preprocess(image, height=16, width=16), done.postprocess(tensor, "np"),
          done.postprocess(tensor, "pt"), np.asarray(done.postprocess(tensor)[0]),
          done.postprocess(tensor, "np", do_denormalize=[False]), done.pil_to_numpy(image))
""",
    "masks by hand": """
from PIL import Image
from LIB.image_processor import IPAdapterMaskProcessor, VaeImageProcessor
from LIB.utils import numpy_to_pil, pt_to_pil
random = np.random.RandomState(0)
image, other = (Image.fromarray((random.rand(20, 27, 3) * 255).astype(np.uint8)) for _ in range(2))
mask = Image.new("L", image.size)
mask.paste(255, (9, 6, 20, 12))
masks = VaeImageProcessor(vae_scale_factor=2, do_normalize=False, do_binarize=True,
                          do_convert_grayscale=True)
done, box = pipe.image_processor, masks.get_crop_region(mask, 16, 16, pad=2)
soft = masks.blur(mask, blur_factor=3)
part = other.resize((16, 16))
result = (box, *[np.asarray(one) for one in (
    soft, done.apply_overlay(soft, image, other), done.apply_overlay(mask, image, part, box),
    done.resize(image, 16, 8, "fill"), done.resize(image, 16, 8, "crop"), done.resize(image, 9, 7),
    numpy_to_pil(random.rand(1, 8, 8, 3))[0],
    pt_to_pil(torch.rand(1, 3, 8, 8, generator=seeded(0)) * 2 - 1)[0])],
    done.preprocess(image, 16, 16, resize_mode="fill", crops_coords=box),
    done.preprocess([image, other], 16, 16, resize_mode="crop"),
    masks.preprocess(mask, 16, 16, resize_mode="fill", crops_coords=box),
    IPAdapterMaskProcessor().preprocess([mask, mask.transpose(Image.Transpose.ROTATE_180)]),
    IPAdapterMaskProcessor().preprocess([mask], height=16, width=24),
    done.get_default_height_width(image), done.get_default_height_width(image, 33))
""",
    "noise, steps and logs": """
import LIB
from LIB.schedulers import AysSchedules
from LIB.utils import logging
from LIB.utils.torch_utils import randn_tensor
LIB.logging.set_verbosity_error()
levels = [logging.get_verbosity()]
for say in (logging.set_verbosity_info, logging.set_verbosity_warning):
    say()
    levels.append(logging.get_verbosity())
logging.get_logger("script").info("nothing to see")
logging.disable_progress_bar()
shape, device = (2, 4, 3, 3), torch.device("cpu")
noise = [randn_tensor(shape, generator=one, device=device, dtype=torch.float32)
         for one in (seeded(0), [seeded(0), seeded(1)], [seeded(2)])]
before, steps = pipe.scheduler, AysSchedules["StableDiffusionTimesteps"]
pipe.scheduler = LIB.DPMSolverMultistepScheduler.from_config(before.config)
drawn = pipe("red", timesteps=steps[::3], generator=seeded(0), output_type="latent").images
pipe.scheduler = before
result = levels, torch.cat(noise), dict(AysSchedules), drawn
""",
    "schedulers swapped": """
import diffusers
from LIB import DPMSolverMultistepScheduler
before = pipe.scheduler
given = {"num_inference_steps": 3, "output_type": "latent"}
pipe.scheduler = DPMSolverMultistepScheduler.from_config(before.config, use_karras_sigmas=True)
first = pipe("red", generator=seeded(0), **given).images
pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
second = pipe("red", generator=seeded(0), **given)["images"]
pipe.scheduler = before
result = first, second
""",
    "switches, and every form of to": """
pipe.enable_attention_slicing()
pipe.disable_attention_slicing()
pipe.fuse_qkv_projections()
pipe.unfuse_qkv_projections()
pipe.vae.enable_slicing()
pipe.vae.disable_slicing()
for where in ("cpu", torch.device("cpu"), torch.float32):
    assert pipe.to(where) is pipe
pipe.to("cpu", torch.float32).to(device="cpu", dtype=torch.float32)
pipe.my_own = 3
result = pipe.my_own, pipe("red", num_inference_steps=1, generator=seeded(0), output_type="np").images
""",
    "a variant, a config, and processors of attention": """
import os, tempfile
from diffusers.models.attention_processor import AttnProcessor2_0
unet = pipe.unet
unet.set_attn_processor(AttnProcessor2_0())
unet.set_default_attn_processor()
with tempfile.TemporaryDirectory() as folder:
    pipe.save_pretrained(folder, variant="fp16")
    files = [sorted(os.listdir(f"{folder}/{name}")) for name in ("unet", "vae", "text_encoder")]
    again = type(pipe).from_pretrained(folder, variant="fp16", safety_checker=None)
    again.set_progress_bar_config(disable=True)
    latents = again("red", num_inference_steps=1, generator=seeded(0), output_type="latent").images
    unet.save_pretrained(save_directory=f"{folder}/one", variant="ema", max_shard_size="10GB")
    unet.save_config(f"{folder}/two")
    files += [sorted(os.listdir(f"{folder}/{name}")) for name in ("one", "two")]
    read = type(unet).load_config(f"{folder}/two")
here = type(unet).load_config(SD, subfolder="unet")
made = type(unet).from_config(here)
result = (files, latents, list(read["block_out_channels"]), here["in_channels"],
          made.num_parameters())
""",
    "models of any class": """
from LIB import AutoModel
unet = AutoModel.from_pretrained(SD, subfolder="unet", torch_dtype=torch.float16)
text_encoder = AutoModel.from_pretrained(SD, subfolder="text_encoder")
result = type(unet).__name__, str(unet.dtype), type(text_encoder).__name__, unet.config.in_channels
""",
    "pictures in and out of files": """
import tempfile
from PIL import Image
from LIB.utils import export_to_gif, load_image, make_image_grid
random = np.random.RandomState(0)
images = [Image.fromarray((random.rand(8, 8, 3) * 255).astype(np.uint8)) for _ in range(4)]
with tempfile.TemporaryDirectory() as folder:
    images[0].save(f"{folder}/a.png")
    images[0] = load_image(f"{folder}/a.png")
    with Image.open(export_to_gif(images, f"{folder}/a.gif", fps=5)) as gif:
        frames = gif.n_frames, gif.info["duration"], gif.info["loop"]
result = frames, np.asarray(make_image_grid(images, rows=2, cols=2)), images[0].mode
""",
}


@pytest.fixture(scope="module")
def folders(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import shutil

    base = tmp_path_factory.mktemp("face")
    made = {"SD": "words", "DDPM": "tiny"}
    return {
        name: str(make_gentle(Path(shutil.copytree(checkpoint(kind), base / kind))))
        for name, kind in made.items()
    }


@pytest.fixture(scope="module")
def pipes(folders: dict[str, str]) -> dict[Any, Any]:
    found = {}
    for library in (diffusers, perfuse):
        pipe = library.StableDiffusionPipeline.from_pretrained(
            folders["SD"],
            safety_checker=None,
            requires_safety_checker=False,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            local_files_only=True,
        )
        pipe.set_progress_bar_config(disable=True)
        found[library] = pipe
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_the_same_lines(name: str, folders: dict[str, str], pipes: dict[Any, Any]) -> None:
    theirs, ours = (
        run_lines(CASES[name], library, pipe=pipes[library], **folders)
        for library in (diffusers, perfuse)
    )
    check_same(theirs, ours)


def test_a_saved_checkpoint_opens_in_diffusers(folders: dict[str, str], tmp_path: Path) -> None:
    pipe = perfuse.DiffusionPipeline.from_pretrained(folders["SD"], safety_checker=None)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)
    pipe.save_pretrained(tmp_path)
    given = {"num_inference_steps": 2, "output_type": "latent"}
    drawn = []
    for library in (diffusers, perfuse):
        opened = library.DiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
        opened.set_progress_bar_config(disable=True)
        drawn.append(opened("red", generator=torch.Generator().manual_seed(0), **given).images)
    now = pipe("red", seed=0, **given).images
    assert float((drawn[0] - drawn[1]).abs().max()) <= CLOSE
    assert float((now - drawn[1]).abs().max()) <= CLOSE


def test_positions_are_those_of_diffusers() -> None:
    from perfuse.families.arguments import ARGUMENTS, CHECKED

    for name, ours in ARGUMENTS.items():
        theirs = getattr(diffusers, name)
        order = list(inspect.signature(theirs.__call__).parameters)[1:]
        assert list(ours) == order[: order.index("return_dict")], name
        returned = "StableDiffusionPipelineOutput" in inspect.getsource(theirs.__call__)
        checks = "nsfw_content_detected" in inspect.getsource(theirs.__call__)
        assert (name in CHECKED) == (returned and checks), name
    for name, manifest in host().pipelines().items():
        if hasattr(diffusers, name):
            order = list(inspect.signature(getattr(diffusers, name).__call__).parameters)[1:]
            assert list(manifest.arguments) == order[: order.index("return_dict")], name


@pytest.mark.filterwarnings("ignore")
def test_sizes_of_the_negative_prompt(checkpoint: Make) -> None:
    sizes = {
        "original_size": (32, 16),
        "crops_coords_top_left": (1, 2),
        "negative_original_size": (16, 64),
        "negative_crops_coords_top_left": (3, 4),
        "negative_target_size": (64, 16),
    }
    drawn = {}
    for library in (diffusers, perfuse):
        pipe = library.StableDiffusionXLPipeline.from_pretrained(
            checkpoint("sdxl"), add_watermarker=False
        )
        pipe.set_progress_bar_config(disable=True)
        given = {"num_inference_steps": 1, "output_type": "latent", **sizes}
        drawn[library] = pipe("red", generator=torch.Generator().manual_seed(0), **given).images
    difference = (drawn[diffusers] - drawn[perfuse]).abs().max()
    assert float(difference) <= 1e-4
    plain = pipe("red", seed=0, num_inference_steps=1, output_type="latent").images
    assert float((plain - drawn[perfuse]).abs().max()) > 1e-4


@pytest.mark.filterwarnings("ignore")
def test_a_controlnet_chooses_the_class(checkpoint: Make, tmp_path: Path) -> None:
    """``AutoPipelineFor…`` opens a plain checkpoint with a ControlNet as the class that has one."""
    import shutil

    from PIL import Image

    from perfuse_conformance.checkpoints import edit_json

    folder = Path(shutil.copytree(checkpoint("followed"), tmp_path / "plain"))
    shutil.move(folder / "controlnet", tmp_path / "controlnet")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    del index["controlnet"]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    make_gentle(folder)
    random = np.random.RandomState(0)
    one, two, mask = (
        Image.fromarray((random.rand(16, 16, 3) * 255).astype(np.uint8)) for _ in range(3)
    )
    calls: dict[str, dict[str, Any]] = {
        "Text2Image": {"image": one},
        "Image2Image": {"image": one, "control_image": two},
        "Inpainting": {"image": one, "control_image": two, "mask_image": mask},
    }
    for task, call in calls.items():
        drawn, names = [], []
        for library in (diffusers, perfuse):
            auto = getattr(library, f"AutoPipelineFor{task}")
            net = library.ControlNetModel.from_pretrained(tmp_path / "controlnet")
            pipe = auto.from_pretrained(folder, controlnet=net, safety_checker=None)
            pipe.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(0)
            given = {**call, "num_inference_steps": 3, "output_type": "latent"}
            drawn.append(pipe("red", generator=generator, **given).images)
            names.append(type(pipe).__name__)
        assert names[0] == names[1]
        assert float((drawn[0] - drawn[1]).abs().max()) <= CLOSE
    plain = perfuse.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    added = perfuse.AutoPipelineForText2Image.from_pipe(plain, controlnet=net)
    assert type(added).__name__ == "StableDiffusionControlNetPipeline"
