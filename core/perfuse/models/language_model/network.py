"""Decoder-only language models, run once over a prompt for their hidden states.

Layers are named as in Transformers, whose checkpoints they read; layers above the last hidden state
that is asked for are neither built nor loaded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec, Role
from perfuse.errors import CheckpointError
from perfuse.models.adaptive_norms import RMSNorm, ZeroCentredNorm
from perfuse.models.language_model.deep_vision import deep_vision_of
from perfuse.models.language_model.deep_vision_network import DeepVisionModel
from perfuse.models.language_model.description import LAST, LanguageSettings, layers_of, settings_of
from perfuse.models.language_model.kinds import KINDS
from perfuse.models.language_model.stored import stored_names
from perfuse.models.language_model.vision import PICTURES, picture_token, vision_of
from perfuse.models.language_model.vision_network import VisionModel
from perfuse.models.loading import load_state
from perfuse.models.rotary import rotate_halves, rotate_pairs
from perfuse.sources.fitting import Rename
from perfuse.sources.weights import Weights

__all__ = ["LanguageModel", "build", "wrap"]


def norm(model: LanguageSettings) -> nn.Module:
    kind = ZeroCentredNorm if model.gemma else RMSNorm
    return kind(model.hidden_size, model.rms_norm_eps)


class Attention(nn.Module):
    """Attention with rotated queries and keys; several queries share a key."""

    def __init__(self, model: LanguageSettings) -> None:
        super().__init__()
        heads, shared, width = model.num_attention_heads, model.num_key_value_heads, model.head_dim
        self.heads, self.shared = heads, shared
        self.scale, self.softcap = model.scale, model.softcap
        self.turned = None if model.turned == width else model.turned
        bias = model.attention_bias
        self.q_proj = nn.Linear(model.hidden_size, heads * width, bias=bias)
        self.k_proj = nn.Linear(model.hidden_size, shared * width, bias=bias)
        self.v_proj = nn.Linear(model.hidden_size, shared * width, bias=bias)
        self.o_proj = nn.Linear(heads * width, model.hidden_size, bias=model.output_bias)
        eps, norms = model.rms_norm_eps, model.norms_heads
        self.q_norm: nn.Module = RMSNorm(width, eps) if norms else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(width, eps) if norms else nn.Identity()

    def forward(self, hidden: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        query = self.q_norm(self.q_proj(hidden).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden).unflatten(-1, (self.shared, -1))).transpose(1, 2)
        value = self.v_proj(hidden).unflatten(-1, (self.shared, -1)).transpose(1, 2)
        query, key = self._turn(query, table), self._turn(key, table)
        attended = self._attend(query, self._repeat(key), self._repeat(value), bias)
        output: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output

    def _turn(self, heads: Tensor, table: Tensor) -> Tensor:
        """Heads [B, H, S, D] turned by their positions: all channels, or the first ones in pairs."""
        if self.turned is None:
            return rotate_halves(heads, table)
        first = rotate_pairs(heads[..., : self.turned], table)
        return torch.cat([first, heads[..., self.turned :]], dim=-1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        if self.softcap is None:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, scale=self.scale
            )
        logits = query @ key.transpose(2, 3) * (self.scale / self.softcap)
        logits = torch.tanh(logits) * self.softcap + bias
        return logits.float().softmax(-1).to(value.dtype) @ value

    def _repeat(self, states: Tensor) -> Tensor:
        """[B, shared, S, D] to [B, heads, S, D]."""
        if self.heads == self.shared:
            return states
        return states[:, :, None].expand(-1, -1, self.heads // self.shared, -1, -1).flatten(1, 2)


class FeedForward(nn.Module):
    """A gated linear unit between two linear layers (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, model: LanguageSettings) -> None:
        super().__init__()
        width, inner = model.hidden_size, model.intermediate_size
        self.gate_up_proj: nn.Module | None = None
        if model.fused:
            self.gate_up_proj = nn.Linear(width, 2 * inner, bias=False)
        else:
            self.gate_proj = nn.Linear(width, inner, bias=False)
            self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(model.intermediate_size, model.hidden_size, bias=False)
        self.act: nn.Module = nn.SiLU() if model.hidden_act == "silu" else nn.GELU("tanh")

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        else:
            gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        output: Tensor = self.down_proj(self.act(gate) * up)
        return output


