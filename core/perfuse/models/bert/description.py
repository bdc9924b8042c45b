"""The config and the description of BERT, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import TransformersConfig
from perfuse.models.names import without_positions
from perfuse.models.shapes import floating
from perfuse.models.text_length import as_read

__all__ = ["BertConfig", "current", "describe", "fit", "host_inputs", "reads"]

_TOKENS = ("batch", "sequence")
#: What makes one vector of a text, which no pipeline reads.
_POOLER = "pooler."
#: What TensorFlow's checkpoints call the weight and the bias of a norm.
_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True, kw_only=True)
class BertConfig(TransformersConfig):
    """The fields of Transformers' ``BertConfig`` that determine what is computed."""

    class_name: ClassVar[str] = "BertModel"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    position_embedding_type: str = "absolute"
    is_decoder: bool = False

    def __post_init__(self) -> None:
        self.check_choice("hidden_act", ("gelu", "relu"))
        self.check_choice("position_embedding_type", ("absolute",))
        self.check_choice("is_decoder", (False,))
        if self.hidden_size % self.num_attention_heads:
            raise self.error(
                f"hidden_size is {self.hidden_size}",
                f"a multiple of {self.num_attention_heads} heads",
            )


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Tokens of one text to the last layer's states. The mask hides padding."""
    bert = BertConfig.from_dict(config)
    return (
        ComponentSpec(
            name=name,
            role=Role.TEXT_ENCODER,
            class_name=bert.class_name,
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    TensorSpec(name="input_ids", dtype="int64", shape=_TOKENS),
                    TensorSpec(name="attention_mask", dtype="int64", shape=_TOKENS),
                    TensorSpec(name="position_ids", dtype="int64", shape=("sequence",)),
                ),
                outputs=(floating("last_hidden_state", *_TOKENS, bert.hidden_size),),
            ),
            dims={
                "batch": Dim(example=2),
                "sequence": Dim(maximum=bert.max_position_embeddings, example=7, smallest=2),
            },
        ),
    )


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """With the number of tokens that the denoiser takes, if it takes no other."""
    return as_read(spec, others, "encoder_hidden_states")


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """The places of the tokens, int64 [sequence]."""
    (length,) = spec.signature.inputs[-1].resolve(sizes)
    return {"position_ids": np.arange(int(length), dtype=np.int64)}


def current(name: str) -> str | None:
    """A tensor's name; ``None`` for those that are not read."""
    for old, new in _NORM.items():
        name = name.replace(old, new)
    return None if name.startswith(_POOLER) else without_positions(name)


def reads(spec: ComponentSpec, name: str) -> bool:
    """Whether a stored tensor is read."""
    return current(name) is not None
