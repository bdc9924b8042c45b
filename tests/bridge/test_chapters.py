"""What the chapters on modular pipelines show, run as they write it: with Diffusers' import, with perfuse's, and on an engine.

Checkpoints are small, steps few, and a folder stands where a chapter names a repository of the Hub.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("diffusers.modular_pipelines")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from diffusers.modular_pipelines import stable_diffusion_xl
from PIL import Image
from tests.oracle.pairs import run_lines

import perfuse
from perfuse import modular
from perfuse.bridge.patching import Patch
from perfuse.errors import InputError

Make = Callable[[str], Path]

#: What a chapter's lines begin with, where it goes on with what an earlier snippet made.
OPENED = """
from LIB import ComponentsManager
from LIB.modular_pipelines import SequentialPipelineBlocks
from LIB.modular_pipelines.stable_diffusion_xl import TEXT2IMAGE_BLOCKS

t2i_blocks = SequentialPipelineBlocks.from_blocks_dict(TEXT2IMAGE_BLOCKS)
components = ComponentsManager()
t2i_pipeline = t2i_blocks.init_pipeline(repo, components_manager=components)
"""
#: The other way to open one, which perfuse does itself.
GUIDED = """
from LIB import ComponentsManager, ModularPipeline

components = ComponentsManager()
t2i_pipeline = ModularPipeline.from_pretrained(repo, components_manager=components)
t2i_pipeline.load_components(torch_dtype=torch.float32)
"""
LOADED = f"{OPENED}t2i_pipeline.load_components(torch_dtype=torch.float32)\n"
ASKED = """
image = t2i_pipeline(prompt="a red circle", output="images", **few)[0]
"""

#: By chapter and section; ``few`` are small sizes, few steps and a seed.
CASES = {
    "modular pipeline: text to image": """
from LIB.modular_pipelines import SequentialPipelineBlocks
from LIB.modular_pipelines.stable_diffusion_xl import TEXT2IMAGE_BLOCKS

blocks = SequentialPipelineBlocks.from_blocks_dict(TEXT2IMAGE_BLOCKS)
pipeline = blocks.init_pipeline(repo)
pipeline.load_components(torch_dtype=torch.float32)
pipeline.to("cpu")
result = pipeline(prompt="a red circle, muted colors", output="images", **few)[0]
""",
    "modular pipeline: image to image": """
from LIB.modular_pipelines import SequentialPipelineBlocks
from LIB.modular_pipelines.stable_diffusion_xl import IMAGE2IMAGE_BLOCKS

blocks = SequentialPipelineBlocks.from_blocks_dict(IMAGE2IMAGE_BLOCKS)
pipeline = blocks.init_pipeline(repo)
pipeline.load_components(torch_dtype=torch.float32)
result = pipeline(prompt="a red circle", image=picture, strength=0.8, output="images", **few)[0]
""",
    "modular pipeline: inpainting": """
from LIB.modular_pipelines import SequentialPipelineBlocks
from LIB.modular_pipelines.stable_diffusion_xl import INPAINT_BLOCKS

blocks = SequentialPipelineBlocks.from_blocks_dict(INPAINT_BLOCKS)
pipeline = blocks.init_pipeline(repo)
pipeline.load_components(torch_dtype=torch.float32)
given = {"image": picture, "mask_image": mask, "strength": 0.85}
result = pipeline(prompt="a red circle", output="images", **given, **few)[0]
""",
    "modular pipeline: blocks are put in, taken out and exchanged": """
from LIB.modular_pipelines import ModularPipelineBlocks, OutputParam, SequentialPipelineBlocks
from LIB.modular_pipelines import InputParam
from LIB.modular_pipelines.stable_diffusion_xl import TEXT2IMAGE_BLOCKS as BLOCKS

