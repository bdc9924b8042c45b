"""Stable Diffusion: every task, with ControlNets, adapters and other guidance."""

from typing import Any

import torch

from perfuse_conformance.bridged.parts import (
    PROMPT,
    SIDE,
    clip,
    clip_vision,
    clip_vision_config,
    image_processor,
    mask,
    picture,
    tokenizer,
    unet,
    vae,
    vae_of_eight,
)
from perfuse_conformance.bridged.recipe import Made, recipe
from perfuse_conformance.cases.checkpoint_parts import controlnet_config, unet_config

STEPS = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator}
ASKED = {**STEPS, "prompt": PROMPT, "height": SIDE, "width": SIDE}
FROM_PICTURE = {**STEPS, "prompt": PROMPT, "strength": 0.7}


def scheduler(kind: str = "DDIMScheduler", **fields: Any) -> Any:
    import diffusers

    return getattr(diffusers, kind)(beta_start=0.00085, beta_end=0.012, **fields)


def parts(**changes: Any) -> dict[str, Any]:
    """The components of a Stable Diffusion pipeline without a safety checker."""
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True),
        "unet": unet(),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        **changes,
    }


def controlnet(**fields: Any) -> Any:
    from diffusers import ControlNetModel

    return ControlNetModel(**controlnet_config(unet_config(**fields)))


@recipe("StableDiffusionPipeline", "text to image")
def _text_to_image() -> Made:
    return Made(components=parts(), call=ASKED)


@recipe("StableDiffusionPipeline", "text to image", variant="IP-Adapter")
def _image_prompt() -> Made:
    given = unet()
    given._load_ip_adapter_weights([_adapter_weights(given)])
    kept = parts(unet=given, image_encoder=clip_vision(), feature_extractor=image_processor())
    return Made(components=kept, call={**ASKED, "ip_adapter_image": picture()})


def _adapter_weights(network: Any) -> dict[str, Any]:
    """Random weights of an IP-Adapter: four words of a picture's embedding of 32 numbers."""
    width = network.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * width, 32) / 6,
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    adapter, number = {}, 1
    for name, one in network.named_modules():
        if name.endswith("attn2"):
            for kind in ("k", "v"):
                weight = torch.randn(one.to_k.weight.shape) / width**0.5
                adapter[f"{number}.to_{kind}_ip.weight"] = weight
            number += 2
    return {"image_proj": projection, "ip_adapter": adapter}


@recipe("StableDiffusionImg2ImgPipeline", "image to image")
def _image_to_image() -> Made:
    return Made(components=parts(), call={**FROM_PICTURE, "image": picture()})


@recipe("StableDiffusionInpaintPipeline", "inpainting")
def _inpainting() -> Made:
    kept = parts(unet=unet(in_channels=9))
    return Made(components=kept, call={**ASKED, "image": picture(), "mask_image": mask()})


@recipe("StableDiffusionInstructPix2PixPipeline", "image to image")
def _instructed() -> Made:
    kept = parts(unet=unet(in_channels=8))
    return Made(components=kept, call={**STEPS, "prompt": PROMPT, "image": picture()})


@recipe("StableDiffusionUpscalePipeline", "upscaling")
def _upscaled() -> Made:
    given = unet(in_channels=7, num_class_embeds=1000)
    kept = parts(unet=given, low_res_scheduler=scheduler("DDPMScheduler"))
    return Made(components=kept, call={**STEPS, "prompt": PROMPT, "image": picture(16)})


@recipe("StableDiffusionLatentUpscalePipeline", "upscaling")
def _latents_upscaled() -> Made:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    given = UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=5,
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3),
        up_block_types=(*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"),
        mid_block_type=None,
        only_cross_attention=False,
        layers_per_block=1,
        cross_attention_dim=32,
        time_cond_proj_dim=2 * 64 + 32,
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        conv_in_kernel=1,
        conv_out_kernel=1,
        resnet_time_scale_shift="scale_shift",
    )
    kept = {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True),
        "unet": given,
        "scheduler": EulerDiscreteScheduler(prediction_type="sample"),
    }
    return Made(components=kept, call={**STEPS, "prompt": PROMPT, "image": picture()})


@recipe("StableDiffusionDepth2ImgPipeline", "image to image")
def _by_depth() -> Made:
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    from perfuse_conformance.cases.checkpoint_parts import dpt_config

    kept = parts(
        unet=unet(in_channels=5),
        depth_estimator=DPTForDepthEstimation(DPTConfig(**dpt_config())),
        feature_extractor=DPTImageProcessor(size={"height": 64, "width": 64}),
    )
    kept.pop("safety_checker")
    return Made(components=kept, call={**FROM_PICTURE, "image": picture()})


@recipe("StableDiffusionImageVariationPipeline", "image to image")
def _variation() -> Made:
    kept = {
        "vae": vae(),
        "image_encoder": clip_vision(),
        "unet": unet(),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": image_processor(),
    }
    call = {**STEPS, "image": picture(), "height": SIDE, "width": SIDE}
    return Made(components=kept, call=call)


