"""The settings and the description of language models that encode text, without torch."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfuse.contract.spec import ComponentSpec, Dim, Role, Signature, TensorSpec
from perfuse.errors import CheckpointError
from perfuse.models.language_model.kinds import KINDS
from perfuse.models.shapes import floating

__all__ = [
    "LanguageSettings",
    "describe_gemma2",
    "describe_glm",
    "describe_qwen2_5_vl",
    "describe_qwen3",
    "describe_qwen3_vl",
    "fit",
    "host_inputs",
    "layers_of",
    "reading",
    "settings_of",
]

#: No family's prompts are longer, however far a model was trained.
_LONGEST = 2048

LAST = "last_hidden_state"
_ONE = "hidden_state_"


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """A decoder-only transformer with rotary positions and grouped queries."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    hidden_act: str
    #: What the logits of attention are multiplied by.
    scale: float
    #: What keeps those logits within plus and minus this number, smoothly; ``None`` for nothing.
    softcap: float | None
    #: Whether the projections to queries, keys and values, and the one of the result, have a bias.
    attention_bias: bool
    output_bias: bool
    #: Whether each head's queries and keys are normalised.
    norms_heads: bool
    #: The channels of a head that are turned: all, or the first ones, in pairs of neighbours.
    turned: int
    #: Whether the gate of the feed-forward network and its other half are one layer.
    fused: bool
    #: Gemma's: norms multiply by one plus their weight, each branch is normalised at its end, too,
    #: and the embeddings are multiplied by the root of their width.
    gemma: bool
    #: How many of a head's frequencies turn by time, by row and by column of a picture's tokens;
    #: ``None`` where all turn by the place in the text.
    sections: tuple[int, ...] | None
    #: Whether these take turns, frequency by frequency; else one follows the other.
    interleaved: bool