class Halved(ModularPipelineBlocks):
    description = "Latents of half the size of their numbers."
    inputs = [InputParam("latents")]
    intermediate_outputs = [OutputParam("latents")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.latents = block_state.latents / 2
        self.set_block_state(state, block_state)
        return components, state

BLOCKS.insert("halved", Halved, 6)
t2i_blocks = SequentialPipelineBlocks.from_blocks_dict(BLOCKS)
said = [str(t2i_blocks), list(t2i_blocks.sub_blocks)]
text_encoder_block = t2i_blocks.sub_blocks.pop("text_encoder")
t2i_blocks.sub_blocks.insert("first", text_encoder_block, 0)
t2i_blocks.sub_blocks["halved"] = Halved()
pipeline = t2i_blocks.init_pipeline(repo)
pipeline.load_components()
halved = pipeline(prompt="a red circle", output="images", **few)[0]
BLOCKS.pop("halved")
result = [said, halved, list(BLOCKS), list(t2i_blocks.sub_blocks)]
""",
    "modular pipeline: from_pretrained": """
from LIB import ComponentsManager, ModularPipeline

components = ComponentsManager()
pipeline = ModularPipeline.from_pretrained(repo, components_manager=components)
before = list(pipeline.null_component_names)
pipeline.load_components(torch_dtype=torch.float32)
image = pipeline(prompt="a red circle", output="images", **few)[0]
result = [before, pipeline.null_component_names, image, sorted(components.components)[:0]]
""",
    "modular pipeline: from_pretrained of another checkpoint": """
from LIB import ModularPipeline

pipeline = ModularPipeline.from_pretrained(plain)
before = list(pipeline.null_component_names)
pipeline.load_components()
result = [before, pipeline(prompt="a red circle", output="images", **few)[0]]
""",
    "modular pipeline: a repository with its own blocks": """
from LIB import ComponentsManager, ModularPipeline

components = ComponentsManager()
pipeline = ModularPipeline.from_pretrained(own, trust_remote_code=True, components_manager=components)
pipeline.load_components()
result = [pipeline.blocks.description, pipeline(prompt="a red circle", output="images", **few)[0]]
""",
    "modular pipeline: loading": f"""{OPENED}
states = [list(t2i_pipeline.null_component_names)]
t2i_pipeline.load_components(names=["unet", "vae"], torch_dtype=torch.float32)
states += [t2i_pipeline.component_names, list(t2i_pipeline.null_component_names)]
states += [t2i_pipeline.pretrained_component_names, t2i_pipeline.config_component_names]
result = [states, repr(t2i_pipeline).replace(str(repo), "")]
""",
    "modular pipeline: a component of another repository": f"""
import json

index = json.loads((changed / "modular_model_index.json").read_text())
del index["unet"][2]["pretrained_model_name_or_path"]
index["unet"][2]["repo"] = str(other)
(changed / "modular_model_index.json").write_text(json.dumps(index))
repo = str(changed)
{LOADED}{ASKED}
result = image
""",
    "modular pipeline: updating": f"""{LOADED}{ASKED}
from LIB import ComponentSpec, UNet2DConditionModel

unet_spec = ComponentSpec(name="unet", type_hint=UNet2DConditionModel, repo=str(other), subfolder="unet")
unet2 = unet_spec.load(torch_dtype=torch.float32)
t2i_pipeline.update_components(unet=unet2)
second = t2i_pipeline(prompt="a red circle", output="images", **few)[0]
spec = ComponentSpec.from_component("unet", unet2)
unet2_recreated = spec.load(torch_dtype=torch.float32)
assert unet2_recreated is not unet2
unet_spec = t2i_pipeline.get_component_spec("unet")
at = unet_spec.pretrained_model_name_or_path
unet_spec.pretrained_model_name_or_path = plain
t2i_pipeline.update_components(unet=unet_spec.load(torch_dtype=torch.float32))
third = t2i_pipeline(prompt="a red circle", output="images", **few)[0]
result = [image, second, third, at, unet_spec.subfolder, unet_spec.default_creation_method]
""",
    "a block: inputs, outputs, components and configs": """
from LIB import ComponentSpec, ConfigSpec, EulerDiscreteScheduler
from LIB.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam

class Noised(ModularPipelineBlocks):
    model_name = "test"

    @property
    def description(self):
        return "Adds noise to a picture."

    @property
    def expected_components(self):
        return [ComponentSpec(name="scheduler", type_hint=EulerDiscreteScheduler, default_creation_method="from_config")]

    @property
    def expected_configs(self):
        return [ConfigSpec("force_zeros_for_empty_prompt", True)]

    @property
    def inputs(self):
        return [
            InputParam(name="image", type_hint="PIL.Image", description="raw input image to process"),
            InputParam(name="processed_image", type_hint="torch.Tensor", description="image that has been normalized"),
        ]

    @property
    def intermediate_outputs(self):
        return [OutputParam(name="image_latents", description="latents representing the image")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        scheduler = components.scheduler
        scheduler.set_timesteps(4)
        given = block_state.processed_image
        block_state.image_latents = scheduler.add_noise(given, torch.ones_like(given), scheduler.timesteps[1:2])
        self.set_block_state(state, block_state)
        return components, state

blocks = Noised()
pipeline = blocks.init_pipeline()
latents = pipeline(image=picture, processed_image=torch.ones(1, 3, 4, 4), output="image_latents")
result = [latents, pipeline.config.force_zeros_for_empty_prompt, blocks.doc, str(blocks)]
""",
    "automatic blocks": """
from LIB.modular_pipelines import AutoPipelineBlocks, InputParam, ModularPipelineBlocks

ran = []

class TextToImageBlock(ModularPipelineBlocks):
    model_name = "text2img"
    @property
    def inputs(self):
        return [InputParam(name="prompt")]
    @property
    def intermediate_outputs(self):
        return []
    @property
    def description(self):
        return "I'm a text-to-image workflow!"
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        ran.append("text2img")
        self.set_block_state(state, block_state)
        return components, state

class ImageToImageBlock(TextToImageBlock):
    model_name = "img2img"
    @property
    def inputs(self):
        return [InputParam(name="prompt"), InputParam(name="image")]
    def __call__(self, components, state):
        ran.append("img2img")
        return components, state

class InpaintBlock(TextToImageBlock):
    model_name = "inpaint"
    @property
    def inputs(self):
        return [InputParam(name="prompt"), InputParam(name="image"), InputParam(name="mask")]
    def __call__(self, components, state):
        ran.append("inpaint")
        return components, state

class AutoImageBlocks(AutoPipelineBlocks):
    block_classes = [InpaintBlock, ImageToImageBlock, TextToImageBlock]
    block_names = ["inpaint", "img2img", "text2img"]
    block_trigger_inputs = ["mask", "image", None]
    @property
    def description(self):
        return "Pipeline generates images given different types of conditions!"

auto_blocks = AutoImageBlocks()
pipeline = auto_blocks.init_pipeline()
pipeline(prompt="a")
pipeline(prompt="a", image=picture)
pipeline(prompt="a", image=picture, mask=mask)
chosen = auto_blocks.get_execution_blocks(mask=True)
result = [ran, type(chosen).__name__, str(auto_blocks), auto_blocks.doc]
""",
    "blocks in sequence": """
from LIB.modular_pipelines import InputParam, InsertableDict, ModularPipelineBlocks, OutputParam
from LIB.modular_pipelines import SequentialPipelineBlocks

class InputBlock(ModularPipelineBlocks):
    @property
    def inputs(self):
        return [
            InputParam(name="prompt", type_hint=list, description="list of text prompts"),
            InputParam(name="num_images_per_prompt", type_hint=int, description="number of images per prompt"),
        ]
    @property
    def intermediate_outputs(self):
        return [OutputParam(name="batch_size", description="calculated batch size")]
    @property
    def description(self):
        return "A block that determines batch_size."
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        batch_size = len(block_state.prompt)
        block_state.batch_size = batch_size * block_state.num_images_per_prompt
        self.set_block_state(state, block_state)
        return components, state

class ImageEncoderBlock(ModularPipelineBlocks):
    @property
    def inputs(self):
        return [
            InputParam(name="image", type_hint="PIL.Image", description="raw input image to process"),
            InputParam(name="batch_size", type_hint=int),
        ]
    @property
    def intermediate_outputs(self):
        return [OutputParam(name="image_latents", description="latents representing the image")]
    @property
    def description(self):
        return "Encode raw image into its latent presentation"
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.image = torch.randn(1, 3, 512, 512)
        block_state.batch_size = block_state.batch_size * 2
        block_state.image_latents = torch.randn(1, 4, 64, 64)
        self.set_block_state(state, block_state)
        return components, state

torch.manual_seed(0)
blocks_dict = InsertableDict()
blocks_dict["input"] = InputBlock()
blocks_dict["image_encoder"] = ImageEncoderBlock()
blocks = SequentialPipelineBlocks.from_blocks_dict(blocks_dict)
state = blocks.init_pipeline()(prompt=["a", "b"], num_images_per_prompt=2, image=picture)
found = [state.get(name) for name in ("batch_size", "image_latents", "image")]
result = [str(blocks), blocks.doc, found]
""",
    "blocks in a loop": """
from LIB.modular_pipelines import InputParam, LoopSequentialPipelineBlocks, ModularPipelineBlocks, OutputParam

class LoopWrapper(LoopSequentialPipelineBlocks):
    model_name = "test"
    @property
    def description(self):
        return "I'm a loop!!"
    @property
    def loop_inputs(self):
        return [InputParam(name="num_steps")]
    @torch.no_grad()
    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        for i in range(block_state.num_steps):
            components, block_state = self.loop_step(components, block_state, i=i)
        self.set_block_state(state, block_state)
        return components, state

class LoopBlock(ModularPipelineBlocks):
    model_name = "test"
    @property
    def inputs(self):
        return [InputParam(name="x")]
    @property
    def intermediate_outputs(self):
        return [OutputParam(name="x")]
    @property
    def description(self):
        return "I'm a block used inside the `LoopWrapper` class"
    def __call__(self, components, block_state, i: int):
        block_state.x += 1
        return components, block_state

loop = LoopWrapper.from_blocks_dict({"block1": LoopBlock()})
once = loop.init_pipeline()(num_steps=10, x=0, output="x")
loop = LoopWrapper.from_blocks_dict({"block1": LoopBlock(), "block2": LoopBlock()})
result = [once, loop.init_pipeline()(num_steps=10, x=0, output="x"), str(loop)]
""",
    "components manager: two pipelines": """
from LIB import ComponentsManager, ModularPipeline

comp = ComponentsManager()
pipe = ModularPipeline.from_pretrained(repo, components_manager=comp, collection="test1")
pipe.load_components()
pipe2 = ModularPipeline.from_pretrained(repo, components_manager=comp, collection="test2")
missing = list(pipe2.null_component_names)
comp_dict = comp.get_components_by_names(names=pipe2.null_component_names)
pipe2.update_components(**comp_dict)
assert pipe2.unet is pipe.unet
result = [missing, sorted(comp_dict), pipe2(prompt="a red circle", output="images", **few)[0]]
""",
    "components manager: one component": """
from LIB import AutoModel, ComponentsManager

comp = ComponentsManager()
text_encoder = AutoModel.from_pretrained(plain, subfolder="text_encoder")
component_id = comp.add("text_encoder", text_encoder)
unet = AutoModel.from_pretrained(plain, subfolder="unet")
comp.add("unet", unet, collection="sdxl")
assert comp.get_one(name="unet") is comp.get_one(name="unet*") is comp.get_one(name="!text_encoder") is unet
assert comp.get_one(name="unet|vae") is comp.get_one(name="unet", collection="sdxl") is unet
component_dict = comp.get_components_by_names(names=["text_encoder", "unet"])
told = "text_encoder" in repr(comp)
comp.remove(component_id)
result = [component_id.rpartition("_")[0], sorted(component_dict), told, len(comp.components)]
""",
    "components manager: the same twice, and collections": """
from LIB import AutoModel, ComponentsManager, ComponentSpec
from transformers import CLIPTextModel

comp = ComponentsManager()
spec = ComponentSpec(name="text_encoder", repo=plain, subfolder="text_encoder", type_hint=AutoModel)
spec_duplicated = ComponentSpec(name="text_encoder_duplicated", repo=plain, subfolder="text_encoder", type_hint=CLIPTextModel)
comp.add("text_encoder", spec.load())
comp.add("text_encoder_duplicated", spec_duplicated.load())
spec = ComponentSpec(name="unet", repo=plain, subfolder="unet", type_hint=AutoModel)
spec2 = ComponentSpec(name="unet", repo=str(other), subfolder="unet", type_hint=AutoModel)
comp.add("unet", spec.load(), collection="sdxl")
second = spec2.load()
comp.add("unet", second, collection="sdxl")
assert comp.get_one(name="unet", collection="sdxl") is second
result = sorted(name.rpartition("_")[0] for name in comp.components)
""",
    "guiders: exchanged": f"""{GUIDED}
before = t2i_pipeline.get_component_spec("guider")
from LIB import LayerSkipConfig, PerturbedAttentionGuidance

config = LayerSkipConfig(
    indices=[0], fqn="mid_block.attentions.0.transformer_blocks",
    skip_attention=False, skip_attention_scores=True, skip_ff=False,
)
guider = PerturbedAttentionGuidance(
    guidance_scale=5.0, perturbed_guidance_scale=2.5, perturbed_guidance_config=config,
    perturbed_guidance_start=0.0, perturbed_guidance_stop=1.0,
)
t2i_pipeline.update_components(guider=guider)
after = t2i_pipeline.get_component_spec("guider")
{ASKED}
shown = [(spec.type_hint.__name__, spec.default_creation_method) for spec in (before, after)]
result = [image, shown, before.config["guidance_scale"], after.config["guidance_scale"]]
""",
    "guiders: every one": f"""{GUIDED}
import LIB

result = []
for name, given in [
    ("ClassifierFreeGuidance", {{"guidance_scale": 3.0}}),
    ("AdaptiveProjectedGuidance", {{"guidance_scale": 6.0, "eta": 0.5}}),
    ("ClassifierFreeZeroStarGuidance", {{"guidance_scale": 4.0}}),
    ("TangentialClassifierFreeGuidance", {{"guidance_scale": 4.0}}),
]:
    t2i_pipeline.update_components(guider=getattr(LIB, name)(**given))
{ASKED.replace("image =", "    image =").strip(chr(10))}
    result.append(image)
""",
    "guiders: loaded": f"""
import json

index = json.loads((changed / "modular_model_index.json").read_text())
kind = ["diffusers", "PerturbedAttentionGuidance"]
index["guider"] = [None, None, {{"repo": str(changed), "revision": None, "subfolder": "pag_guider", "type_hint": kind, "variant": None}}]
(changed / "modular_model_index.json").write_text(json.dumps(index))
from LIB.guiders import PerturbedAttentionGuidance

PerturbedAttentionGuidance(guidance_scale=3.0, perturbed_guidance_layers=[0]).save_pretrained(str(changed / "pag_guider"))
repo = str(changed)
{OPENED}
assert t2i_pipeline.guider is None
t2i_pipeline.load_components()
result = [type(t2i_pipeline.guider).__name__, t2i_pipeline.guider.guidance_scale]
""",
    "guiders: their parameters": f"""{LOADED}
guider_spec = t2i_pipeline.get_component_spec("guider")
guider = guider_spec.create(guidance_scale=10)
t2i_pipeline.update_components(guider=guider)
{ASKED}
guider_spec = t2i_pipeline.get_component_spec("guider")
guider_spec.config["guidance_scale"] = 3
t2i_pipeline.update_components(guider=guider_spec.create())
result = [image, t2i_pipeline(prompt="a red circle", output="images", **few)[0]]
""",
    "guiders: saved and taken from there": f"""{LOADED}
from LIB.guiders import AdaptiveProjectedGuidance

guider = AdaptiveProjectedGuidance(guidance_scale=6.0)
guider.save_pretrained(str(changed / "apg"))
guider_spec = t2i_pipeline.get_component_spec("guider")
guider_spec.type_hint = AdaptiveProjectedGuidance
guider_spec.default_creation_method = "from_pretrained"
guider_spec.pretrained_model_name_or_path = str(changed)
guider_spec.subfolder = "apg"
apg = guider_spec.load()
t2i_pipeline.update_components(guider=apg)
{ASKED}
import json

t2i_pipeline.save_pretrained(str(changed / "all"))
index = json.loads((changed / "all" / "modular_model_index.json").read_text())
result = [image, apg.guidance_scale, index["guider"][2]["subfolder"]]
""",
    "states": f"""{LOADED}
from LIB.modular_pipelines import BlockState, PipelineState

state = PipelineState()
state.set("prompt", "a cat")
state.set("guidance_scale", 7.0)
block_state = BlockState(image=torch.zeros(1, 2))
block = t2i_blocks.sub_blocks["input"]
after = t2i_pipeline(prompt="a red circle", **few)
said = sorted(after.values)
result = [repr(state), repr(block_state), state.get("prompt"), said, after.get("images")]
""",
    "quick start: the preset, and how blocks are printed": """
from LIB.modular_pipelines import SequentialPipelineBlocks
from LIB.modular_pipelines.stable_diffusion_xl import IMAGE2IMAGE_BLOCKS, TEXT2IMAGE_BLOCKS

denoise_blocks = IMAGE2IMAGE_BLOCKS["denoise"]()
DIFFDIFF_BLOCKS = IMAGE2IMAGE_BLOCKS.copy()
DIFFDIFF_BLOCKS["set_timesteps"] = TEXT2IMAGE_BLOCKS["set_timesteps"]
dd_blocks = SequentialPipelineBlocks.from_blocks_dict(DIFFDIFF_BLOCKS)
from LIB.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl import StableDiffusionXLAutoIPAdapterStep

ip_adapter_block = StableDiffusionXLAutoIPAdapterStep()
dd_blocks.sub_blocks.insert("ip_adapter", ip_adapter_block, 0)
needed = [spec.name for spec in dd_blocks.expected_components]
result = [str(denoise_blocks), str(dd_blocks), dd_blocks.doc, needed]
""",
}

#: What a repository brings as its own blocks.
BLOCK = """
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise, decoders, denoise, encoders


class Inverted(ModularPipelineBlocks):
    description = "Latents of the other sign."
    inputs = [InputParam("latents")]
    intermediate_outputs = [OutputParam("latents")]

    def __call__(self, components, state):
        block_state = self.get_block_state(state)
        block_state.latents = -block_state.latents
        self.set_block_state(state, block_state)
        return components, state


class OwnBlocks(SequentialPipelineBlocks):
    model_name = "stable-diffusion-xl"
    block_classes = [
        encoders.StableDiffusionXLTextEncoderStep,
        before_denoise.StableDiffusionXLInputStep,
        before_denoise.StableDiffusionXLSetTimestepsStep,
        before_denoise.StableDiffusionXLPrepareLatentsStep,
        before_denoise.StableDiffusionXLPrepareAdditionalConditioningStep,
        Inverted,
        denoise.StableDiffusionXLDenoiseStep,
        decoders.StableDiffusionXLDecodeStep,
    ]
    block_names = ["text_encoder", "input", "set_timesteps", "latents", "add_cond", "inverted", "denoise", "decode"]

    @property
    def description(self):
        return "Stable Diffusion XL, from latents of the other sign."
"""


@pytest.fixture(scope="module", autouse=True)
def presets() -> Iterator[None]:
    """Diffusers with the presets that it had when the chapters were written."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TEXT2IMAGE_BLOCKS", "IMAGE2IMAGE_BLOCKS", "INPAINT_BLOCKS"):
            patch.setattr(stable_diffusion_xl, name, getattr(modular, name), raising=False)
        yield


@pytest.fixture(scope="module")
def found(checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """What a chapter's lines find: repositories, pictures, and how to draw quickly."""
    folder, plain = tmp_path_factory.mktemp("chapters"), checkpoint("sdxl")
    blocks = modular.SequentialPipelineBlocks.from_blocks_dict(modular.TEXT2IMAGE_BLOCKS)
    blocks.init_pipeline(str(plain)).save_pretrained(str(folder / "repo"))
    torch.manual_seed(1)
    kind = diffusers.UNet2DConditionModel
    kind.from_config(kind.load_config(plain, subfolder="unet")).save_pretrained(
        folder / "other/unet"
    )
    own = shutil.copytree(folder / "repo", folder / "own")
    (own / "block.py").write_text(BLOCK)
    config = {"_class_name": "OwnBlocks", "auto_map": {"ModularPipelineBlocks": "block.OwnBlocks"}}
    (own / "config.json").write_text(json.dumps(config))
    pixels = (np.arange(64 * 64 * 3).reshape(64, 64, 3) // 48).astype(np.uint8)
    times = itertools.count()

    def names() -> dict[str, Any]:
        changed = shutil.copytree(folder / "repo", folder / f"changed-{next(times)}")
        few = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
        return {
            "repo": str(folder / "repo"),
            "plain": str(plain),
            "other": folder / "other",
            "own": str(own),
            "changed": changed,
            "picture": Image.fromarray(pixels),
            "mask": Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None] * 4, 64, axis=0)),
            "few": {**few, "generator": torch.Generator().manual_seed(0)},
        }

    return names