class Layer(nn.Module):
    """Attention and a feed-forward network, each normalised first and added to its input."""

    def __init__(self, model: LanguageSettings) -> None:
        super().__init__()
        self.self_attn = Attention(model)
        self.mlp = FeedForward(model)
        self.input_layernorm = norm(model)
        self.post_attention_layernorm = norm(model)
        if model.gemma:  # where the norm "post attention" is one after it, not one before the next
            self.pre_feedforward_layernorm = norm(model)
            self.post_feedforward_layernorm = norm(model)
        self.gemma = model.gemma

    def forward(self, hidden: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden), bias, table)
        if self.gemma:
            attended = self.post_attention_layernorm(attended)
        hidden = hidden + attended
        second = self.pre_feedforward_layernorm if self.gemma else self.post_attention_layernorm
        fed = self.mlp(second(hidden))
        output: Tensor = hidden + (self.post_feedforward_layernorm(fed) if self.gemma else fed)
        return output


class LanguageModel(nn.Module):
    """``input_ids, attention_bias, rotary`` to the hidden states asked for.

    Args:
        model: Its settings.
        layers: Which hidden states, as Transformers counts them: 0 the embeddings, then a layer
            each.
        normed: Whether the last layer's is normed.
        picture: The token in whose places the states of pictures are put, which are then a fourth
            input [B, S, D]; ``None`` for a model that reads text alone. A fifth one, [B, K, S, D], is
            added after the first K layers.
    """

    def __init__(
        self,
        model: LanguageSettings,
        layers: tuple[int, ...],
        *,
        normed: bool,
        picture: int | None = None,
    ) -> None:
        super().__init__()
        self.picture = -1 if picture is None else picture
        self.embed_tokens = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleList(Layer(model) for _ in range(max(layers)))
        self.wanted, self.gemma = layers, model.gemma
        self.norm: nn.Module = norm(model) if normed else nn.Identity()

    def forward(
        self,
        input_ids: Tensor,
        attention_bias: Tensor,
        rotary: Tensor,
        picture_states: Tensor | None = None,
        picture_details: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        hidden = self.embed_tokens(input_ids)
        if picture_states is not None:
            place = torch.eq(input_ids, self.picture)[..., None]
            hidden = torch.where(place, picture_states, hidden)
        if self.gemma:
            hidden = hidden * hidden.shape[-1] ** 0.5
        states, bias = [hidden], attention_bias[:, None]
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, bias, rotary)
            if picture_details is not None and i < picture_details.shape[1]:
                hidden = hidden + picture_details[:, i]
            states.append(hidden)
        states[-1] = self.norm(hidden)
        return tuple(states[i] for i in self.wanted)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's language model, with the layers that are needed."""
    module, rename = _hollow(spec)
    load_state(module, weights, where=spec.folder, rename=rename, dtype=dtype)
    return module


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of one of Transformers' models, over its tensors.

    Raises:
        CheckpointError: the model has other layers than its config says.
    """
    if isinstance(model, LanguageModel | VisionModel | DeepVisionModel):
        return model
    module, rename = _hollow(spec)
    state = {rename(name): tensor for name, tensor in model.state_dict().items()}
    try:
        module.load_state_dict({n: t for n, t in state.items() if n is not None}, assign=True)
    except RuntimeError as exc:
        raise CheckpointError(
            f"{spec.name}, a {type(model).__name__}, does not fit its config: "
            f"{' '.join(str(exc).split())}. Give the model as Transformers loads it."
        ) from exc
    return module.requires_grad_(False)


def _hollow(spec: ComponentSpec) -> tuple[nn.Module, Rename]:
    """The module of a component, without content, and how stored tensors are named in it."""
    rename = stored_names(spec)
    with torch.device("meta"):
        if spec.role == Role.IMAGE_ENCODER:
            deep = spec.class_name in KINDS["qwen3_vl"]
            eyes: nn.Module = (
                DeepVisionModel(deep_vision_of(spec.config))
                if deep
                else VisionModel(vision_of(spec.config))
            )
            return eyes, rename
        picture = None
        if spec.signature.input(PICTURES) is not None:
            picture = picture_token(spec.config)
        normed = LAST in spec.signature.output_names
        module = LanguageModel(settings_of(spec), layers_of(spec), normed=normed, picture=picture)
    return module, rename
