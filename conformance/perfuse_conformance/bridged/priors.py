"""Pipelines in two parts: a prior makes embeddings, a decoder draws them. And those in pixels or codes."""

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
    t5,
    tokenizer,
    unet,
)
from perfuse_conformance.bridged.recipe import Made, recipe

STEPS = {"num_inference_steps": 3, "output_type": "np", "generator": torch.Generator}
ASKED = {**STEPS, "prompt": PROMPT, "height": SIDE, "width": SIDE}


# ── Kandinsky ───────────────────────────────────────────────────────────────────────────────────


def movq(**fields: Any) -> Any:
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
        **fields,
    )


def kandinsky(channels: int = 4, **fields: Any) -> dict[str, Any]:
    from diffusers import DDIMScheduler

    given = unet(
        in_channels=channels,
        out_channels=8,
        addition_embed_type=fields.pop("addition_embed_type", "image"),
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
        **fields,
    )
    return {"unet": given, "scheduler": DDIMScheduler(), "movq": movq()}


def embeddings() -> dict[str, Any]:
    return {
        "image_embeds": torch.randn(1, 32),
        "negative_image_embeds": torch.randn(1, 32),
        "height": SIDE,
        "width": SIDE,
    }


@recipe("KandinskyV22Pipeline", "text to image")
def _kandinsky() -> Made:
    return Made(components=kandinsky(), call={**STEPS, **embeddings()})


@recipe("KandinskyV22Img2ImgPipeline", "image to image")
def _kandinsky_from_picture() -> Made:
    from diffusers import DDIMScheduler

    kept = {**kandinsky(), "scheduler": DDIMScheduler()}
    return Made(
        components=kept, call={**STEPS, **embeddings(), "image": picture(), "strength": 0.7}
    )


@recipe("KandinskyV22InpaintPipeline", "inpainting")
def _kandinsky_inpainting() -> Made:
    import numpy as np

    area = np.ones((SIDE, SIDE), dtype=np.float32)
    area[:, : SIDE // 2] = 0
    call = {**STEPS, **embeddings(), "image": picture(), "mask_image": area}
    return Made(components=kandinsky(9), call=call)


@recipe("KandinskyV22ControlnetPipeline", "ControlNet")
def _kandinsky_controlled() -> Made:
    call = {**STEPS, **embeddings(), "hint": torch.rand(1, 3, 4 * SIDE, 4 * SIDE)}
    return Made(components=kandinsky(8, addition_embed_type="image_hint"), call=call)


@recipe("KandinskyV22ControlnetImg2ImgPipeline", "ControlNet")
def _kandinsky_controlled_from_picture() -> Made:
    call = {**STEPS, **embeddings(), "hint": torch.rand(1, 3, 4 * SIDE, 4 * SIDE)}
    call |= {"image": picture(), "strength": 0.7}
    return Made(components=kandinsky(8, addition_embed_type="image_hint"), call=call)


def prior(**fields: Any) -> Any:
    from diffusers import PriorTransformer

    return PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        embedding_dim=32,
        num_layers=1,
        num_embeddings=16,
        **fields,
    )


def priors() -> dict[str, Any]:
    from diffusers import UnCLIPScheduler

    return {
        "prior": prior(),
        "image_encoder": clip_vision(),
        "text_encoder": clip(projected=True),
        "tokenizer": tokenizer(start=True),
        "scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample=True
        ),
        "image_processor": image_processor(),
    }


EMBEDDED = {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "np"}
EMBEDDED |= {"generator": torch.Generator}


@recipe("KandinskyV22PriorPipeline", "text to embedding")
def _kandinsky_prior() -> Made:
    return Made(components=priors(), call=EMBEDDED)


@recipe("KandinskyV22PriorEmb2EmbPipeline", "image to embedding")
def _kandinsky_prior_from_picture() -> Made:
    return Made(components=priors(), call={**EMBEDDED, "image": picture(), "strength": 0.7})


@recipe("KandinskyPriorPipeline", "text to embedding")
def _kandinsky_first_prior() -> Made:
    return Made(components=priors(), call=EMBEDDED)


def kandinsky_combined(channels: int = 4) -> dict[str, Any]:
    return {
        **kandinsky(channels),
        **{f"prior_{name}": part for name, part in priors().items()},
    }


COMBINED = {**ASKED, "prior_num_inference_steps": 2}


@recipe("KandinskyV22CombinedPipeline", "text to image")
def _kandinsky_combined() -> Made:
    return Made(components=kandinsky_combined(), call=COMBINED)