def describe_qwen3(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Qwen 3 (Yang et al. 2025, arXiv:2505.09388)."""
    return _describe("qwen3", name, folder, config)


def describe_qwen2_5_vl(
    name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    """The part of Qwen 2.5 VL that reads text (Bai et al. 2025, arXiv:2502.13923)."""
    return _describe("qwen2_5_vl", name, folder, config)


def describe_qwen3_vl(
    name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    """The part of Qwen 3 VL that reads text (Bai et al. 2025, arXiv:2511.21631)."""
    return _describe("qwen3_vl", name, folder, config)


def describe_glm(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """GLM 4 (GLM Team 2024, arXiv:2406.12793)."""
    return _describe("glm", name, folder, config)


def describe_gemma2(name: str, folder: str, config: Mapping[str, Any]) -> tuple[ComponentSpec, ...]:
    """Gemma 2 (Gemma Team 2024, arXiv:2408.00118)."""
    return _describe("gemma2", name, folder, config)


def _describe(
    kind: str, name: str, folder: str, config: Mapping[str, Any]
) -> tuple[ComponentSpec, ...]:
    model = _settings(kind, config)
    table = (2, "sequence", model.turned // 2)
    return (
        ComponentSpec(
            name=name,
            role=Role.TEXT_ENCODER,
            class_name=_class_of(kind, config),
            folder=folder,
            config=config,
            signature=Signature(
                inputs=(
                    TensorSpec(name="input_ids", dtype="int64", shape=("batch", "sequence")),
                    floating("attention_bias", "batch", "sequence", "sequence"),
                    TensorSpec(name="rotary", dtype="float32", shape=table),
                ),
                outputs=(_output(LAST, model),),
            ),
            dims={
                "batch": Dim(example=2),
                "sequence": Dim(
                    maximum=min(model.max_position_embeddings, _LONGEST), example=7, smallest=2
                ),
            },
        ),
    )


def _class_of(kind: str, config: Mapping[str, Any]) -> str:
    named = config.get("architectures") or ()
    return next((one for one in named if one in KINDS[kind]), KINDS[kind][0])


def _output(name: str, model: LanguageSettings) -> TensorSpec:
    return floating(name, "batch", "sequence", model.hidden_size)


def fit(spec: ComponentSpec, others: Mapping[str, ComponentSpec]) -> ComponentSpec:
    """Return the hidden states that the denoiser was trained with, and no others.

    Raises:
        CheckpointError: the model has no such layers, or is not of the width that is read.
    """
    if spec.role != Role.TEXT_ENCODER:
        return spec
    for other in others.values():
        if other.role == Role.DENOISER and other.reads_layers:
            return reading(spec, other)
    return spec


def reading(spec: ComponentSpec, denoiser: ComponentSpec) -> ComponentSpec:
    """The language model that returns the hidden states that this denoiser reads.

    Raises:
        CheckpointError: the model has no such layers, or is not of the width that is read.
    """
    model = settings_of(spec)
    last = model.num_hidden_layers
    # As Transformers counts them: 0 the embeddings, then a layer each, the last one normed.
    layers = [i if i >= 0 else last + 1 + i for i in denoiser.reads_layers]
    if not all(0 <= i <= last for i in layers):
        raise CheckpointError(
            f"{denoiser.name} reads the hidden states {', '.join(map(str, denoiser.reads_layers))} "
            f"of {spec.name}, which has {last} layers. Use the text encoder of its checkpoint."
        )
    text = denoiser.signature.input("encoder_hidden_states")
    width = len(layers) * model.hidden_size
    if text is not None and text.shape[-1] != width:
        raise CheckpointError(
            f"{denoiser.name} reads text states of width {text.shape[-1]}; {spec.name} gives "
            f"{width}. Use the text encoder of its checkpoint."
        )
    names = (LAST if i == last and denoiser.reads_normed else f"{_ONE}{i}" for i in layers)
    signature = dataclasses.replace(
        spec.signature, outputs=tuple(_output(name, model) for name in names)
    )
    return dataclasses.replace(spec, signature=signature)


def layers_of(spec: ComponentSpec) -> tuple[int, ...]:
    """The hidden states that the component returns, by the names of its outputs.

    The last one's name says whether it is normed.
    """
    last = settings_of(spec).num_hidden_layers
    names = spec.signature.output_names
    return tuple(last if name == LAST else int(name.removeprefix(_ONE)) for name in names)


def host_inputs(
    spec: ComponentSpec, sizes: Mapping[str, int], guidance: float | None
) -> dict[str, Any]:
    """The rotation of each position (Su et al. 2021, arXiv:2104.09864): float32 [2, S, D / 2].

    Where pictures are among the tokens, ``sizes`` has ``picture_0_start``, ``picture_0_rows``,
    ``picture_0_columns`` and so on, counted in tokens.
    """
    if "sequence" not in sizes:
        return {}
    model = settings_of(spec)
    pairs = np.arange(0, model.turned, 2, dtype=np.float32) / np.float32(model.turned)
    frequencies = np.float32(1) / np.float32(model.rope_theta) ** pairs  # float32: Transformers'
    places = _places(sizes)
    turned_by = np.zeros(len(pairs), dtype=int)
    if model.sections is not None and "picture_0_start" in sizes:
        turned_by = _turned_by(model.sections, interleaved=model.interleaved)
    angles = places[turned_by].T * frequencies
    return {"rotary": np.stack([np.cos(angles), np.sin(angles)])}


def _turned_by(sections: tuple[int, ...], *, interleaved: bool) -> NDArray[np.int64]:
    """By which of time, row and column each frequency turns."""
    if not interleaved:
        return np.repeat(np.arange(3), sections)
    axes = np.zeros(sum(sections), dtype=np.int64)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def _places(sizes: Mapping[str, int]) -> NDArray[np.float32]:
    """Time, row and column of each token, [3, S]: all the same, but within a picture.

    A picture is as long as its longer side; the text goes on behind it.
    """
    places = np.tile(np.arange(sizes["sequence"]), (3, 1))
    for i in count():
        start = sizes.get(f"picture_{i}_start")
        if start is None:
            return places.astype(np.float32)
        rows, columns = sizes[f"picture_{i}_rows"], sizes[f"picture_{i}_columns"]
        end, first = start + rows * columns, places[0, start]
        row, column = np.divmod(np.arange(rows * columns), columns)
        places[:, start:end] = first + np.stack([np.zeros_like(row), row, column])
        places[:, end:] += first + max(rows, columns) - places[0, end : end + 1]
    raise AssertionError


def settings_of(spec: ComponentSpec) -> LanguageSettings:
    """The settings in a component's config."""
    kind = next(kind for kind, classes in KINDS.items() if spec.class_name in classes)
    return _settings(kind, spec.config)


#: The defaults of Transformers, which leaves values at their default out of the file.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
    },
    "qwen2_5_vl": {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
    },
    "qwen3_vl": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "max_position_embeddings": 128000,
        "hidden_act": "silu",
    },
    "glm": {
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
    },
    "gemma2": {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "sliding_window": 4096,
    },
}
_ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_ROTATIONS = ("default", "mrope")


