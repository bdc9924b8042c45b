"""Small random checkpoints in every layout that perfuse reads. They need no Diffusers.

Every parameter is drawn at random, those that models start with zeros or ones included: a zero
hides what it multiplies. The same seed gives the same files.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "KINDS",
    "WORDS",
    "adapter_config",
    "controlnet_config",
    "ddpm_config",
    "dpt_config",
    "edit_json",
    "make_checkpoint",
    "randomise",
    "unet_config",
    "union_config",
    "vae_config",
    "write_checker",
    "write_json",
    "write_tokenizer",
]

KINDS = ("sd1", "sd1-checked", "sd2", "sdxl", "lcm", "ddpm", "control", "union")

WORDS = ["a", "the", "red", "green", "blue", "circle", "square", "on", "white", "background"]
_START, _END = "<|startoftext|>", "<|endoftext|>"


def make_checkpoint(folder: Path, kind: str = "sd1", *, seed: int = 0) -> Path:
    """Write a checkpoint: Stable Diffusion 1, 2 (v-prediction) or XL, LCM, DDPM. Return its folder.

    ``sd1-checked`` has a safety checker, which objects to nothing, and a smaller UNet; ``control`` is
    Stable Diffusion 1 with two ControlNets, ``union`` XL with a ControlNet-Union. ``latent-upscaler``
    and ``depth``, which has an estimator, are not among ``KINDS``: they draw from pictures alone.

    Pictures are 16×16 (latents 8×8), text states 32 wide (XL: 64), prompts 77 tokens.
    """
    write = {
        "sd1": _sd1,
        "sd1-checked": _checked,
        "sd2": _sd2,
        "sdxl": _sdxl,
        "lcm": _lcm,
        "ddpm": _ddpm,
        "control": _control,
        "latent-upscaler": _latent_upscaler,
        "depth": _depth,
        "union": _union,
    }[kind]
    return write(Path(folder), seed)


def randomise(module: Any, seed: int = 0) -> Any:
    """Draw every parameter anew, in the order of the state dict, at a scale that keeps signals."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                one = "norm" in name and name.endswith("weight")
                parameter.copy_((1.0 if one else 0.0) + 0.1 * noise)
    return module.eval()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; ``...`` takes one out."""
    value = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {name: item for name, item in value.items() if item is not ...})


def unet_config(**fields: Any) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 8,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        **fields,
    }


def controlnet_config(unet: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A ControlNet for a UNet of this config; the checkpoints here have two pixels a latent."""
    kept = {n: value for n, value in unet.items() if n not in ("sample_size", "up_block_types")}
    return {**kept, "conditioning_embedding_out_channels": [8, 16], **fields}


def union_config(unet: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A ControlNet-Union for a UNet of this config."""
    width = unet["block_out_channels"][0]
    sizes = {"num_trans_channel": width, "num_proj_channel": width, "num_trans_head": 4}
    return {**controlnet_config(unet), **sizes, **fields}


def adapter_config(**fields: Any) -> dict[str, Any]:
    return {"channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 2, **fields}


def dpt_config(**fields: Any) -> dict[str, Any]:
    """A hybrid DPT, as Stable Diffusion 2's depth model has it, for pictures of 64x64."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "is_hybrid": True,
        "backbone_out_indices": [0, 1, 2, 3],
        "reassemble_factors": [1, 1, 1, 0.5],
        "neck_hidden_sizes": [16, 32, 32, 32],
        "fusion_hidden_size": 16,
        "backbone_featmap_shape": [1, 64, 4, 4],
        "backbone_config": {
            "model_type": "bit",
            "embedding_size": 8,
            "hidden_sizes": [16, 32, 64, 128],
            "depths": [1, 2, 1],
            "num_groups": 2,
            "layer_type": "bottleneck",
            "global_padding": "same",
            "embedding_dynamic_padding": True,
            "out_features": ["stage1", "stage2", "stage3"],
        },
        **fields,
    }


def vae_config(**fields: Any) -> dict[str, Any]:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [16, 32],
        "norm_num_groups": 8,
        "sample_size": 16,
        **fields,
    }


def ddpm_config(**fields: Any) -> dict[str, Any]:
    return {
        "sample_size": 16,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        **fields,
    }


_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


def _sd1(folder: Path, seed: int) -> Path:
    scheduler = {"_class_name": "DDIMScheduler", **_SCHEDULE, "clip_sample": False}
    scheduler["set_alpha_to_one"] = False
    _write_sd(folder, seed, unet_config(), scheduler)
    return folder


def _checked(folder: Path, seed: int) -> Path:
    _sd1(folder, seed)
    small = unet_config(
        block_out_channels=[16],
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
        mid_block_type=None,
    )
    _write_model(folder / "unet", "UNet2DConditionModel", small, seed)
    write_checker(folder, seed=seed + 3)
    return folder