@recipe("KandinskyV22Img2ImgCombinedPipeline", "image to image")
def _kandinsky_combined_from_picture() -> Made:
    call = {**COMBINED, "image": picture(), "strength": 0.7}
    return Made(components=kandinsky_combined(), call=call)


@recipe("KandinskyV22InpaintCombinedPipeline", "inpainting")
def _kandinsky_combined_inpainting() -> Made:
    call = {**COMBINED, "image": picture(), "mask_image": mask()}
    return Made(components=kandinsky_combined(9), call=call)


@recipe("KandinskyPipeline", "text to image")
def _kandinsky_first() -> Made:
    return Made(components=first_kandinsky(), call={**embeddings(), **STEPS, "prompt": PROMPT})


@recipe("KandinskyImg2ImgPipeline", "image to image")
def _kandinsky_first_from_picture() -> Made:
    call = {**embeddings(), **STEPS, "prompt": PROMPT, "image": picture(), "strength": 0.7}
    return Made(components=first_kandinsky(), call=call)


def first_kandinsky() -> dict[str, Any]:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config = MCLIPConfig(
        transformerDimSize=32,
        imageDimSize=32,
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=2,
        max_position_embeddings=80,
        pad_token_id=0,
    )
    given = unet(
        out_channels=8,
        addition_embed_type="text_image",
        addition_embed_type_num_heads=4,
        cross_attention_dim=32,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_image_proj",
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    return {
        **kandinsky(),
        "unet": given,
        "text_encoder": MultilingualCLIP(config),
        "tokenizer": tokenizer(start=True, length=77),
    }


@recipe("Kandinsky3Pipeline", "text to image")
def _kandinsky3() -> Made:
    return Made(components=kandinsky3(), call=ASKED)


@recipe("Kandinsky3Img2ImgPipeline", "image to image")
def _kandinsky3_from_picture() -> Made:
    call = {**STEPS, "prompt": PROMPT, "image": picture(), "strength": 0.7}
    return Made(components=kandinsky3(), call=call)


def kandinsky3() -> dict[str, Any]:
    from diffusers import DDPMScheduler, Kandinsky3UNet

    given = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=8,
        groups=4,
        attention_head_dim=8,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=8,
        encoder_hid_dim=32,
    )
    return {
        "tokenizer": tokenizer(length=128),
        "text_encoder": t5(),
        "unet": given,
        "scheduler": DDPMScheduler(),
        "movq": movq(),
    }


# ── Stable Cascade and Würstchen ────────────────────────────────────────────────────────────────


def cascade_unet(**fields: Any) -> Any:
    from diffusers.models.unets import StableCascadeUNet

    return StableCascadeUNet(
        conditioning_dim=16,
        block_out_channels=(16, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        timestep_ratio_embedding_dim=8,
        clip_text_pooled_in_channels=32,
        **fields,
    )


def paella() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=4, levels=2, embed_dim=8)


@recipe("StableCascadePriorPipeline", "text to embedding")
def _cascade_prior() -> Made:
    from diffusers import DDPMWuerstchenScheduler

    given = cascade_unet(
        in_channels=16,
        out_channels=16,
        clip_text_in_channels=32,
        clip_image_in_channels=32,
        switch_level=(False,),
        clip_seq=2,
    )
    kept = {
        "tokenizer": tokenizer(start=True),
        "text_encoder": clip(projected=True),
        "prior": given,
        "scheduler": DDPMWuerstchenScheduler(),
    }
    return Made(components=kept, call={**ASKED, "height": 128, "width": 128})


@recipe("StableCascadeDecoderPipeline", "text to image")
def _cascade_decoder() -> Made:
    from diffusers import DDPMWuerstchenScheduler

    given = cascade_unet(
        in_channels=4, out_channels=4, patch_size=2, effnet_in_channels=16, clip_seq=2
    )
    kept = {
        "decoder": given,
        "tokenizer": tokenizer(start=True),
        "text_encoder": clip(projected=True),
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": paella(),
    }
    call = {**STEPS, "prompt": PROMPT, "image_embeddings": torch.randn(1, 16, 4, 4)}
    return Made(components=kept, call={**call, "guidance_scale": 2.0})


@recipe("WuerstchenPriorPipeline", "text to embedding")
def _wuerstchen_prior() -> Made:
    from diffusers import DDPMWuerstchenScheduler
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior

    kept = {
        "tokenizer": tokenizer(start=True),
        "text_encoder": clip(),
        "prior": WuerstchenPrior(c_in=2, c=16, depth=2, c_cond=32, c_r=8, nhead=2),
        "scheduler": DDPMWuerstchenScheduler(),
    }
    return Made(components=kept, call={**ASKED, "height": 128, "width": 128})


