"""Modular pipelines: Diffusers' on an engine, as its documentation builds them, and native steps among its blocks."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("diffusers.modular_pipelines")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import transformers
from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise, denoise
from diffusers.modular_pipelines.stable_diffusion_xl import (
    modular_blocks_stable_diffusion_xl as modular_sdxl,
)
from PIL import Image

import perfuse
from perfuse import ArtifactStore, modular
from perfuse.errors import CheckpointError, InputError, NotNativeError
from perfuse.modular import (
    AutoPipelineBlocks,
    ComponentsManager,
    ComponentSpec,
    InputParam,
    InsertableDict,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)
from perfuse.sources.model_index import MODULAR
from perfuse_conformance.cases.adapters import write_adapter, write_image_encoder

Make = Callable[[str], Path]
ASKED: dict[str, Any] = {"prompt": "a red circle", "height": 64, "width": 64}
SHOWN: dict[str, Any] = {"output": "images", "output_type": "np"}
PICTURE = Image.fromarray((np.arange(64 * 64 * 3).reshape(64, 64, 3) // 48).astype(np.uint8))
MASK = Image.fromarray(np.repeat(np.arange(64, dtype=np.uint8)[None] * 4, 64, axis=0))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """Graphs that the tests of this file share."""
    return ArtifactStore(tmp_path_factory.mktemp("store"))


def blocks_of(preset: str) -> Any:
    return SequentialPipelineBlocks.from_blocks_dict(getattr(modular, preset))


def unet_config_of(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "unet" / "config.json").read_text())
    return {name: value for name, value in config.items() if not name.startswith("_")}


def opened(blocks: Any, folder: Path, **given: Any) -> Any:
    pipe = blocks.init_pipeline(str(folder), **given)
    pipe.load_components()
    return pipe


def draw(pipe: Any, **given: Any) -> Any:
    torch.manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(**{"num_inference_steps": 3, "generator": generator, **SHOWN, **given})


def ran(pipe: Any, name: str = "unet") -> Any:
    return {row.name: row for row in pipe.perfuse.report()}[name]


# ── Pipelines of Diffusers on an engine ─────────────────────────────────────────────────────────


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("preset", "given"),
    [
        ("TEXT2IMAGE_BLOCKS", ASKED),
        ("IMAGE2IMAGE_BLOCKS", {"prompt": "a dog", "image": PICTURE, "strength": 0.8}),
        (
            "INPAINT_BLOCKS",
            {**ASKED, "image": PICTURE, "mask_image": MASK, "strength": 0.85},
        ),
    ],
)
def test_presets_draw_on_an_engine_what_they_draw(
    preset: str, given: dict[str, Any], backend: str, checkpoint: Make, store: ArtifactStore
) -> None:
    pytest.importorskip(backend)
    pipe = blocks_of(preset).init_pipeline(str(checkpoint("sdxl")))
    perfuse.accelerate(pipe, backend, store=store)
    assert pipe.unet is None and "unet" in pipe.null_component_names
    pipe.load_components()
    drawn = draw(pipe, **given)
    assert (ran(pipe).torch_calls, ran(pipe, "vae_decode").torch_calls) == (0, 0)
    pipe.perfuse.restore()
    assert np.abs(drawn - draw(pipe, **given)).max() < 1e-3
    assert drawn.std() > 1e-2


@pytest.mark.export
@pytest.mark.exhaustive
def test_a_target_for_a_component_that_is_loaded_later(
    checkpoint: Make, store: ArtifactStore
) -> None:
    pipe = blocks_of("TEXT2IMAGE_BLOCKS").init_pipeline(str(checkpoint("sdxl")))
    with pytest.raises(InputError, match="A target was given for transformer"):
        perfuse.accelerate(pipe, "transformer=onnxruntime", store=store)
    perfuse.accelerate(pipe, "unet=onnxruntime", store=store)
    pipe.load_components(names=["unet", "vae"])
    pipe.load_components()
    first = draw(pipe, **ASKED)
    assert [row.name for row in pipe.perfuse.report()] == ["unet"]
    pipe.update_components(unet=diffusers.UNet2DConditionModel.from_config(pipe.unet.config).eval())
    other = draw(pipe, **ASKED)
    assert (ran(pipe).calls, ran(pipe).torch_calls) == (6, 0)
    pipe.perfuse.restore()
    assert np.abs(draw(pipe, **ASKED) - other).max() < 1e-3 < np.abs(first - other).max()


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_guiders_are_exchanged(engine: str, checkpoint: Make, store: ArtifactStore) -> None:
    pytest.importorskip(engine)
    plain = opened(blocks_of("TEXT2IMAGE_BLOCKS"), checkpoint("sdxl"))
    pipe = perfuse.accelerate(
        opened(blocks_of("TEXT2IMAGE_BLOCKS"), checkpoint("sdxl")), engine, store=store
    )
    usual = draw(pipe, **ASKED)
    config = diffusers.LayerSkipConfig(
        indices=[0],
        fqn="mid_block.attentions.0.transformer_blocks",
        skip_attention=False,
        skip_attention_scores=True,
        skip_ff=False,
    )
    perturbed = {
        "guidance_scale": 5.0,
        "perturbed_guidance_scale": 2.5,
        "perturbed_guidance_config": config,
        "perturbed_guidance_start": 0.0,
        "perturbed_guidance_stop": 1.0,
    }
    makes: list[Callable[[Any], Any]] = [
        lambda pipe: pipe.get_component_spec("guider").create(guidance_scale=10),
        lambda pipe: diffusers.AdaptiveProjectedGuidance(guidance_scale=6.0),
        lambda pipe: diffusers.PerturbedAttentionGuidance(**perturbed),
        lambda pipe: diffusers.ClassifierFreeGuidance(),
    ]
    for make in makes:
        for one in (pipe, plain):
            one.update_components(guider=make(one))
        drawn = draw(pipe, **ASKED)
        assert np.abs(drawn - draw(plain, **ASKED)).max() < 1e-3
        assert (
            isinstance(make(pipe), makes[-1](pipe).__class__) or np.abs(drawn - usual).max() > 1e-3
        )
    # What a guider perturbs by hooks, after the first step, runs on torch; nothing is captured again.
    assert (ran(pipe).graphs, ran(pipe).torch_calls) == (1, 2)
    assert "hook" in ran(pipe).reasons[0]


@pytest.mark.export
@pytest.mark.exhaustive
def test_a_components_manager_holds_models_once(checkpoint: Make, store: ArtifactStore) -> None:
    held = ComponentsManager()
    folder = checkpoint("sdxl")
    pipe = opened(
        blocks_of("TEXT2IMAGE_BLOCKS"), folder, components_manager=held, collection="test1"
    )
    perfuse.accelerate(pipe, "onnxruntime", store=store)
    first = draw(pipe, **ASKED)
    second = blocks_of("IMAGE2IMAGE_BLOCKS").init_pipeline(
        str(folder), components_manager=held, collection="test2"
    )
    second.update_components(**held.get_components_by_names(second.null_component_names))
    assert second.unet is pipe.unet is held.get_one(name="unet", collection="test1")
    perfuse.accelerate(second, "onnxruntime", store=store)
    draw(second, prompt="a dog", image=PICTURE, strength=0.8)
    assert ran(second).graphs == 1  # made for the first
    second.perfuse.restore()
    assert np.abs(draw(pipe, **ASKED) - first).max() < 1e-5
    assert ran(pipe).torch_calls == 0
    name = held.add("unet_2", diffusers.UNet2DConditionModel.from_config(pipe.unet.config))
    held.remove(name)


@pytest.mark.export
@pytest.mark.exhaustive
def test_components_by_their_specifications(
    checkpoint: Make, store: ArtifactStore, tmp_path: Path
) -> None:
    folder, kind = checkpoint("sdxl"), diffusers.UNet2DConditionModel
    other = kind.from_config(kind.load_config(folder, subfolder="unet"))
    other.save_pretrained(tmp_path / "unet")
    held = ComponentsManager()
    pipe, plain = (
        opened(blocks_of("TEXT2IMAGE_BLOCKS"), folder, components_manager=one, collection="sdxl")
        for one in (held, ComponentsManager())
    )
    perfuse.accelerate(pipe, "unet=onnxruntime", store=store)
    first = draw(pipe, **ASKED)
    spec = ComponentSpec(name="unet", repo=str(tmp_path), subfolder="unet", type_hint=kind)
    unet = spec.load()
    for one in (pipe, plain):
        one.update_components(unet=unet if one is pipe else spec.load())
    assert pipe.get_component_spec("unet").pretrained_model_name_or_path == str(tmp_path)
    second = draw(pipe, **ASKED)
    assert np.abs(second - draw(plain, **ASKED)).max() < 1e-3 < np.abs(second - first).max()
    assert (ran(pipe).calls, ran(pipe).torch_calls) == (6, 0)
    again = ComponentSpec.from_component("unet", unet).load()
    assert torch.equal(again.conv_in.weight, unet.conv_in.weight) and again is not unet
    # One model of a name in a collection: the later one takes the other's place.
    held.add("unet", again, collection="sdxl")
    assert held.get_one(name="unet*", collection="sdxl") is again
    changed = pipe.get_component_spec("unet")
    changed.pretrained_model_name_or_path = str(folder)
    pipe.update_components(unet=changed.load())
    assert np.abs(draw(pipe, **ASKED) - first).max() < 1e-5


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_saved_with_its_graphs(
    engine: str,
    checkpoint: Make,
    store: ArtifactStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(engine)
    blocks = diffusers.StableDiffusionXLAutoBlocks()
    pipe = opened(blocks, checkpoint("sdxl"))
    perfuse.accelerate(pipe, f"unet={engine},vae={engine}", store=store)
    drawn = draw(pipe, **ASKED)
    pipe.save_perfuse(tmp_path / "saved")
    alone = diffusers.ModularPipeline.from_pretrained(str(tmp_path / "saved"))
    alone.load_components(["unet"])  # by the index, from the folder
    assert alone.unet is not None
    shutil.move(tmp_path / "saved", tmp_path / "moved")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was captured")

    monkeypatch.setattr(torch.export, "export", refuse)
    again = perfuse.load_accelerated(tmp_path / "moved")
    assert np.abs(draw(again, **ASKED) - drawn).max() < 1e-5
    assert (ran(again).torch_calls, ran(again, "vae_decode").torch_calls) == (0, 0)


# ── Differential diffusion, as the quick start builds it ────────────────────────────────────────


class PrepareLatents(before_denoise.StableDiffusionXLImg2ImgPrepareLatentsStep):  # type: ignore[misc]
    """Noises the picture for every step, and makes a mask for each of a map of changes."""

    @property
    def expected_components(self) -> list[Any]:
        config = {"do_normalize": False, "do_convert_grayscale": True}
        processor = ComponentSpec(
            "mask_processor",
            diffusers.image_processor.VaeImageProcessor,
            config=diffusers.configuration_utils.FrozenDict(config),
            default_creation_method="from_config",
        )
        return [*super().expected_components, processor]

    @property
    def inputs(self) -> list[Any]:
        kept = [one for one in super().inputs if one.name not in ("latent_timestep", "latents")]
        return [
            *kept,
            InputParam("diffdiff_map", required=True),
            InputParam("timesteps", type_hint=torch.Tensor),
            InputParam("num_inference_steps", type_hint=int),
        ]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [
            OutputParam("latents"),
            OutputParam("original_latents"),
            OutputParam("diffdiff_masks"),
        ]

    def __call__(self, components: Any, state: Any) -> Any:
        block = self.get_block_state(state)
        latents, steps = block.image_latents, block.num_inference_steps
        noise = torch.randn(latents.shape, generator=block.generator)
        times = block.timesteps
        block.original_latents = torch.cat(
            [components.scheduler.add_noise(latents, noise, t[None]) for t in times]
        )
        height, width = latents.shape[-2:]
        changes = components.mask_processor.preprocess(block.diffdiff_map, height, width)
        thresholds = torch.arange(steps, dtype=changes.dtype) / steps
        block.diffdiff_masks = (changes.squeeze(1) > thresholds[:, None, None]).to(latents.dtype)
        block.latents = block.original_latents[:1]
        self.set_block_state(state, block)
        return components, state


class BeforeDenoiser(denoise.StableDiffusionXLLoopBeforeDenoiser):  # type: ignore[misc]
    """Puts back what the map does not change yet."""

    @property
    def inputs(self) -> list[Any]:
        return [
            *super().inputs,
            InputParam("original_latents", type_hint=torch.Tensor),
            InputParam("diffdiff_masks", type_hint=torch.Tensor),
        ]

    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> Any:
        if i > 0:
            mask = block_state.diffdiff_masks[i][None, None]
            block_state.latents = block_state.original_latents[i] * mask + block_state.latents * (
                1 - mask
            )
        return super().__call__(components, block_state, i=i, t=t)


class Denoise(denoise.StableDiffusionXLDenoiseLoopWrapper):  # type: ignore[misc]
    block_classes: ClassVar[list[Any]] = [
        BeforeDenoiser,
        denoise.StableDiffusionXLLoopDenoiser,
        denoise.StableDiffusionXLLoopAfterDenoiser,
    ]
    block_names: ClassVar[list[Any]] = ["before_denoiser", "denoiser", "after_denoiser"]

    @property
    def description(self) -> str:
        return "Differential diffusion."


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_differential_diffusion(engine: str, checkpoint: Make, store: ArtifactStore) -> None:
    pytest.importorskip(engine)
    named = modular.IMAGE2IMAGE_BLOCKS.copy()
    named["set_timesteps"] = modular.TEXT2IMAGE_BLOCKS["set_timesteps"]
    named["prepare_latents"] = PrepareLatents
    named["denoise"] = Denoise
    blocks = SequentialPipelineBlocks.from_blocks_dict(named)
    assert "diffdiff_map" in str(blocks.doc)
    pipe = opened(blocks, checkpoint("sdxl"), components_manager=ComponentsManager())
    perfuse.accelerate(pipe, engine, store=store)
    given = {"prompt": "a green pear", "image": PICTURE, "diffdiff_map": MASK}
    drawn = draw(pipe, **given)
    assert ran(pipe).torch_calls == 0
    pipe.perfuse.restore()
    assert np.abs(drawn - draw(pipe, **given)).max() < 1e-3


class DenoiseControlled(Denoise):
    block_classes: ClassVar[list[Any]] = [
        BeforeDenoiser,
        denoise.StableDiffusionXLControlNetLoopDenoiser,
        denoise.StableDiffusionXLLoopAfterDenoiser,
    ]


class DenoiseAuto(AutoPipelineBlocks):  # type: ignore[misc]
    block_classes: ClassVar[list[Any]] = [DenoiseControlled, Denoise]
    block_names: ClassVar[list[Any]] = ["controlnet_denoise", "denoise"]
    block_trigger_inputs: ClassVar[list[Any]] = ["controlnet_cond", None]

    @property
    def description(self) -> str:
        return "Differential diffusion, controlled where a picture says how."


@pytest.mark.export
@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_workflows_are_added(
    engine: str, checkpoint: Make, store: ArtifactStore, tmp_path: Path
) -> None:
    """An IP-Adapter and a ControlNet beside differential diffusion, chosen by what is given."""
    pytest.importorskip(engine)
    named = modular.IMAGE2IMAGE_BLOCKS.copy()
    named["set_timesteps"] = modular.TEXT2IMAGE_BLOCKS["set_timesteps"]
    named["prepare_latents"] = PrepareLatents
    named["denoise"] = DenoiseAuto
    named.insert("ip_adapter", modular_sdxl.StableDiffusionXLAutoIPAdapterStep, 0)
    at = list(named).index("denoise")
    named.insert("controlnet_input", modular_sdxl.StableDiffusionXLAutoControlNetInputStep, at)
    folder, config = checkpoint("sdxl"), unet_config_of(checkpoint("sdxl"))
    pipe = opened(SequentialPipelineBlocks.from_blocks_dict(named), folder)
    write_image_encoder(tmp_path / "image_encoder")
    file = write_adapter(tmp_path / "ip-adapter.safetensors", "plain", config)
    encoder = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "image_encoder")
    small = {"height": 24, "width": 24}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=small)
    of = {"conditioning_embedding_out_channels": (8, 16)}
    controlnet = diffusers.ControlNetModel.from_unet(pipe.unet, **of).eval()
    torch.manual_seed(1)
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipe.update_components(
        image_encoder=encoder, feature_extractor=processor, controlnet=controlnet
    )
    perfuse.accelerate(pipe, engine, store=store)
    usual: dict[str, Any] = {"prompt": "a pear", "image": PICTURE, "diffdiff_map": MASK}
    controlled = {**usual, "control_image": PICTURE, "controlnet_conditioning_scale": 0.5}
    drawn = [draw(pipe, **usual), draw(pipe, **controlled)]
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name)
    pipe.set_ip_adapter_scale(0.6)
    prompted = {**controlled, "ip_adapter_image": PICTURE}
    drawn.append(draw(pipe, **prompted))
    assert ran(pipe, "controlnet").calls == 12 and ran(pipe, "image_encoder").calls > 0
    assert all(
        row.torch_calls == 0 for row in pipe.perfuse.report() if row.name in ("unet", "controlnet")
    )
    pipe.perfuse.restore()
    assert np.abs(drawn[2] - draw(pipe, **prompted)).max() < 1e-3
    pipe.unload_ip_adapter()
    for one, given in zip(drawn, (usual, controlled), strict=False):
        assert np.abs(one - draw(pipe, **given)).max() < 1e-3
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.combinations(drawn, 2))


# ── A repository, and what the front door makes of it ───────────────────────────────────────────


def test_a_repository_from_the_front_door(checkpoint: Make, tmp_path: Path) -> None:
    """A saved guider comes with it; code runs only if it is trusted; what cannot be loaded is named."""
    folder = tmp_path / "repository"
    pipe = blocks_of("TEXT2IMAGE_BLOCKS").init_pipeline(str(checkpoint("sdxl")))
    pipe.save_pretrained(str(folder))
    diffusers.AdaptiveProjectedGuidance(guidance_scale=6.0).save_pretrained(str(tmp_path / "apg"))
    index = json.loads((folder / MODULAR).read_text())
    kind = ["diffusers", "AdaptiveProjectedGuidance"]
    index["guider"] = [None, None, {"pretrained_model_name_or_path": str(tmp_path)}]
    index["guider"][2] |= {"subfolder": "apg", "type_hint": kind, "revision": None, "variant": None}
    (folder / MODULAR).write_text(json.dumps(index))
    again = perfuse.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert again.guider.guidance_scale == 6.0 and again.unet.dtype is torch.float32
    assert draw(again, **ASKED, num_inference_steps=1).std() > 1e-2
    with pytest.raises(NotNativeError, match="is a modular pipeline of Diffusers"):
        perfuse.DiffusionPipeline.from_pretrained(folder, bridged=False)
    with pytest.raises(InputError, match="transformer was given; .* components"):
        perfuse.DiffusionPipeline.from_pretrained(folder, transformer=None)
    index["unet"][2]["pretrained_model_name_or_path"] = str(tmp_path / "nowhere")
    (folder / MODULAR).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="could not load unet from .*nowhere"):
        perfuse.DiffusionPipeline.from_pretrained(folder)
    own = {"auto_map": {"ModularPipelineBlocks": "block.Own"}}
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match=r"would run code of its own: block\.py"):
        perfuse.DiffusionPipeline.from_pretrained(folder)
    own["auto_map"]["ModularPipelineBlocks"] = "other/repository--block.Own"
    (folder / "config.json").write_text(json.dumps(own))
    with pytest.raises(InputError, match="code of another repository"):
        perfuse.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.export
@pytest.mark.exhaustive
def test_a_repository_on_the_command_line(checkpoint: Make, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from perfuse.cli import main

    folder, picture = tmp_path / "repository", tmp_path / "a.png"
    pipe = blocks_of("TEXT2IMAGE_BLOCKS").init_pipeline(str(checkpoint("sdxl")))
    pipe.save_pretrained(str(folder))
    said = CliRunner().invoke(main, ["inspect", "--model", str(folder), "--json"])
    found = json.loads(said.stdout)
    assert found["run"] == "bridged" and "unet" in found["components"]
    asked = (
        f"generate red --model {folder} --backend unet=onnxruntime --steps 1 --height 64 --width 64"
    )
    said = CliRunner().invoke(
        main, [*asked.split(), "--seed", "0", "--json", "--output", str(picture)]
    )
    assert said.exit_code == 0, said.stderr
    report = {row["name"]: row for row in json.loads(said.stdout)["components"]}
    assert report["unet"]["calls"] > 0 and Image.open(picture).size == (64, 64)


# ── Blocks of one's own, as the chapters write them ─────────────────────────────────────────────


class InputBlock(ModularPipelineBlocks):  # type: ignore[misc]
    @property
    def inputs(self) -> list[Any]:
        return [
            InputParam(name="prompt", type_hint=list, description="list of text prompts"),
            InputParam(name="num_images_per_prompt", type_hint=int, default=1),
        ]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(name="batch_size", description="calculated batch size")]

    @property
    def description(self) -> str:
        return "A block that determines batch_size."

    def __call__(self, components: Any, state: Any) -> Any:
        block = self.get_block_state(state)
        block.batch_size = len(block.prompt) * block.num_images_per_prompt
        self.set_block_state(state, block)
        return components, state


class Named(ModularPipelineBlocks):  # type: ignore[misc]
    """Says which of three workflows ran."""

    name, reads = "text2img", ("prompt",)

    @property
    def inputs(self) -> list[Any]:
        return [InputParam(name=name) for name in self.reads]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(name="ran")]

    @property
    def description(self) -> str:
        return self.name

    def __call__(self, components: Any, state: Any) -> Any:
        block = self.get_block_state(state)
        block.ran = self.name
        self.set_block_state(state, block)
        return components, state


class NamedImage(Named):
    name, reads = "img2img", ("prompt", "image")


class NamedMask(Named):
    name, reads = "inpaint", ("prompt", "image", "mask")


class AutoImage(AutoPipelineBlocks):  # type: ignore[misc]
    block_classes: ClassVar[list[Any]] = [NamedMask, NamedImage, Named]
    block_names: ClassVar[list[Any]] = ["inpaint", "img2img", "text2img"]
    block_trigger_inputs: ClassVar[list[Any]] = ["mask", "image", None]

    @property
    def description(self) -> str:
        return "inpaint where a mask is given, img2img where an image is, else text2img."


class Wrapper(LoopSequentialPipelineBlocks):  # type: ignore[misc]
    model_name = "test"

    @property
    def description(self) -> str:
        return "I'm a loop!!"

    @property
    def loop_inputs(self) -> list[Any]:
        return [InputParam(name="num_steps")]

    def __call__(self, components: Any, state: Any) -> Any:
        block_state = self.get_block_state(state)
        for i in range(block_state.num_steps):
            components, block_state = self.loop_step(components, block_state, i=i)
        self.set_block_state(state, block_state)
        return components, state


class LoopStep(ModularPipelineBlocks):  # type: ignore[misc]
    model_name = "test"

    @property
    def inputs(self) -> list[Any]:
        return [InputParam(name="x")]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(name="x")]

    @property
    def description(self) -> str:
        return "I'm used inside the loop."

    def __call__(self, components: Any, block_state: Any, i: int) -> Any:
        block_state.x += 1
        return components, block_state


def test_blocks_of_one_s_own() -> None:
    named = InsertableDict()
    named["auto"] = AutoImage()
    named.insert("input", InputBlock(), 0)
    named["loop"] = Wrapper.from_blocks_dict({"one": LoopStep(), "two": LoopStep()})
    blocks = SequentialPipelineBlocks.from_blocks_dict(named)
    assert list(blocks.sub_blocks) == ["input", "auto", "loop"]
    pipe = blocks.init_pipeline()
    state = pipe(prompt=["a", "b"], num_images_per_prompt=2, x=1, num_steps=10)
    assert (state.get("batch_size"), state.get("ran"), state.get("x")) == (4, "text2img", 21)
    given = {"prompt": ["a"], "x": 0, "num_steps": 1, "output": ["ran", "x"]}
    assert pipe(image=1, **given) == {"ran": "img2img", "x": 2}
    assert pipe(image=1, mask=1, **given) == {"ran": "inpaint", "x": 2}
    assert isinstance(AutoImage().get_execution_blocks(mask=True), NamedMask)
    assert "prompt" in blocks.doc and "I'm a loop!!" in str(blocks)


# ── Native steps among Diffusers' blocks ────────────────────────────────────────────────────────


class Darken(ModularPipelineBlocks):  # type: ignore[misc]
    """A block of the user's own, on what a native step gave."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam(name="decoded"), InputParam(name="darkness", default=0.5)]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(name="decoded")]

    @property
    def description(self) -> str:
        return "Darker pictures."

    def __call__(self, components: Any, state: Any) -> Any:
        block = self.get_block_state(state)
        block.decoded = (block.decoded + 1) * (1 - block.darkness) - 1
        self.set_block_state(state, block)
        return components, state