def write_checker(folder: Path, *, seed: int = 0, threshold: float = 1.0) -> Path:
    """Add a safety checker and its image processor to a checkpoint; pictures are 24×24 for it.

    ``threshold`` is the middle of what a cosine is compared with: at 1 nothing is objected to.
    """
    import torch

    import perfuse.models

    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 24,
        "patch_size": 8,
    }
    kind: Any = perfuse.models.StableDiffusionSafetyChecker
    checker = randomise(kind(projection_dim=16, vision_config=vision), seed)
    with torch.no_grad():
        for parameter in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            parameter += threshold
    checker.save_pretrained(folder / "safety_checker")
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 24}}
    processor["crop_size"] = {"height": 24, "width": 24}
    write_json(folder / "feature_extractor" / "preprocessor_config.json", processor)
    edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        requires_safety_checker=True,
    )
    return folder


def _sd2(folder: Path, seed: int) -> Path:
    scheduler = {"_class_name": "DDIMScheduler", **_SCHEDULE, "clip_sample": False}
    scheduler |= {"set_alpha_to_one": False, "prediction_type": "v_prediction"}
    unet = unet_config(attention_head_dim=[2, 4], use_linear_projection=True, upcast_attention=True)
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
        _write_model(folder / name, "ControlNetModel", config, seed + 4 + i)
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionControlNetPipeline",
        controlnet=["diffusers", "MultiControlNetModel"],
    )
    return folder


def _depth(folder: Path, seed: int) -> Path:
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


def _union(folder: Path, seed: int) -> Path:
    _sdxl(folder, seed)
    unet = json.loads((folder / "unet" / "config.json").read_text("utf-8"))
    config = {name: value for name, value in unet.items() if not name.startswith("_")}
    _write_model(folder / "controlnet", "ControlNetUnionModel", union_config(config), seed + 4)
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionXLControlNetUnionPipeline",
        controlnet=["diffusers", "ControlNetUnionModel"],
    )
    return folder


def _write_sd(
    folder: Path, seed: int, unet: Mapping[str, Any], scheduler: Mapping[str, Any], **text: Any
) -> None:
    _write_model(folder / "unet", "UNet2DConditionModel", unet, seed)
    _write_model(folder / "vae", "AutoencoderKL", vae_config(), seed + 1)
    size = write_tokenizer(folder / "tokenizer")
    _write_text_encoder(folder / "text_encoder", "CLIPTextModel", size, seed + 2, **text)
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


def _sdxl(folder: Path, seed: int) -> Path:
    unet = unet_config(
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=[2, 4],
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    _write_model(folder / "unet", "UNet2DConditionModel", unet, seed)
    _write_model(folder / "vae", "AutoencoderKL", vae_config(scaling_factor=0.13025), seed + 1)
    size = write_tokenizer(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer_2", pad_token="!")
    _write_text_encoder(folder / "text_encoder", "CLIPTextModel", size, seed + 2)
    _write_text_encoder(
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
    _write_model(folder / "unet", "UNet2DModel", ddpm_config(), seed)
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


def _write_model(folder: Path, class_name: str, config: Mapping[str, Any], seed: int) -> None:
    import perfuse.models

    model = getattr(perfuse.models, class_name)(**config)
    randomise(model, seed).save_pretrained(folder)


def _write_text_encoder(
    folder: Path, class_name: str, vocab_size: int, seed: int, **fields: Any
) -> None:
    import transformers

    config = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,  # as in SD 1's config: the highest id of a prompt ends it
        "pad_token_id": 1,
        **fields,
    }
    if config["eos_token_id"] is None:
        config |= {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}
    model = getattr(transformers, class_name)(transformers.CLIPTextConfig(**config))
    randomise(model, seed).save_pretrained(folder)


def write_tokenizer(folder: Path, *, pad_token: str = _END) -> int:
    """Write CLIP's ``vocab.json`` and ``merges.txt``, all bytes and a few words; return its size."""
    letters = [chr(code) for code in _byte_codes()]
    vocab = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], 1):
            right = letter + "</w>" if i == len(word) - 1 else letter
            if left + right not in vocab:
                merges.append(f"{left} {right}")
                vocab.append(left + right)
            left += right
    vocab += [_START, _END]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocab)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    names = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad_token}
    write_json(folder / "special_tokens_map.json", names)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", {**config, **names})
    return len(vocab)


def _byte_codes() -> list[int]:
    """The characters by which GPT-2's byte-level BPE shows the 256 bytes, in CLIP's order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return shown + [256 + i for i in range(256 - len(shown))]
