"""Small checkpoints with random weights, for tests of a backend."""

from perfuse_conformance.cases.checkpoints import (
    KINDS,
    WORDS,
    adapter_config,
    controlnet_config,
    ddpm_config,
    dpt_config,
    edit_json,
    make_checkpoint,
    randomise,
    unet_config,
    union_config,
    vae_config,
    write_checker,
    write_json,
    write_tokenizer,
)

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