def _settings(kind: str, config: Mapping[str, Any]) -> LanguageSettings:
    """Read a config, whichever version of Transformers wrote it.

    Raises:
        CheckpointError: it is malformed, or asks for what these models do not have.
    """
    inner = config.get("text_config")
    said = {**_DEFAULTS[kind], **(inner if isinstance(inner, Mapping) else config)}
    refuse = partial(_refused, said.get("model_type", kind))
    try:
        rotation = {**(said.get("rope_scaling") or {}), **(said.get("rope_parameters") or {})}
        heads = int(said["num_attention_heads"])
        width = int(said["head_dim"] if said.get("head_dim") else said["hidden_size"] // heads)
        share = rotation.get("partial_rotary_factor", said.get("partial_rotary_factor", 1.0))
        act = said["hidden_activation" if kind == "gemma2" else "hidden_act"]
        found = LanguageSettings(
            vocab_size=int(said["vocab_size"]),
            hidden_size=int(said["hidden_size"]),
            intermediate_size=int(said["intermediate_size"]),
            num_hidden_layers=int(said["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(said["num_key_value_heads"] or heads),
            head_dim=width,
            rms_norm_eps=float(said["rms_norm_eps"]),
            rope_theta=float(rotation.get("rope_theta", said["rope_theta"])),
            max_position_embeddings=int(said["max_position_embeddings"]),
            hidden_act=str(act),
            scale=float(said.get("query_pre_attn_scalar", width)) ** -0.5,
            softcap=float(cap) if (cap := said.get("attn_logit_softcapping")) is not None else None,
            attention_bias=kind == "qwen2_5_vl" or bool(said.get("attention_bias")),
            output_bias=kind != "glm" and bool(said.get("attention_bias")),
            norms_heads=kind in ("qwen3", "qwen3_vl"),
            turned=int(width * share),
            fused=kind == "glm",
            gemma=kind == "gemma2",
            sections=tuple(int(n) for n in turned)
            if (turned := rotation.get("mrope_section"))
            else None,
            interleaved=kind == "qwen3_vl",
        )
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as exc:
        raise refuse(f"{exc!r} came up", "well-formed numbers") from exc
    way = rotation.get("rope_type", rotation.get("type", "default"))
    if way not in _ROTATIONS:
        raise refuse(f"its rotation is {way!r}", f"{' or '.join(_ROTATIONS)}")
    if found.hidden_act not in _ACTIVATIONS:
        raise refuse(f"its activation is {found.hidden_act!r}", f"{', '.join(_ACTIVATIONS)}")
    if said.get("use_bidirectional_attention"):
        raise refuse("use_bidirectional_attention is set", "causal attention")
    if config.get("quantization_config"):
        raise refuse("its weights are quantised", "plain weights")
    return _within_window(said, found, refuse)


def _within_window(
    said: Mapping[str, Any], found: LanguageSettings, refuse: Callable[[str, str], CheckpointError]
) -> LanguageSettings:
    """Sequences are kept shorter than a layer's window, within which it is plain attention."""
    slides = said.get("use_sliding_window") or "query_pre_attn_scalar" in said
    window = said.get("sliding_window") if slides else None
    if window is None:
        return found
    if not isinstance(window, int) or window < 1:
        raise refuse(f"its sliding_window is {window!r}", "a whole number of tokens")
    longest = min(window, found.max_position_embeddings)
    return dataclasses.replace(found, max_position_embeddings=longest)


def _refused(kind: str, found: str, wanted: str) -> CheckpointError:
    return CheckpointError(f"A language model of type {kind}: {found}; perfuse takes {wanted}.")