class Count(ModularPipelineBlocks):  # type: ignore[misc]
    """A block of the user's own in a native loop."""

    @property
    def inputs(self) -> list[Any]:
        return [InputParam(name="seen", default=())]

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam(name="seen")]

    @property
    def description(self) -> str:
        return "Notes the rounds."

    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> Any:
        block_state.seen = (*(block_state.seen or ()), i)
        return components, block_state


def test_a_native_task_as_blocks(checkpoint: Make) -> None:
    native = perfuse.DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    native.set_progress_bar_config(disable=True)
    blocks = modular.as_blocks(native.task)
    assert [one.name for one in blocks.expected_components] == ["native"]
    assert {"prompt", "seed", "guidance_scale"} <= set(blocks.input_names)
    assert not {"schedule", "index", "samples"} & set(blocks.input_names)
    given = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    expected = native("a red circle", **given).images

    def run(**more: Any) -> Any:
        pipe = blocks.init_pipeline()
        pipe.update_components(native=native)
        return pipe(prompt="a red circle", output=["images", "seeds", *more], **given)

    assert np.array_equal(run()["images"], expected)
    blocks.sub_blocks.pop("check_safety")
    blocks.sub_blocks.insert("darken", Darken(), list(blocks.sub_blocks).index("finish"))
    blocks.sub_blocks["denoise"].sub_blocks.insert("count", Count(), 3)
    found = run(seen=True)
    inside = expected < 1  # what is brighter than white was cut off
    assert np.abs(found["images"] - expected / 2)[inside].max() < 1e-6
    assert (found["seeds"], found["seen"]) == ((0,), (0, 1))


