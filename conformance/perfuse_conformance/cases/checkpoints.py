"""Small random checkpoints in every layout that perfuse reads. They need no Diffusers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perfuse_conformance.cases.adapters import (
    EMBED,
    write_adapter,
    write_flux_adapter,
    write_image_encoder,
    write_sd3_adapter,
    write_siglip_encoder,
)
from perfuse_conformance.cases.checkpoint_parts import (
    adapter_config,
    controlnet_config,
    ddpm_config,
    dpt_config,
    edit_json,
    randomise,
    unet_config,
    union_config,
    vae_config,
    write_bert,
    write_bert_words,
    write_checker,
    write_json,
    write_model,
    write_processor,
    write_t5,
    write_text_encoder,
    write_tokenizer,
    write_word_pieces,
)
from perfuse_conformance.cases.language_checkpoints import (
    cogview4,
    klein,
    klein_distilled,
    lumina2,
    qwen_edit,
    qwen_edit_plus,
    qwen_image,
    qwen_image_21,
    sana,
    sana_sprint,
    z_image,
)

__all__ = ["IP_ADAPTERS", "KINDS", "make_checkpoint"]

#: The folder of a checkpoint with IP-Adapters, which no Diffusers checkpoint has of itself.
IP_ADAPTERS = "ip_adapters"
#: The safety checker's threshold of ``sd1-strict``: of the pictures of a draw some are black.
STRICT = 0.508


def make_checkpoint(folder: Path, kind: str = "sd1", *, seed: int = 0) -> Path:
    """Write a checkpoint of one of ``KINDS``. Return its folder.

    ``sd1`` and ``sd2`` (v-prediction), ``sdxl`` and its ``refiner``, ``lcm``, ``ddpm``; ``sd1-checked``
    with a safety checker, which objects to nothing, and ``sd1-strict`` with one that objects to some
    pictures. Models that look at pictures: ``inpaint``, ``pix2pix``, ``depth``, ``upscale``,
    ``variation``. With a part more: ``control`` (two ControlNets), ``adapter`` (a T2I-Adapter, and
    the tiny autoencoder), ``ip-adapter`` (two, in a folder of their own; ``flux-ip-adapter`` and
    ``sd3-ip-adapter`` have one); ``edited`` inpaints as a ControlNet says; ``union`` is XL with a
    ControlNet-Union. From pictures alone: ``unclip``, ``depth-estimated`` and ``latent-upscaler``. What
    is not about the UNet has a smaller one, as ``sd1-small`` has: with attention in the middle alone.

    Pictures are 16×16 (latents 8×8), text states 32 wide (XL: 64), prompts 77 tokens.
    """
    return _WRITERS[kind](Path(folder), seed)


_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


#: A UNet with attention in its middle alone, for a model that is about something else.
_SMALL: Mapping[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
}


def _sd1(folder: Path, seed: int, **unet: Any) -> Path:
    scheduler = {"_class_name": "DDIMScheduler", **_SCHEDULE, "clip_sample": False}
    scheduler["set_alpha_to_one"] = False
    _write_sd(folder, seed, unet_config(**unet), scheduler)
    return folder


def _small(folder: Path, seed: int, **unet: Any) -> Path:
    return _sd1(folder, seed, **_SMALL, **unet)


def _checked(folder: Path, seed: int) -> Path:
    _sd1(folder, seed)
    small = unet_config(
        block_out_channels=[16],
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
        mid_block_type=None,
    )
    write_model(folder / "unet", "UNet2DConditionModel", small, seed)
    write_checker(folder, seed=seed + 3)
    return folder


def _strict(folder: Path, seed: int) -> Path:
    _small(folder, seed)
    return write_checker(folder, seed=seed + 3, threshold=STRICT)


def _sd2(folder: Path, seed: int, **more: Any) -> Path:
    scheduler = {"_class_name": "DDIMScheduler", **_SCHEDULE, "clip_sample": False}
    scheduler |= {"set_alpha_to_one": False, "prediction_type": "v_prediction"}
    kind = {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}
    unet = unet_config(**kind, **more)
    _write_sd(folder, seed, unet, scheduler, hidden_act="gelu", eos_token_id=None)
    return folder


def _lcm(folder: Path, seed: int) -> Path:
    scheduler = {"_class_name": "LCMScheduler", **_SCHEDULE, "original_inference_steps": 50}
    _write_sd(folder, seed, unet_config(time_cond_proj_dim=16), scheduler)
    index = folder / "model_index.json"
    edit_json(
        index,
        _class_name="LatentConsistencyModelPipeline",
        scheduler=["diffusers", "LCMScheduler"],
    )
    return folder


def _control(folder: Path, seed: int) -> Path:
    _sd1(folder, seed)
    for i, name in enumerate(("controlnet", "controlnet_1")):
        config = controlnet_config(unet_config())
        write_model(folder / name, "ControlNetModel", config, seed + 4 + i)
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionControlNetPipeline",
        controlnet=["diffusers", "MultiControlNetModel"],
    )
    return folder


def _write_sd(
    folder: Path, seed: int, unet: Mapping[str, Any], scheduler: Mapping[str, Any], **text: Any
) -> None:
    write_model(folder / "unet", "UNet2DConditionModel", unet, seed)
    write_model(folder / "vae", "AutoencoderKL", vae_config(), seed + 1)
    size = write_tokenizer(folder / "tokenizer")
    write_text_encoder(folder / "text_encoder", "CLIPTextModel", size, seed + 2, **text)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)


def _sdxl(folder: Path, seed: int, **more: Any) -> Path:
    base = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    }
    unet = unet_config(**{**base, **more})
    write_model(folder / "unet", "UNet2DConditionModel", unet, seed)
    write_model(folder / "vae", "AutoencoderKL", vae_config(scaling_factor=0.13025), seed + 1)
    size = write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad_token="!")
    write_text_encoder(folder / "text_encoder", "CLIPTextModel", size, seed + 2)
    write_text_encoder(
        folder / "text_encoder_2",
        "CLIPTextModelWithProjection",
        size,
        seed + 3,
        hidden_act="gelu",
        projection_dim=32,
        eos_token_id=None,
    )
    scheduler = {"_class_name": "EulerDiscreteScheduler", **_SCHEDULE}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _ddpm(folder: Path, seed: int) -> Path:
    write_model(folder / "unet", "UNet2DModel", ddpm_config(), seed)
    scheduler = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "clip_sample": True}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _of_class(folder: Path, class_name: str, **index: Any) -> Path:
    edit_json(folder / "model_index.json", _class_name=class_name, **index)
    return folder


def _inpaint(folder: Path, seed: int) -> Path:
    """Of the UNet's channels five are a mask and a masked picture."""
    return _of_class(_small(folder, seed, in_channels=9), "StableDiffusionInpaintPipeline")