@recipe("WuerstchenDecoderPipeline", "text to image")
def _wuerstchen_decoder() -> Made:
    call = {**STEPS, "prompt": PROMPT, "image_embeddings": torch.randn(1, 4, 6, 6)}
    return Made(components=wuerstchen(), call={**call, "guidance_scale": 2.0})


@recipe("WuerstchenCombinedPipeline", "text to image")
def _wuerstchen() -> Made:
    before = _wuerstchen_prior().components
    kept = {**wuerstchen(2), **{f"prior_{name}": part for name, part in before.items()}}
    call = {**ASKED, "height": 128, "width": 128, "prior_num_inference_steps": 2}
    return Made(components=kept, call=call)


def wuerstchen(channels: int = 4) -> dict[str, Any]:
    from diffusers import DDPMWuerstchenScheduler
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt

    given = WuerstchenDiffNeXt(
        c_cond=32,
        c_hidden=[16, 32],
        nhead=[-1, 4],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=channels,
        clip_embd=32,
        dropout=0.0,
    )
    return {
        "tokenizer": tokenizer(start=True),
        "text_encoder": clip(),
        "decoder": given,
        "scheduler": DDPMWuerstchenScheduler(),
        "vqgan": paella(),
    }


# ── DeepFloyd IF: in pixels ─────────────────────────────────────────────────────────────────────


def floyd(channels: int = 3, **changes: Any) -> dict[str, Any]:
    from diffusers import DDPMScheduler

    given = unet(
        sample_size=SIDE,
        in_channels=channels,
        out_channels=6,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=32,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="timestep" if "image_noising_scheduler" in changes else None,
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": t5(),
        "unet": given,
        "scheduler": DDPMScheduler(variance_type="learned_range", thresholding=True),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        **changes,
    }


IN_PIXELS = {**STEPS, "prompt": PROMPT, "clean_caption": False}


@recipe("IFPipeline", "text to image")
def _floyd() -> Made:
    return Made(components=floyd(), call=IN_PIXELS)


@recipe("IFImg2ImgPipeline", "image to image")
def _floyd_from_picture() -> Made:
    call = {**IN_PIXELS, "image": torch.rand(1, 3, SIDE, SIDE) * 2 - 1}
    return Made(components=floyd(), call=call)


@recipe("IFSuperResolutionPipeline", "upscaling")
def _floyd_upscaled() -> Made:
    from diffusers import DDPMScheduler

    kept = floyd(6, image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    call = {**IN_PIXELS, "image": torch.rand(1, 3, SIDE // 2, SIDE // 2) * 2 - 1}
    return Made(components=kept, call=call)


@recipe("IFInpaintingPipeline", "inpainting")
def _floyd_inpainting() -> Made:
    call = {**IN_PIXELS, "image": picture(), "mask_image": mask()}
    return Made(components=floyd(), call=call)


@recipe("IFImg2ImgSuperResolutionPipeline", "upscaling")
def _floyd_upscaled_from_picture() -> Made:
    kept, call = _floyd_upscaled().components, _floyd_upscaled().call
    return Made(components=kept, call={**call, "original_image": picture()})


@recipe("IFInpaintingSuperResolutionPipeline", "upscaling")
def _floyd_upscaled_inpainting() -> Made:
    kept, call = _floyd_upscaled().components, _floyd_upscaled().call
    pictures = {"original_image": picture(), "mask_image": mask()}
    return Made(components=kept, call={**call, **pictures})


# ── Masked codes, and shapes ────────────────────────────────────────────────────────────────────


@recipe("AmusedPipeline", "text to image")
def _amused() -> Made:
    return Made(components=amused(), call=ASKED)


@recipe("AmusedImg2ImgPipeline", "image to image")
def _amused_from_picture() -> Made:
    return Made(components=amused(), call={**STEPS, "prompt": PROMPT, "image": picture()})


@recipe("AmusedInpaintPipeline", "inpainting")
def _amused_inpainting() -> Made:
    call = {**STEPS, "prompt": PROMPT, "image": picture(), "mask_image": mask()}
    return Made(components=amused(), call=call)


def amused() -> dict[str, Any]:
    from diffusers import AmusedScheduler, UVit2DModel, VQModel

    given = UVit2DModel(
        hidden_size=8,
        cond_embed_dim=32,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=32,
        vocab_size=34,
        codebook_size=32,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        sample_size=16,
    )
    autoencoder = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=8,
        norm_num_groups=8,
        num_vq_embeddings=32,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
    )
    return {
        "vqvae": autoencoder,
        "tokenizer": tokenizer(start=True),
        "text_encoder": clip(projected=True),
        "transformer": given,
        "scheduler": AmusedScheduler(mask_token_id=33),
    }


def shapes() -> dict[str, Any]:
    from diffusers import HeunDiscreteScheduler
    from diffusers.pipelines.shap_e import ShapERenderer

    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)),
        d_latent=16,
        d_hidden=8,
        n_output=12,
        background=(0.1, 0.1, 0.1),
    )
    schedule = HeunDiscreteScheduler(
        beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True, clip_sample=True
    )
    return {"scheduler": schedule, "shap_e_renderer": renderer}