@recipe("StableDiffusionPanoramaPipeline", "text to image")
def _panorama() -> Made:
    return Made(components=parts(), call={**ASKED, "width": 2 * SIDE, "num_inference_steps": 2})


@recipe("StableDiffusionPAGPipeline", "text to image")
def _perturbed() -> Made:
    return Made(components=parts(pag_applied_layers=["mid"]), call={**ASKED, "pag_scale": 3.0})


@recipe("StableDiffusionPAGImg2ImgPipeline", "image to image")
def _perturbed_from_picture() -> Made:
    kept = parts(pag_applied_layers=["mid"])
    return Made(components=kept, call={**FROM_PICTURE, "image": picture(), "pag_scale": 3.0})


@recipe("StableDiffusionSAGPipeline", "text to image")
def _self_attention_guided() -> Made:
    return Made(components=parts(), call={**ASKED, "sag_scale": 0.8})


@recipe("StableDiffusionControlNetPipeline", "ControlNet")
def _controlled() -> Made:
    kept = parts(controlnet=controlnet())
    return Made(components=kept, call={**ASKED, "image": picture()})


@recipe("StableDiffusionControlNetImg2ImgPipeline", "ControlNet")
def _controlled_from_picture() -> Made:
    kept = parts(controlnet=controlnet())
    call = {**FROM_PICTURE, "image": picture(), "control_image": picture(seed=1)}
    return Made(components=kept, call=call)


@recipe("StableDiffusionControlNetInpaintPipeline", "ControlNet")
def _controlled_inpainting() -> Made:
    kept = parts(controlnet=controlnet(in_channels=4), unet=unet(in_channels=9))
    call = {**ASKED, "image": picture(), "mask_image": mask(), "control_image": picture(seed=1)}
    return Made(components=kept, call=call)


@recipe("StableDiffusionControlNetPAGPipeline", "ControlNet")
def _controlled_perturbed() -> Made:
    kept = parts(controlnet=controlnet(), pag_applied_layers=["mid"])
    return Made(components=kept, call={**ASKED, "image": picture(), "pag_scale": 3.0})


@recipe("StableDiffusionControlNetXSPipeline", "ControlNet")
def _controlled_small() -> Made:
    from diffusers import ControlNetXSAdapter

    given = unet(layers_per_block=2, use_linear_projection=True)
    adapter = ControlNetXSAdapter.from_unet(given, size_ratio=0.5, learn_time_embedding=True)
    kept = parts(unet=given, controlnet=adapter, vae=vae_of_eight())
    return Made(components=kept, call={**ASKED, "image": picture()})


@recipe("StableDiffusionAdapterPipeline", "ControlNet")
def _t2i_adapter() -> Made:
    from diffusers import T2IAdapter

    from perfuse_conformance.cases.checkpoint_parts import adapter_config

    kept = parts(adapter=T2IAdapter(**adapter_config()))
    return Made(components=kept, call={**ASKED, "image": picture()})


@recipe("StableDiffusionGLIGENPipeline", "text to image")
def _grounded() -> Made:
    kept = parts(unet=unet(attention_type="gated"))
    boxes = {"gligen_phrases": ["a red circle"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}
    return Made(components=kept, call={**ASKED, **boxes})


@recipe("StableDiffusionLDM3DPipeline", "3-D views")
def _with_depth() -> Made:
    given = vae(in_channels=6, out_channels=6)
    kept = parts(vae=given, image_encoder=None)
    return Made(components=kept, call=ASKED)


@recipe("StableDiffusionDiffEditPipeline", "inpainting")
def _edited() -> Made:
    import numpy as np

    latents = torch.randn(1, 2, 4, 16, 16)
    kept = parts(inverse_scheduler=scheduler("DDIMInverseScheduler"))
    call = {**STEPS, "prompt": PROMPT, "mask_image": np.ones((1, 16, 16), dtype=np.float32)}
    return Made(components=kept, call={**call, "image_latents": latents, "inpaint_strength": 0.7})


@recipe("LatentConsistencyModelPipeline", "text to image")
def _consistent() -> Made:
    kept = parts(unet=unet(time_cond_proj_dim=32), scheduler=scheduler("LCMScheduler"))
    return Made(components=kept, call=ASKED)


@recipe("LatentConsistencyModelImg2ImgPipeline", "image to image")
def _consistent_from_picture() -> Made:
    kept = parts(unet=unet(time_cond_proj_dim=32), scheduler=scheduler("LCMScheduler"))
    return Made(components=kept, call={**FROM_PICTURE, "image": picture()})


@recipe("StableUnCLIPPipeline", "text to image")
def _unclip() -> Made:
    from diffusers import DDPMScheduler, PriorTransformer
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        embedding_dim=32,
        num_layers=1,
        num_embeddings=16,
    )
    kept = {
        "prior_tokenizer": tokenizer(start=True),
        "prior_text_encoder": clip(projected=True),
        "prior": prior,
        "prior_scheduler": DDPMScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            beta_schedule="squaredcos_cap_v2",
        ),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=32),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": tokenizer(start=True),
        "text_encoder": clip(),
        "unet": _unclip_unet(),
        "scheduler": scheduler(),
        "vae": vae(),
    }
    return Made(components=kept, call={**ASKED, "prior_num_inference_steps": 2})


