"""The config and the description of T5's encoder, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from perfuse.contract.architecture import Called
from perfuse.contract.spec import Array, ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.models.config import TransformersConfig
from perfuse.models.shapes import floating
from perfuse.models.text_length import as_read

__all__ = [
    "MULTILINGUAL",
    "T5Config",
    "buckets",
    "called",
    "describe",
    "describe_multilingual",
    "fit",
    "host_inputs",
]

PLAIN, MULTILINGUAL = "T5EncoderModel", "UMT5EncoderModel"
_TOKENS = ("batch", "sequence")
_ACTIVATIONS = ("gated-gelu", "gated-silu", "relu")


@dataclass(frozen=True, kw_only=True)
class T5Config(TransformersConfig):
    """The fields of Transformers' ``T5Config`` that the encoder reads."""

    class_name: ClassVar[str] = PLAIN

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"

    def __post_init__(self) -> None:
        self.check_choice("feed_forward_proj", _ACTIVATIONS)


def describe(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Tokens to the last layer's states. The mask hides padding, where a pipeline hides it."""
    return _encoder(PLAIN, name, folder, config)


def describe_multilingual(
    name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    """UMT5's encoder, in which every layer has positions of its own."""
    return _encoder(MULTILINGUAL, name, folder, config)


def _encoder(
    class_name: str, name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    t5 = T5Config.from_dict(config)
    inputs = (
        TensorSpec(name="input_ids", dtype="int64", shape=_TOKENS),
        TensorSpec(name="attention_mask", dtype="int64", shape=_TOKENS),
        TensorSpec(name="position_buckets", dtype="int64", shape=("sequence", "sequence")),
    )
    outputs = (floating("last_hidden_state", *_TOKENS, t5.d_model),)
    return (
        ComponentSpec(
            name=name,
            role=Role.TEXT_ENCODER,
            class_name=class_name,
            folder=folder,
            config=config,
            signature=Signature(inputs=inputs, outputs=outputs),
            dims={"batch": Dim(example=2), "sequence": Dim(example=7, smallest=2)},
            # Its states leave float16's range (transformers keeps a part of it in float32).
            upcast=True,
        ),
    )


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """With the number of tokens that Hunyuan-DiT's denoiser takes, where it is for that."""
    return as_read(spec, others, "encoder_hidden_states_t5")


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Array]:
    """The bucket of the distance between each two tokens, int64 [sequence, sequence]."""
    t5 = T5Config.from_dict(spec.config)
    steps = np.arange(int(spec.signature.inputs[-1].resolve(sizes)[0]))
    distances = steps[None, :] - steps[:, None]
    return {
        "position_buckets": buckets(
            distances, t5.relative_attention_num_buckets, t5.relative_attention_max_distance
        )
    }


def called(spec: ComponentSpec, arguments: Mapping[str, Any]) -> Called | None:
    """Transformers' call: without a mask nothing is hidden."""
    if arguments.keys() not in ({"input_ids"}, {"input_ids", "attention_mask"}):
        return None
    tokens = arguments["input_ids"]
    inputs = {"attention_mask": np.ones_like(tokens), **arguments}
    return inputs, lambda outputs: [outputs["last_hidden_state"]]


def buckets(distances: Array, count: int, longest: int) -> Array:
    """The buckets of distances from a query to a key, int64: half of them for each direction.

    Near distances have a bucket each, farther ones share them, logarithmically wider ones, up to
    ``longest`` (Raffel et al. 2020, section 2.1).
    """
    half = count // 2
    near = half // 2
    after = np.where(distances > 0, half, 0)
    far = np.abs(distances)
    # float32, as the models were trained: a boundary may lie elsewhere in float64.
    share = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(near))
    share = share / np.float32(np.log(longest / near))
    wide = near + (share * np.float32(half - near)).astype(np.int64)
    return (after + np.where(far < near, far, np.minimum(wide, half - 1))).astype(np.int64)