def _pix2pix(folder: Path, seed: int) -> Path:
    """Of the UNet's channels four are a picture."""
    return _of_class(_small(folder, seed, in_channels=8), "StableDiffusionInstructPix2PixPipeline")


def _depth(folder: Path, seed: int) -> Path:
    """One of the UNet's channels is the depth."""
    return _of_class(
        _sd2(folder, seed, **_SMALL, in_channels=5), "StableDiffusionDepth2ImgPipeline"
    )


def _upscale(folder: Path, seed: int) -> Path:
    """Of the UNet's channels three are a picture, and its class is how noisy that is."""
    _sd2(folder, seed, **_SMALL, in_channels=7, num_class_embeds=1000)
    levels = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
    write_json(folder / "low_res_scheduler" / "scheduler_config.json", levels)
    return _of_class(
        folder,
        "StableDiffusionUpscalePipeline",
        low_res_scheduler=["diffusers", "DDPMScheduler"],
        max_noise_level=350,
    )


def _variation(folder: Path, seed: int) -> Path:
    """An image encoder in place of the text encoder."""
    _small(folder, seed)
    write_image_encoder(folder / "image_encoder", projection_dim=32, seed=seed + 4)
    write_processor(folder)
    return _of_class(
        folder,
        "StableDiffusionImageVariationPipeline",
        text_encoder=...,
        tokenizer=...,
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )


def _edited(folder: Path, seed: int) -> Path:
    """A mask and a masked picture, and a ControlNet, which reads the latents alone."""
    _small(folder, seed, in_channels=9)
    net = controlnet_config(unet_config(**_SMALL))
    write_model(folder / "controlnet", "ControlNetModel", net, seed + 4)
    return _of_class(
        folder,
        "StableDiffusionControlNetInpaintPipeline",
        controlnet=["diffusers", "ControlNetModel"],
    )


def _adapter(folder: Path, seed: int) -> Path:
    _sd1(folder, seed)
    write_model(folder / "adapter", "T2IAdapter", adapter_config(), seed + 4)
    tiny = {
        "encoder_block_out_channels": [16, 16],
        "decoder_block_out_channels": [16, 16],
        "num_encoder_blocks": [1, 2],
        "num_decoder_blocks": [2, 1],
    }
    write_model(folder / "vae", "AutoencoderTiny", tiny, seed + 1)
    return _of_class(
        folder,
        "StableDiffusionAdapterPipeline",
        adapter=["diffusers", "T2IAdapter"],
        vae=["diffusers", "AutoencoderTiny"],
    )


def _ip_adapter(folder: Path, seed: int) -> Path:
    """Two adapters: one that reads an image's embedding, and one that reads its states."""
    _sd1(folder, seed)
    write_image_encoder(folder / "image_encoder", seed=seed + 4)
    write_processor(folder)
    for i, kind in enumerate(("plain", "plus")):
        file = folder / IP_ADAPTERS / f"{kind}.safetensors"
        write_adapter(file, kind, unet_config(), seed + 5 + i)
    edit_json(
        folder / "model_index.json",
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )
    return folder


def _refiner(folder: Path, seed: int) -> Path:
    """The second of XL's text encoders alone, and five time ids, the last of them the score."""
    _sdxl(folder, seed, cross_attention_dim=32, projection_class_embeddings_input_dim=32 + 5 * 8)
    return _of_class(
        folder,
        "StableDiffusionXLImg2ImgPipeline",
        text_encoder=[None, None],
        tokenizer=[None, None],
        requires_aesthetics_score=True,
    )


def _unclip(folder: Path, seed: int) -> Path:
    """The UNet is told a picture's noisy embedding, and how noisy it is."""
    import torch

    import perfuse.models

    told = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * EMBED}
    _small(folder, seed, **told)
    write_image_encoder(folder / "image_encoder", seed=seed + 4)
    write_processor(folder)
    normalizer = perfuse.models.StableUnCLIPImageNormalizer(embedding_dim=EMBED)
    with torch.no_grad():
        randomise(normalizer, seed + 5).std.abs_().add_(0.5)
    normalizer.save_pretrained(folder / "image_normalizer")
    levels = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
    write_json(folder / "image_noising_scheduler" / "scheduler_config.json", levels)
    return _of_class(
        folder,
        "StableUnCLIPImg2ImgPipeline",
        requires_safety_checker=...,
        safety_checker=...,
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        image_normalizer=["stable_diffusion", "StableUnCLIPImageNormalizer"],
        image_noising_scheduler=["diffusers", "DDPMScheduler"],
    )


def _estimated(folder: Path, seed: int) -> Path:
    """Stable Diffusion 2's depth model in small; pictures are 64×64 for its estimator."""
    import torch

    import perfuse.models

    scheduler = {"_class_name": "DDIMScheduler", **_SCHEDULE, "clip_sample": False}
    scheduler["set_alpha_to_one"] = False
    _write_sd(folder, seed, unet_config(in_channels=5), scheduler)
    estimator = randomise(perfuse.models.DPTForDepthEstimation(**dpt_config()), seed + 3)
    with torch.no_grad():
        estimator.head.head[4].bias += 1  # depth is nowhere below zero, and should not be zero
    estimator.save_pretrained(folder / "depth_estimator")
    processor = {"feature_extractor_type": "DPTFeatureExtractor", "size": 64, "resample": 2}
    write_json(folder / "feature_extractor" / "preprocessor_config.json", processor)
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionDepth2ImgPipeline",
        depth_estimator=["transformers", "DPTForDepthEstimation"],
        feature_extractor=["transformers", "DPTFeatureExtractor"],
        requires_safety_checker=...,
        safety_checker=...,
    )
    return folder