def _unclip_unet() -> Any:
    kind = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 64}
    return unet(**kind)


@recipe("StableUnCLIPImg2ImgPipeline", "image to image")
def _unclip_from_picture() -> Made:
    from diffusers import DDPMScheduler
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
        StableUnCLIPImageNormalizer,
    )

    kept = {
        "feature_extractor": image_processor(),
        "image_encoder": clip_vision(),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=32),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": tokenizer(start=True),
        "text_encoder": clip(),
        "unet": _unclip_unet(),
        "scheduler": scheduler(),
        "vae": vae(),
    }
    return Made(components=kept, call={**ASKED, "image": picture()})


@recipe("PaintByExamplePipeline", "inpainting")
def _by_example() -> Made:
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

    kept = {
        "vae": vae(),
        "image_encoder": PaintByExampleImageEncoder(clip_vision_config(), proj_size=32),
        "unet": unet(in_channels=9),
        "scheduler": scheduler(),
        "safety_checker": None,
        "feature_extractor": image_processor(),
    }
    pictures = {"example_image": picture(), "image": picture(seed=1), "mask_image": mask()}
    return Made(components=kept, call={**STEPS, **pictures, "height": SIDE, "width": SIDE})


@recipe("StableDiffusionPAGInpaintPipeline", "inpainting")
def _perturbed_inpainting() -> Made:
    kept = parts(unet=unet(in_channels=9), pag_applied_layers=["mid"])
    call = {**ASKED, "image": picture(), "mask_image": mask(), "pag_scale": 3.0}
    return Made(components=kept, call=call)


@recipe("StableDiffusionControlNetPAGInpaintPipeline", "ControlNet")
def _controlled_perturbed_inpainting() -> Made:
    kept = parts(
        controlnet=controlnet(in_channels=4),
        unet=unet(in_channels=9),
        pag_applied_layers=["mid"],
    )
    call = {**ASKED, "image": picture(), "mask_image": mask(), "control_image": picture(seed=1)}
    return Made(components=kept, call={**call, "pag_scale": 3.0})


@recipe("SemanticStableDiffusionPipeline", "text to image")
def _steered() -> Made:
    edits = {"editing_prompt": ["a green square"], "edit_warmup_steps": 1}
    return Made(components=parts(), call={**ASKED, **edits})


def marigold(**changes: Any) -> dict[str, Any]:
    return {
        "unet": unet(in_channels=8),
        "vae": vae(),
        "scheduler": scheduler(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(start=True),
        **changes,
    }


MARIGOLD = {"image": picture(), "num_inference_steps": 2, "processing_resolution": 0}
MARIGOLD |= {"generator": torch.Generator}


@recipe("MarigoldDepthPipeline", "image to depth")
def _depth() -> Made:
    return Made(components=marigold(prediction_type="depth"), call=MARIGOLD)


@recipe("MarigoldNormalsPipeline", "image to normals")
def _normals() -> Made:
    return Made(components=marigold(prediction_type="normals"), call=MARIGOLD)


@recipe("MarigoldIntrinsicsPipeline", "image to materials")
def _materials() -> Made:
    shown = {"target_names": ["albedo", "material"], "albedo": {"prediction_space": "srgb"}}
    shown |= {"material": {"up_to_scale": False, "prediction_space": "stack"}}
    kept = marigold(
        unet=unet(in_channels=12, out_channels=8),
        prediction_type="intrinsics",
        target_properties=shown,
    )
    return Made(components=kept, call=MARIGOLD)


@recipe("TextToVideoZeroPipeline", "text to video")
def _video_of_nothing() -> Made:
    call = {**ASKED, "video_length": 2, "num_inference_steps": 4, "t0": 1, "t1": 3}
    return Made(components=parts(), call=call)


@recipe("LDMTextToImagePipeline", "text to image")
def _latent_diffusion() -> Made:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
        LDMBertConfig,
        LDMBertModel,
    )

    config = LDMBertConfig(
        vocab_size=len(tokenizer()),
        max_position_embeddings=77,
        d_model=32,
        encoder_layers=2,
        encoder_ffn_dim=64,
        encoder_attention_heads=4,
        head_dim=8,
    )
    kept = {
        "vqvae": vae(),
        "bert": LDMBertModel(config),
        "tokenizer": tokenizer(start=True),
        "unet": unet(),
        "scheduler": scheduler(),
    }
    return Made(components=kept, call=ASKED)
