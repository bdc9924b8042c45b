"""Code around pipelines of each family, run with Diffusers' import and with perfuse's: the same results.

Module paths, loops and classes of one's own with the methods of Diffusers' classes, models by hand,
and what callbacks see and set.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image
from tests.oracle.pairs import check_same, make_gentle, run_lines

import perfuse
from perfuse.errors import InputError

pytestmark = pytest.mark.slow

Make = Callable[[str], Path]

#: What the lines begin with: a checkpoint's kind is opened, and left as it was by the last case.
CASES = {
    "module paths": """
import importlib
from LIB import ComponentsManager, ComponentSpec, ConfigSpec, LayerSkipConfig, ModelMixin, ModularPipeline
from LIB import UNetMotionModel
from LIB.callbacks import SDCFGCutoffCallback
from LIB.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from LIB.guiders import ClassifierFreeGuidance, PerturbedAttentionGuidance
from LIB.hooks import apply_first_block_cache
from LIB.image_processor import PipelineImageInput, VaeImageProcessor
from LIB.loaders import IPAdapterMixin, StableDiffusionLoraLoaderMixin
from LIB.models import AutoencoderKL, ImageProjection, UNet2DConditionModel
from LIB.models.attention_processor import AttnProcessor, AttnProcessor2_0
from LIB.models.autoencoders.vae import DiagonalGaussianDistribution
from LIB.models.controlnets.multicontrolnet import MultiControlNetModel
from LIB.models.modeling_utils import ModelMixin
from LIB.models.transformers.transformer_flux import FluxTransformer2DModel
from LIB.models.unets.unet_2d_condition import UNet2DConditionModel as Unet
from LIB.optimization import get_scheduler
from LIB.pipelines import FluxPipeline
from LIB.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from LIB.pipelines.stable_diffusion import StableDiffusionPipeline, StableDiffusionPipelineOutput
from LIB.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline as Pipe
from LIB.schedulers import DDIMScheduler, KarrasDiffusionSchedulers, SchedulerMixin
from LIB.schedulers.scheduling_ddim import DDIMScheduler as Ddim
from LIB.training_utils import compute_snr
from LIB.utils import BaseOutput, deprecate, is_torch_available, load_image
from LIB.utils.export_utils import export_to_video
from LIB.utils.torch_utils import is_compiled_module, randn_tensor
assert Pipe is StableDiffusionPipeline and Unet is UNet2DConditionModel and Ddim is DDIMScheduler
assert lib.pipelines.StableDiffusionPipeline is Pipe and lib.models.UNet2DConditionModel is Unet
assert lib.schedulers.DDIMScheduler is Ddim and lib.utils.load_image is load_image
unet = ComponentSpec(name="unet", repo=folder("sd1"), subfolder="unet", type_hint=Unet).load()
assert type(unet) is Unet and type(ComponentSpec.from_component("unet", unet).load()) is Unet
assert ClassifierFreeGuidance.__module__.startswith("diffusers")
result = (Pipe.__name__, [one.name for one in KarrasDiffusionSchedulers], hasattr(lib, "FooBar"),
          hasattr(lib.models, "FooBar"), hasattr(lib.schedulers, "foo"), hasattr(lib.utils, "foo"),
          importlib.util.find_spec("LIB.pipelines.nonsense") is None)
""",
    "functions of pipelines' files": """
from LIB import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from LIB.pipelines.flux.pipeline_flux import calculate_shift
from LIB.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
flow = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
result = [retrieve_timesteps(DDIMScheduler(), 4, "cpu"),
          retrieve_timesteps(EulerDiscreteScheduler(), timesteps=[900, 500, 100]),
          retrieve_timesteps(EulerDiscreteScheduler(), sigmas=[10.0, 3.0, 0.5]),
          retrieve_timesteps(flow, 4, mu=calculate_shift(256))]
""",
    "methods that schedulers have for themselves": """
from LIB import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
euler = EulerDiscreteScheduler()
euler.set_timesteps(5)
levels, three = np.log(np.array(euler.sigmas[:-1])[::-1]), np.array([10.0, 5.0, 0.1])
flow = FlowMatchEulerDiscreteScheduler(shift_terminal=0.1, use_dynamic_shifting=True)
solver = DPMSolverMultistepScheduler()
solver.set_timesteps(4)
x = torch.randn(1, 3, 4, 4, generator=seeded(0))
solver._init_step_index(solver.timesteps[1])
result = [euler._sigma_to_t(np.array([3.0]), levels),
          euler._convert_to_karras(in_sigmas=three, num_inference_steps=5),
          euler._convert_to_exponential(in_sigmas=three, num_inference_steps=5),
          flow.stretch_shift_to_terminal(torch.tensor([1.0, 0.5, 0.2])),
          flow.time_shift(1.0, 1.0, torch.tensor([0.5])), flow._sigma_to_t(0.5),
          solver._sigma_to_alpha_sigma_t(torch.tensor(2.0)), solver.step_index,
          solver.convert_model_output(x, sample=x * 2), solver._threshold_sample(x * 3)]
