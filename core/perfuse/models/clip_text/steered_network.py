"""The module of a CLIP text encoder that takes learned tokens and a mask."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SteeredClipText"]


class SteeredClipText(nn.Module):
    """``input_ids, added_embeddings, attention_bias -> (…, hidden_states, normed_hidden_states)``.

    The first outputs are the plain encoder's. The model itself stays Transformers': its table
    of embeddings is asked for the ids that it has, and the rest is read from the input.
    """

    def __init__(self, flat: Any) -> None:
        super().__init__()
        self.model = flat.model
        self.read = flat.read

    def forward(
        self, input_ids: Tensor, added_embeddings: Tensor, attention_bias: Tensor
    ) -> tuple[Tensor, ...]:
        inner = getattr(self.model, "text_model", self.model)
        with _learned(inner.embeddings.token_embedding, input_ids, added_embeddings):
            output = self.model(
                input_ids=input_ids,
                attention_mask=attention_bias[:, None],
                output_hidden_states=True,
            )
        states = torch.stack(tuple(output.hidden_states), dim=1)
        return (*self.read(output), states, inner.final_layer_norm(states))


@contextmanager
def _learned(table: nn.Embedding, ids: Tensor, added: Tensor) -> Iterator[None]:
    """Within this, the table gives ``added`` for ids that are beyond its end."""
    size = table.num_embeddings

    def known(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0].clamp(max=size - 1),)

    def chosen(_: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        return torch.where((ids >= size)[..., None], added.to(found.dtype), found)

    with ExitStack() as hooks:
        for hook in (table.register_forward_pre_hook(known), table.register_forward_hook(chosen)):
            hooks.callback(hook.remove)
        yield