def test_guiders_of_diffusers_in_a_native_pipeline(checkpoint: Make) -> None:
    native = perfuse.DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    given = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    for name, settings in (
        ("ClassifierFreeGuidance", {"guidance_scale": 3.0, "use_original_formulation": True}),
        ("AdaptiveProjectedGuidance", {"guidance_scale": 4.0, "eta": 0.5}),
        ("SkipLayerGuidance", {"skip_layer_config": diffusers.LayerSkipConfig([0], "up_blocks")}),
    ):
        theirs, ours = (getattr(one, name)(**settings) for one in (diffusers, perfuse))
        found = [native("a red circle", guider=one, **given).images for one in (theirs, ours)]
        assert np.array_equal(*found)
    theirs = diffusers.ClassifierFreeGuidance(guidance_scale=9.0)
    theirs.disable()
    assert np.array_equal(
        native("a red circle", guider=theirs, **given).images,
        native("a red circle", guidance_scale=1.0, **given).images,
    )
    with pytest.raises(InputError, match=r"guider must be a perfuse.Guider"):
        native("a red circle", guider=diffusers.DDIMScheduler(), **given)


def test_choices_and_conditions_as_blocks() -> None:
    from perfuse import Choice, Input, Task, When, step

    @step(outputs=("y",))
    def double(tools: Any, x: int) -> dict[str, int]:
        return {"y": 2 * x}

    @step(outputs=("y",))
    def square(tools: Any, x: int, squared: bool) -> dict[str, int]:
        return {"y": x * x}

    @step(outputs=("y",))
    def negate(tools: Any, y: int) -> dict[str, int]:
        return {"y": -y}

    def negative(tools: Any, sign: int) -> bool:
        return sign < 0

    task = Task(
        name="numbers",
        inputs={"x": Input(default=3), "squared": Input(), "sign": Input(default=1)},
        steps=(
            Choice(name="pick", options=(("squared", square), (None, double))),
            When(name="maybe", condition=negative, then=negate),
        ),
    )
    pipe = modular.as_blocks(task).init_pipeline()
    assert (pipe(output="y"), pipe(squared=True, output="y"), pipe(sign=-1, output="y")) == (
        6,
        9,
        -6,
    )


def test_names_are_those_of_diffusers() -> None:
    for name in modular.__all__:
        assert getattr(modular, name) is not None
    assert modular.ModularPipeline is diffusers.ModularPipeline
    assert dir(modular) == sorted(modular.__all__)
    modular.TEXT2IMAGE_BLOCKS.pop("decode")
    assert "decode" in modular.TEXT2IMAGE_BLOCKS
    with pytest.raises(AttributeError, match="no attribute 'Blocks'"):
        modular.Blocks  # noqa: B018
