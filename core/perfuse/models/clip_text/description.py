"""The config and the description of CLIP text encoders, without torch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.errors import CheckpointError
from perfuse.models.config import TransformersConfig
from perfuse.models.names import without_positions
from perfuse.models.shapes import floating

__all__ = [
    "ONE",
    "PLAIN",
    "PROJECTED",
    "UNNORMED",
    "ClipTextConfig",
    "current",
    "describe",
    "describe_projected",
    "fit",
    "with_hidden_states",
]

PLAIN, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
#: The last layer's states before the last norm, which a latent upscaler reads.
UNNORMED = "unnormed_hidden_state"
#: What stands before the number of a layer whose states are an output.
ONE = "hidden_states_"
#: What stands before the names of most tensors.
_PREFIX = "text_model."


@dataclass(frozen=True, kw_only=True)
class ClipTextConfig(TransformersConfig):
    """The fields of Transformers' ``CLIPTextConfig`` that determine what is computed."""

    class_name: ClassVar[str] = PLAIN

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int | None = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    #: With 2, the token with the highest id ends a prompt.
    eos_token_id: Any = 49407


def current(name: str) -> str | None:
    """A tensor's name without ``text_model.``, as Transformers 5 saves it; ``None`` for positions."""
    return without_positions(name.removeprefix(_PREFIX))


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """A CLIP text encoder: last hidden states, penultimate hidden states and the pooled output.

    Stable Diffusion XL uses the penultimate states. A captured graph has fixed outputs, so it
    returns both.
    """
    return _clip(PLAIN, "pooler_output", "hidden_size", name, folder, config)


def describe_projected(
    name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    """A CLIP text encoder whose pooled output is projected into CLIP's joint embedding space."""
    return _clip(PROJECTED, "text_embeds", "projection_dim", name, folder, config)


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """Return the last layer's states without their norm, too, where the denoiser reads those.

    That is one whose ``timestep_cond`` is a condition: the pooled text with a noise level.
    """
    told = any(
        one.role == Role.DENOISER
        and one.guidance != "embedded"
        and one.signature.input("timestep_cond") is not None
        for one in others.values()
    )
    outputs = [one for one in spec.signature.outputs if one.name != UNNORMED]
    if told:
        last = outputs[0]
        outputs.insert(2, dataclasses.replace(last, name=UNNORMED))
    signature = dataclasses.replace(spec.signature, outputs=tuple(outputs))
    return dataclasses.replace(spec, signature=signature)


def with_hidden_states(spec: ComponentSpec) -> ComponentSpec:
    """Return the embeddings and every layer's states, in place of the last layer's but one."""
    last, *_, pooled = spec.signature.outputs
    layers = ClipTextConfig.from_dict(spec.config).num_hidden_layers
    states = (dataclasses.replace(last, name=f"{ONE}{i}") for i in range(layers + 1))
    signature = dataclasses.replace(spec.signature, outputs=(last, *states, pooled))
    return dataclasses.replace(spec, signature=signature)


def _clip(
    class_name: str,
    pooled: str,
    pooled_width: str,
    name: str,
    folder: str,
    config: Mapping[str, Any],
) -> tuple[ComponentSpec, ...]:
    try:
        # transformers leaves values at their default out of the file
        width = int(config.get("hidden_size", 512))
        pooled_size = int(config.get(pooled_width, 512))
        longest = int(config.get("max_position_embeddings", 77))
    except (TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{folder}/config.json was read as that of a CLIP text encoder; {exc} is "
            "malformed in it. Take the file from the checkpoint again."
        ) from exc
    return (
        ComponentSpec(
            name=name,
            role=Role.TEXT_ENCODER,
            class_name=class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),),
                outputs=(
                    floating("last_hidden_state", "batch", "sequence", width),
                    floating("penultimate_hidden_state", "batch", "sequence", width),
                    floating(pooled, "batch", pooled_size),
                ),
            ),
            dims={
                "batch": Dim(example=2),
                "sequence": Dim(maximum=longest, example=7, smallest=2),
            },
        ),
    )