euler.step(x, euler.timesteps[0], x)
euler._step_index = None
result += [euler.step_index, euler.step(x, euler.timesteps[2], x).prev_sample, euler.step_index]
""",
    "a class with a call of its own": """
from LIB import StableDiffusionPipeline
from LIB.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
class Mine(StableDiffusionPipeline):
    @torch.no_grad()
    def __call__(self, prompt, steps, scale, generator):
        size = self.unet.config.sample_size * self.vae_scale_factor
        self.check_inputs(prompt, size, size, None)
        device = self._execution_device
        positive, negative = self.encode_prompt(prompt, device, 1, True)
        states = torch.cat([negative, positive])
        timesteps, steps = retrieve_timesteps(self.scheduler, steps, device)
        channels = self.unet.config.in_channels
        latents = self.prepare_latents(1, channels, size, size, states.dtype, device, generator)
        more = self.prepare_extra_step_kwargs(generator, 0.0)
        with self.progress_bar(total=steps) as bar:
            for t in timesteps:
                both = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
                out = self.unet(both, t, encoder_hidden_states=states, cross_attention_kwargs=None,
                                return_dict=False)[0]
                without, told = out.chunk(2)
                latents = self.scheduler.step(without + scale * (told - without), t, latents,
                                              **more, return_dict=False)[0]
                bar.update()
        image = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        image, found = self.run_safety_checker(image, device, states.dtype)
        self.maybe_free_model_hooks()
        signed = [not one for one in found]
        return self.image_processor.postprocess(image, output_type="pt", do_denormalize=signed)
pipe = Mine.from_pretrained(folder("sd1-checked"))
pipe.set_progress_bar_config(disable=True)
try:
    pipe.check_inputs(3, 16, 16, None)
    said = "nothing"
except ValueError as exc:
    said = str(exc)
result = pipe("red", 3, 5.0, seeded(0)), said
""",
    "FLUX's latents by hand": """
from LIB import FluxPipeline
pipe, size = opened("flux"), 128
pipe.vae_scale_factor
latents = pipe("red", height=size, width=size, num_inference_steps=2, max_sequence_length=16,
               generator=seeded(0), output_type="latent").images
with torch.no_grad():
    x = FluxPipeline._unpack_latents(latents, size, size, pipe.vae_scale_factor)
    again = pipe._pack_latents(x, *x.shape)
    x = x / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    image = pipe.vae.decode(x, return_dict=False)[0]
ids = pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
result = latents, torch.equal(again, latents), ids, pipe.image_processor.postprocess(image, "np")
""",
    "autoencoders by hand": """
result = []
with torch.no_grad():
    for kind, shape in {"sd1": (16, 16), "klein": (32, 32), "qwen-image": (1, 32, 32)}.items():
        vae, x = opened(kind).vae, torch.randn(2, 3, *shape, generator=seeded(0))
        first, second = vae.encode(x).latent_dist, vae.encode(x.flip(0), return_dict=False)[0]
        z = first.sample(seeded(1))
        result += [z, first.mode(), vae.decode(z).sample, vae.decode(z, return_dict=False)[0]]
        if kind != "qwen-image":
            result += [first.kl(), first.kl(second), first.nll(z), vae(x, generator=seeded(2))[0]]
    vae, x = opened("sana").vae, torch.randn(1, 3, 64, 64, generator=seeded(0))
    result += [vae.encode(x).latent, vae.decode(vae.encode(x)[0], return_dict=False)[0], vae(x).sample]
""",
    "half precision": """
pipe = opened("sd1", torch_dtype=torch.bfloat16)
seen = []
def look(pipe, index, timestep, tensors):
    seen.extend(one.dtype for one in tensors.values())
    tensors["latents"].mul_(1.0)
    return tensors