def _latent_upscaler(folder: Path, seed: int) -> Path:
    """The latent upscaler's layout (its UNet has widths 384 and 768, and four levels)."""
    scheduler = {"_class_name": "EulerDiscreteScheduler", **_SCHEDULE, "prediction_type": "sample"}
    unet = unet_config(
        sample_size=16,
        in_channels=8,
        out_channels=5,
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=[32, 64, 64],
        time_cond_proj_dim=128 + 32,
        conv_in_kernel=1,
        conv_out_kernel=1,
        down_block_types=["KDownBlock2D", *["KCrossAttnDownBlock2D"] * 2],
        up_block_types=[*["KCrossAttnUpBlock2D"] * 2, "KUpBlock2D"],
        mid_block_type=None,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
    )
    _write_sd(folder, seed, unet, scheduler)
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionLatentUpscalePipeline",
        feature_extractor=...,
        requires_safety_checker=...,
        safety_checker=...,
    )
    return folder


def _flux(folder: Path, seed: int, **fields: Any) -> Path:
    """FLUX.1 dev; pictures are in multiples of 4 pixels, two by two latents a token."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "guidance_embeds": True,
        "axes_dims_rope": [4, 4, 8],
        **fields,
    }
    write_model(folder / "transformer", "FluxTransformer2DModel", config, seed)
    _write_flow(folder, seed, use_dynamic_shifting=True, shift=3.0)
    size = write_tokenizer(folder / "tokenizer")
    write_text_encoder(folder / "text_encoder", "CLIPTextModel", size, seed + 2, eos_token_id=None)
    write_t5(folder / "text_encoder_2", write_word_pieces(folder / "tokenizer_2"), seed + 3)
    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": "0.42.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _schnell(folder: Path, seed: int) -> Path:
    return _flux(folder, seed, guidance_embeds=False)


def _fill(folder: Path, seed: int) -> Path:
    """Of the transformer's channels 16 are of a masked picture, and 16 of the mask's pixels."""
    _flux(folder, seed, in_channels=48, out_channels=16)
    return _of_class(folder, "FluxFillPipeline")


def _kontext(folder: Path, seed: int) -> Path:
    return _of_class(_flux(folder, seed), "FluxKontextPipeline")


def _chroma(folder: Path, seed: int) -> Path:
    """FLUX.1's blocks and latents, modulated by a small network; T5 alone."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": [4, 4, 8],
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 24,
        "approximator_layers": 2,
    }
    write_model(folder / "transformer", "ChromaTransformer2DModel", config, seed)
    _write_flow(folder, seed, use_dynamic_shifting=True)
    write_t5(folder / "text_encoder", write_word_pieces(folder / "tokenizer"), seed + 2)
    index = {
        "_class_name": "ChromaPipeline",
        "_diffusers_version": "0.42.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "ChromaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _sd3(folder: Path, seed: int, **fields: Any) -> Path:
    """Stable Diffusion 3.5: a dual block, normalised queries and keys; T5 after two CLIPs."""
    config = {
        "sample_size": 16,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 80,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 24,
        "dual_attention_layers": [0],
        "qk_norm": "rms_norm",
        **fields,
    }
    write_model(folder / "transformer", "SD3Transformer2DModel", config, seed)
    _write_flow(folder, seed, channels=16, shift=3.0)
    kind = "CLIPTextModelWithProjection"
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.42.0",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for i, end in enumerate(("", "_2")):
        size = write_tokenizer(folder / f"tokenizer{end}")
        write_text_encoder(
            folder / f"text_encoder{end}", kind, size, seed + 2 + i, eos_token_id=None
        )
        index |= {f"text_encoder{end}": ["transformers", kind]}
        index |= {f"tokenizer{end}": ["transformers", "CLIPTokenizer"]}
    size = write_word_pieces(folder / "tokenizer_3")
    write_t5(folder / "text_encoder_3", size, seed + 4, d_model=80)
    write_json(folder / "model_index.json", index)
    return folder


def _flux_ip_adapter(folder: Path, seed: int) -> Path:
    """FLUX.1 with an adapter in XLabs' layout."""
    _flux(folder, seed)
    write_image_encoder(folder / "image_encoder", seed=seed + 4)
    write_processor(folder)
    return _with_adapter(folder, "CLIP", write_flux_adapter, seed + 5)


def _sd3_ip_adapter(folder: Path, seed: int) -> Path:
    """Stable Diffusion 3.5 with an adapter in InstantX's layout, whose pictures SigLIP sees."""
    _sd3(folder, seed)
    write_siglip_encoder(folder / "image_encoder", seed=seed + 5)
    processor = folder / "image_encoder" / "preprocessor_config.json"
    (folder / "feature_extractor").mkdir()
    processor.rename(folder / "feature_extractor" / processor.name)
    return _with_adapter(folder, "Siglip", write_sd3_adapter, seed + 6)


def _with_adapter(folder: Path, kind: str, write: Callable[..., Path], seed: int) -> Path:
    """A checkpoint with a transformer's adapter and the image encoder of a kind."""
    config = json.loads((folder / "transformer" / "config.json").read_text("utf-8"))
    write(folder / IP_ADAPTERS / "plain.safetensors", config, seed)
    model = {"CLIP": "CLIPVisionModelWithProjection", "Siglip": "SiglipVisionModel"}[kind]
    edit_json(
        folder / "model_index.json",
        image_encoder=["transformers", model],
        feature_extractor=["transformers", f"{kind}ImageProcessor"],
    )
    return folder


def _without_t5(folder: Path, seed: int) -> Path:
    nothing = {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    plain = _sd3(folder, seed, dual_attention_layers=[], qk_norm=None)
    return _of_class(plain, "StableDiffusion3Pipeline", **nothing)


def _pixart(folder: Path, seed: int, **fields: Any) -> Path:
    """PixArt-α, which is told the picture's size; its pictures are 256×256 by default."""
    config = {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "cross_attention_dim": 24,
        "caption_channels": 32,
        **fields,
    }
    write_model(folder / "transformer", "PixArtTransformer2DModel", config, seed)
    write_model(folder / "vae", "AutoencoderKL", vae_config(), seed + 1)
    write_t5(folder / "text_encoder", write_word_pieces(folder / "tokenizer"), seed + 2)
    scheduler = {"_class_name": "DPMSolverMultistepScheduler", **_SCHEDULE}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "PixArtAlphaPipeline",
        "_diffusers_version": "0.42.0",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _aura(folder: Path, seed: int) -> Path:
    """AuraFlow, whose text encoder is a UMT5."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 256,
    }
    write_model(folder / "transformer", "AuraFlowTransformer2DModel", config, seed)
    write_model(folder / "vae", "AutoencoderKL", vae_config(), seed + 1)
    size = write_word_pieces(folder / "tokenizer")
    write_t5(folder / "text_encoder", size, seed + 2, family="UMT5")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.73}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "AuraFlowPipeline",
        "_diffusers_version": "0.42.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "AuraFlowTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _dit(folder: Path, seed: int) -> Path:
    """DiT, of a thousand classes."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
    }
    write_model(folder / "transformer", "DiTTransformer2DModel", config, seed)
    write_model(folder / "vae", "AutoencoderKL", vae_config(), seed + 1)
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": False}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": "0.42.0",
        "id2label": {"0": "red circle, ring", "1": "blue square"},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _hunyuan(folder: Path, seed: int, **fields: Any) -> Path:
    """Hunyuan-DiT, whose text encoders are a BERT and a T5; eight pixels a latent, as it counts on."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "hidden_size": 32,
        "cross_attention_dim": 24,
        "cross_attention_dim_t5": 32,
        "pooled_projection_dim": 16,
        **fields,
    }
    write_model(folder / "transformer", "HunyuanDiT2DModel", config, seed)
    vae = vae_config(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 16, 16],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025,
    )
    write_model(folder / "vae", "AutoencoderKL", vae, seed + 1)
    write_bert(folder / "text_encoder", write_bert_words(folder / "tokenizer"), seed + 2)
    write_t5(folder / "text_encoder_2", write_word_pieces(folder / "tokenizer_2"), seed + 3)
    scheduler = {"_class_name": "DDPMScheduler", **_SCHEDULE, "beta_end": 0.03}
    scheduler |= {"clip_sample": False, "prediction_type": "v_prediction"}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "HunyuanDiTPipeline",
        "_diffusers_version": "0.42.0",
        "feature_extractor": [None, None],
        "requires_safety_checker": True,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "BertModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "HunyuanDiT2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    return folder


def _sigma(folder: Path, seed: int) -> Path:
    return _of_class(_pixart(folder, seed, sample_size=16), "PixArtSigmaPipeline")


def _write_flow(folder: Path, seed: int, *, channels: int = 4, **scheduler: Any) -> None:
    """An autoencoder with a shift and without the layers around its latents, and a flow's scheduler."""
    vae = vae_config(
        latent_channels=channels,
        shift_factor=0.06,
        scaling_factor=1.5,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    write_model(folder / "vae", "AutoencoderKL", vae, seed + 1)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler}
    write_json(folder / "scheduler" / "scheduler_config.json", config)


def _union(folder: Path, seed: int) -> Path:
    _sdxl(folder, seed)
    unet = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    config = {name: value for name, value in unet.items() if not name.startswith("_")}
    write_model(folder / "controlnet", "ControlNetUnionModel", union_config(config), seed + 4)
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionXLControlNetUnionPipeline",
        controlnet=["diffusers", "ControlNetUnionModel"],
    )
    return folder


