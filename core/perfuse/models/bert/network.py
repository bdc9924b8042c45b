"""BERT's encoder (Devlin et al. 2019, arXiv:1810.04805), of one text at a time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.bert.description import BertConfig, current
from perfuse.models.loading import load_state
from perfuse.sources.weights import Weights

__all__ = ["Bert", "build", "wrap"]

#: Added to the logits of what is hidden; float16 holds it, and its exponential is 0.
_HIDDEN = -10000.0


class BertEmbeddings(nn.Module):
    """A vector for each word, for each place, and for the first of two texts."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        width = bert.hidden_size
        self.word_embeddings = nn.Embedding(bert.vocab_size, width)
        self.position_embeddings = nn.Embedding(bert.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(bert.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=bert.layer_norm_eps)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        words = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        output: Tensor = self.LayerNorm(words + self.position_embeddings(position_ids))
        return output


class BertSelfAttention(nn.Module):
    """Attention of [B, S, D] to itself, before its last layer."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        self.heads = bert.num_attention_heads
        self.query = nn.Linear(bert.hidden_size, bert.hidden_size)
        self.key = nn.Linear(bert.hidden_size, bert.hidden_size)
        self.value = nn.Linear(bert.hidden_size, bert.hidden_size)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            layer(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return attended.transpose(1, 2).flatten(2)


class BertOutput(nn.Module):
    """A layer whose result is added to what was before, and the sum normalised."""

    def __init__(self, channels: int, bert: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(channels, bert.hidden_size)
        self.LayerNorm = nn.LayerNorm(bert.hidden_size, eps=bert.layer_norm_eps)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        output: Tensor = self.LayerNorm(self.dense(hidden) + before)
        return output


class BertAttention(nn.Module):
    """Attention, added to its input and normalised."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(bert)
        self.output = BertOutput(bert.hidden_size, bert)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        output: Tensor = self.output(self.self(hidden, bias), hidden)
        return output


class BertIntermediate(nn.Module):
    """The first layer of the feed-forward network."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(bert.hidden_size, bert.intermediate_size)
        self.act = nn.GELU() if bert.hidden_act == "gelu" else nn.ReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.act(self.dense(hidden))
        return output


class BertLayer(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(bert)
        self.intermediate = BertIntermediate(bert)
        self.output = BertOutput(bert.intermediate_size, bert)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        hidden = self.attention(hidden, bias)
        output: Tensor = self.output(self.intermediate(hidden), hidden)
        return output


class BertEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(bert) for _ in range(bert.num_hidden_layers))

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layer:
            hidden = layer(hidden, bias)
        return hidden


class Bert(nn.Module):
    """``(input_ids, attention_mask, position_ids) -> (last_hidden_state,)``."""

    def __init__(self, bert: BertConfig) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(bert)
        self.encoder = BertEncoder(bert)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
    ) -> tuple[Tensor]:
        hidden = self.embeddings(input_ids, position_ids)
        bias = (1 - attention_mask.to(hidden.dtype))[:, None, None] * _HIDDEN
        return (self.encoder(hidden, bias),)


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    model = _hollow(spec)
    load_state(model, weights, where=spec.folder, rename=current, dtype=dtype)
    return model


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """Transformers' model as ours, over the same tensors."""
    if isinstance(model, Bert):
        return model
    ours = _hollow(spec)
    named = {current(name): tensor for name, tensor in model.state_dict().items()}
    ours.load_state_dict({n: tensor for n, tensor in named.items() if n is not None}, assign=True)
    return ours.requires_grad_(False)


def _hollow(spec: ComponentSpec) -> Bert:
    with torch.device("meta"):
        return Bert(BertConfig.from_dict(spec.config))