call = {"num_inference_steps": 2, "callback_on_step_end": look,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
latents = pipe("red", generator=seeded(0), output_type="latent", **call).images
states, negative = pipe.encode_prompt("red", "cpu", 1, True)
with torch.no_grad():
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
drawn = pipe(prompt_embeds=states, negative_prompt_embeds=negative, latents=latents,
             num_inference_steps=1, output_type="pt").images
shown = pipe.image_processor.postprocess(image, "pt")
result = [str(one) for one in (*seen, *(x.dtype for x in (latents, states, image, drawn, shown)))]
""",
    "masks in a callback": """
from LIB import StableDiffusionInpaintPipeline
result = []
for kind in ("sd1", "inpaint"):
    pipe, seen = opened(kind, "StableDiffusionInpaintPipeline"), []
    names = ["latents", "prompt_embeds", "mask"] + ["masked_image_latents"] * (kind == "inpaint")
    assert set(names) <= set(pipe._callback_tensor_inputs)
    def change(pipe, index, timestep, tensors):
        seen.append([one.clone() for one in tensors.values()])
        changed = {"mask": 1 - tensors["mask"]}
        if kind == "inpaint":
            changed["masked_image_latents"] = tensors["masked_image_latents"] * 0
        return changed if index == 1 else tensors
    call = {"strength": 1.0, "num_inference_steps": 4, "output_type": "latent",
            "callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names}
    result += [pipe("red", picture, mask, generator=seeded(0), **call).images, seen]
""",
    "pictures to follow in a callback": """
result = []
for name, given in {"": (picture,), "Inpaint": (picture, mask, other)}.items():
    pipe, seen = opened("followed", f"StableDiffusionControlNet{name}Pipeline"), []
    key = "control_image" if name else "image"
    def change(pipe, index, timestep, tensors):
        seen.append(tensors[key].clone())
        return {key: tensors[key].flip(-1)} if index == 0 else {}
    call = {"num_inference_steps": 3, "output_type": "latent", "callback_on_step_end": change,
            "callback_on_step_end_tensor_inputs": [key], "generator": seeded(0)}
    result += [pipe("red", *given, **call).images, seen]
""",
    "what a callback writes to": """
pipe = opened("sd1")
def write(pipe, index, timestep, tensors):
    for one in tensors.values():
        one.mul_(0.5 if index == 0 else 1.0)
    return {}
call = {"num_inference_steps": 3, "output_type": "latent", "callback_on_step_end": write}
result = [pipe("red", generator=seeded(0), callback_on_step_end_tensor_inputs=[name], **call).images
          for name in ("latents", "prompt_embeds")]
""",
    "conditions that run apart in a callback": """
result = []
for kind, call in {"flux": {"true_cfg_scale": 2.0}, "chroma": {}, "cogview4": {}}.items():
    pipe, seen = opened(kind), []
    def look(pipe, index, timestep, tensors):
        seen.append([one.clone() for one in tensors.values()])
        return {"prompt_embeds": tensors["prompt_embeds"] * 0.5} if index == 0 else {}
    call = {**call, "height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent",
            "max_sequence_length": 16, "callback_on_step_end": look,
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    result += [pipe("red", negative_prompt="blue", generator=seeded(0), **call).images, seen]
""",
    "latents and sizes of pictures to begin from": """
result = []
for kind, name, call in (
    ("sdxl", "StableDiffusionXLImg2ImgPipeline", {}),
    ("flux", "FluxImg2ImgPipeline", {"height": 32, "width": 32, "max_sequence_length": 16}),
    ("followed", "StableDiffusionControlNetImg2ImgPipeline", {"control_image": other}),
):
    pipe = opened(kind, name)
    call = {**call, "prompt": "red", "strength": 0.6, "num_inference_steps": 4, "image": picture,
            "output_type": "latent"}
    if kind == "flux":
        call["image"] = picture.resize((32, 32))
    latents = pipe(**call, generator=seeded(0)).images
    noisy = torch.randn(latents.shape, generator=seeded(5))
    result += [latents, pipe(**call, latents=noisy, generator=seeded(0)).images]
call = {**call, "image": picture.resize((32, 24)), "height": 16, "width": 16}
result.append(pipe(**call, generator=seeded(0)).images)
pipe = opened("z-image", "ZImageImg2ImgPipeline")
call = {"strength": 0.6, "num_inference_steps": 3, "max_sequence_length": 16, "output_type": "np"}
result.append(pipe("red", image=picture.resize((32, 32)), height=32, width=32,
                   generator=seeded(0), **call).images)
""",
    "adapters of a model": """
from LIB import UNet2DConditionModel
unet = UNet2DConditionModel.from_pretrained(folder("sd1"), subfolder="unet")
pipe = opened("sd1", unet=unet)
name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
width = unet.get_submodule(name).weight.shape[0]
def lora(seed, before=""):
    draw = seeded(seed)
    return {f"{before}{name}.lora_A.weight": torch.randn(4, width, generator=draw),
            f"{before}{name}.lora_B.weight": torch.randn(width, 4, generator=draw)}
def drawn():
    return pipe("red", num_inference_steps=2, output_type="latent", generator=seeded(0)).images
pipe.unet.load_lora_adapter(lora(1), prefix=None, adapter_name="one")
result = [drawn()]
pipe.unet.load_lora_adapter(lora(2, "unet."), prefix="unet", adapter_name="two")
for change in (lambda: pipe.unet.set_adapters(["one", "two"], [0.5, 0.7]), pipe.unet.disable_lora,
               pipe.unet.enable_lora, lambda: pipe.unet.set_adapter("two"),
               lambda: pipe.unet.set_adapters("one", {"mid": 0.25}), pipe.unet.disable_adapters,
               pipe.unet.enable_adapters, lambda: pipe.unet.delete_adapters("two"),
               lambda: pipe.unet.fuse_lora(0.5), pipe.unet.unfuse_lora, pipe.unet.unload_lora):
    change()
    result.append(drawn())
""",
    "a model that perfuse has not": """
import tempfile
from diffusers import AutoencoderKLWan
from LIB import AutoModel
with tempfile.TemporaryDirectory() as place:
    AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1] * 4, num_res_blocks=1).save_pretrained(place)
    result = type(AutoModel.from_pretrained(place)).__name__
""",
}


@pytest.fixture(scope="module")
def folder(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Copies of small checkpoints whose latents stay as small as those of trained ones."""
    import shutil

    base, made = tmp_path_factory.mktemp("own_code"), dict[str, str]()

    def find(kind: str) -> str:
        if kind not in made:
            copy = Path(shutil.copytree(checkpoint(kind), base / kind))
            made[kind] = str(make_gentle(copy) if (copy / "unet").exists() else copy)
        return made[kind]

    return find


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_the_same_lines(name: str, folder: Callable[[str], str]) -> None:
    results = []
    for library in (diffusers, perfuse):

        def opened(kind: str, class_name: str = "DiffusionPipeline", **given: Any) -> Any:
            given = given if kind == "sdxl" else {"safety_checker": None, **given}
            pipe = getattr(library, class_name).from_pretrained(folder(kind), **given)  # noqa: B023
            pipe.set_progress_bar_config(disable=True)
            return pipe

        pictures = {"picture": _picture(0), "other": _picture(1), "mask": _mask()}
        lines = CASES[name]
        results.append(
            run_lines(lines, library, lib=library, folder=folder, opened=opened, **pictures)
        )
    check_same(*results)


def _picture(seed: int) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _mask() -> Any:
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[4:10, 4:12] = 255
    return Image.fromarray(pixels)


def test_what_is_not_taken_is_said(checkpoint: Make) -> None:
    pipe = perfuse.DiffusionPipeline.from_pretrained(checkpoint("sd1"), safety_checker=None)
    x, states = torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, pipe.unet.config.cross_attention_dim)
    with pytest.raises(InputError, match="gligen was given, which perfuse's network does not take"):
        pipe.unet(x, 1, states, cross_attention_kwargs={"gligen": {}})
    with pytest.raises(InputError, match="of one frame was expected; got \\(1, 3, 2, 32, 32\\)"):
        vae = perfuse.DiffusionPipeline.from_pretrained(checkpoint("qwen-image")).vae
        vae.encode(torch.zeros(1, 3, 2, 32, 32))
    with pytest.raises(InputError, match="none of its names begin so, 'up.lora_A.weight' for one"):
        pipe.unet.load_lora_adapter({"up.lora_A.weight": x, "up.lora_B.weight": x}, prefix="unet")
    alone = perfuse.UNet2DConditionModel.from_pretrained(checkpoint("sd1"), subfolder="unet")
    with pytest.raises(InputError, match="Put the model into one, pipe.unet = unet"):
        alone.set_adapters("one")
    with pytest.raises(AttributeError, match="upcast_vae is left out of perfuse"):
        pipe.upcast_vae()
    with pytest.raises(AttributeError, match="has no 'set_attention_slice'"):
        pipe.set_attention_slice("auto")


def test_paths_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    monkeypatch.setattr("perfuse._diffusers.find_spec", lambda name: None)
    for name in [name for name in sys.modules if name.startswith("perfuse.pipelines")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(perfuse, "pipelines", raising=False)
    module = importlib.import_module("perfuse.pipelines.stable_diffusion")
    assert module.StableDiffusionPipeline is perfuse.StableDiffusionPipeline
    with pytest.raises(
        InputError, match="StableDiffusionPipelineOutput was asked for; it would be"
    ):
        module.StableDiffusionPipelineOutput  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'UNetMotionModel'"):
        perfuse.UNetMotionModel  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("perfuse.nonsense")
