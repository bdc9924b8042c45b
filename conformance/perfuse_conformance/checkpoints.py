"""Small checkpoints with random weights, for tests of a backend."""

from perfuse_conformance.cases.adapters import (
    EMBED,
    STATES,
    write_adapter,
    write_flux_adapter,
    write_image_encoder,
    write_sd3_adapter,
    write_siglip_encoder,
)
from perfuse_conformance.cases.checkpoint_parts import (
    WORDS,
    adapter_config,
    controlnet_config,
    ddpm_config,
    dpt_config,
    edit_json,
    randomise,
    unet_config,
    union_config,
    vae_config,
    write_checker,
    write_json,
    write_tokenizer,
)
from perfuse_conformance.cases.checkpoints import KINDS, make_checkpoint
from perfuse_conformance.cases.real import REAL, write_configs

__all__ = [
    "EMBED",
    "KINDS",
    "REAL",
    "STATES",
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
    "write_adapter",
    "write_checker",
    "write_configs",
    "write_flux_adapter",
    "write_image_encoder",
    "write_json",
    "write_sd3_adapter",
    "write_siglip_encoder",
    "write_tokenizer",
]