_WRITERS: Mapping[str, Callable[[Path, int], Path]] = MappingProxyType(
    {
        "sd1": _sd1,
        "sd1-small": _small,
        "sd1-checked": _checked,
        "sd1-strict": _strict,
        "sd2": _sd2,
        "sdxl": _sdxl,
        "refiner": _refiner,
        "lcm": _lcm,
        "ddpm": _ddpm,
        "inpaint": _inpaint,
        "pix2pix": _pix2pix,
        "depth": _depth,
        "upscale": _upscale,
        "variation": _variation,
        "control": _control,
        "union": _union,
        "edited": _edited,
        "adapter": _adapter,
        "ip-adapter": _ip_adapter,
        "unclip": _unclip,
        "depth-estimated": _estimated,
        "latent-upscaler": _latent_upscaler,
        "flux": _flux,
        "flux-schnell": _schnell,
        "flux-ip-adapter": _flux_ip_adapter,
        "pixart": _pixart,
        "pixart-sigma": _sigma,
        "aura-flow": _aura,
        "dit": _dit,
        "hunyuan-dit": _hunyuan,
        "sd3": _sd3,
        "sd3-without-t5": _without_t5,
        "sd3-ip-adapter": _sd3_ip_adapter,
        "flux-fill": _fill,
        "flux-kontext": _kontext,
        "chroma": _chroma,
        "z-image": z_image,
        "klein": klein,
        "klein-distilled": klein_distilled,
        "qwen-image": qwen_image,
        "qwen-edit": qwen_edit,
        "qwen-edit-plus": qwen_edit_plus,
        "qwen-image-21": qwen_image_21,
        "cogview4": cogview4,
        "lumina2": lumina2,
        "sana": sana,
        "sana-sprint": sana_sprint,
    }
)
KINDS = tuple(_WRITERS)