def shape_prior(**fields: Any) -> Any:
    from diffusers import PriorTransformer

    return PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=16,
        num_embeddings=32,
        embedding_dim=16,
        embedding_proj_dim=32,
        time_embed_dim=64,
        num_layers=1,
        clip_embed_dim=32,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        **fields,
    )


@recipe("ShapEPipeline", "3-D views")
def _shape() -> Made:
    kept = {
        **shapes(),
        "prior": shape_prior(norm_in_type="layer", embedding_proj_norm_type=None),
        "text_encoder": clip(projected=True),
        "tokenizer": tokenizer(start=True),
    }
    call = {"prompt": PROMPT, "num_inference_steps": 2, "generator": torch.Generator}
    return Made(components=kept, call={**call, "output_type": "latent", "frame_size": 16})


@recipe("ShapEImg2ImgPipeline", "3-D views")
def _shape_of_picture() -> Made:
    from transformers import CLIPVisionModel

    kept = {
        **shapes(),
        "prior": shape_prior(norm_in_type="layer", embedding_proj_norm_type="layer"),
        "image_encoder": CLIPVisionModel(clip_vision_config()),
        "image_processor": image_processor(),
    }
    call = {"image": picture(), "num_inference_steps": 2, "generator": torch.Generator}
    return Made(components=kept, call={**call, "output_type": "latent", "frame_size": 16})


@recipe("StableCascadeCombinedPipeline", "text to image")
def _cascade() -> Made:
    before, after = _cascade_prior().components, _cascade_decoder().components
    kept = {
        **after,
        "prior_prior": before["prior"],
        "prior_text_encoder": before["text_encoder"],
        "prior_tokenizer": before["tokenizer"],
        "prior_scheduler": before["scheduler"],
    }
    call = {**ASKED, "height": 128, "width": 128, "prior_num_inference_steps": 2}
    return Made(components=kept, call=call)


@recipe("UnCLIPPipeline", "text to image")
def _unclip() -> Made:
    from diffusers import UnCLIPScheduler

    kept = {
        **unclip(),
        "prior": prior(),
        "prior_scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
    }
    steps = {f"{part}_num_inference_steps": 2 for part in ("prior", "decoder", "super_res")}
    call = {**steps, "prompt": PROMPT, "output_type": "np", "generator": torch.Generator}
    return Made(components=kept, call=call)


@recipe("UnCLIPImageVariationPipeline", "image to image")
def _unclip_variation() -> Made:
    kept = {**unclip(), "feature_extractor": image_processor(), "image_encoder": clip_vision()}
    steps = {f"{part}_num_inference_steps": 2 for part in ("decoder", "super_res")}
    call = {**steps, "image": picture(), "output_type": "np", "generator": torch.Generator}
    return Made(components=kept, call=call)


def unclip() -> dict[str, Any]:
    from diffusers import UnCLIPScheduler, UNet2DModel
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    decoder = unet(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
    )

    def upscaler() -> Any:
        return UNet2DModel(
            sample_size=SIDE,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            in_channels=6,
            out_channels=3,
            norm_num_groups=8,
            attention_head_dim=8,
        )

    return {
        "decoder": decoder,
        "text_proj": UnCLIPTextProjModel(
            clip_extra_context_tokens=2,
            clip_embeddings_dim=32,
            time_embed_dim=128,
            cross_attention_dim=32,
        ),
        "text_encoder": clip(projected=True),
        "tokenizer": tokenizer(start=True),
        "super_res_first": upscaler(),
        "super_res_last": upscaler(),
        "decoder_scheduler": UnCLIPScheduler(variance_type="learned_range"),
        "super_res_scheduler": UnCLIPScheduler(variance_type="fixed_small_log"),
    }