def run(lines: str, library: Any, names: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return run_lines(lines, library, **names)


def same(theirs: Any, ours: Any) -> None:
    if isinstance(theirs, list | tuple):
        assert len(theirs) == len(ours)
        for one, other in zip(theirs, ours, strict=True):
            same(one, other)
    elif isinstance(theirs, np.ndarray | torch.Tensor):
        pair = [np.asarray(one, np.float64) for one in (theirs, ours)]
        assert pair[0].shape == pair[1].shape and np.abs(pair[0] - pair[1]).max() < 1e-3
    else:
        assert theirs == ours


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_with_the_import_changed(name: str, found: Callable[[], Any]) -> None:
    same(run(CASES[name], diffusers, found()), run(CASES[name], perfuse, found()))


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name", [name for name, lines in CASES.items() if "load_components" in lines]
)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_on_an_engine(
    name: str, engine: str, found: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(engine)
    expected = run(CASES[name], diffusers, found())
    accelerated: list[Any] = []
    with Patch(engine, None, accelerated.append):
        same(expected, run(CASES[name], diffusers, found()))
    rows = [row for one in accelerated for row in one.perfuse.report()]
    # What a guider perturbs by hooks runs on torch.
    assert all("hook" in reason for row in rows for reason in row.reasons)
    assert not any(row.torch_calls for row in rows) or name == "guiders: exchanged"


def test_what_a_modular_pipeline_refuses(found: Callable[[], Any]) -> None:
    names = found()
    pipe = perfuse.ModularPipeline.from_pretrained(names["repo"])
    assert pipe.unet is None
    with pytest.raises(InputError, match=r"none that computes the same; it takes AdaptiveProj"):
        pipe.update_components(guider=perfuse.SmoothedEnergyGuidance())
    with pytest.raises(InputError, match=r"skip_layer_guidance_layers=.*name the layers there by"):
        pipe.update_components(guider=perfuse.SkipLayerGuidance())
    with pytest.raises(
        InputError, match=r"torch_dtype was given; .*load_components takes the rest"
    ):
        perfuse.ModularPipeline.from_pretrained(names["repo"], torch_dtype=torch.float32)
    with pytest.raises(InputError, match=r"would run code of its own: block\.py"):
        perfuse.ModularPipeline.from_pretrained(names["own"])
