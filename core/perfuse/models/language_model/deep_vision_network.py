"""The eyes of Qwen 3 VL: patches of a picture to states and details that its language model reads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.language_model.deep_vision import DeepVisionSettings
from perfuse.models.language_model.vision_network import PatchEmbed, VisionAttention

__all__ = ["DeepVisionModel"]

_EPS = 1e-6


class DeepVisionMLP(nn.Module):
    """Two linear layers."""

    def __init__(self, vision: DeepVisionSettings) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(vision.hidden_size, vision.intermediate_size)
        self.linear_fc2 = nn.Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(hidden), approximate="tanh"))
        return output


class DeepVisionBlock(nn.Module):
    """Attention and a feed-forward network, each normalised first and added to its input."""

    def __init__(self, vision: DeepVisionSettings) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(vision.hidden_size, eps=_EPS) for _ in range(2))
        self.attn = VisionAttention(vision, full=True)
        self.mlp = DeepVisionMLP(vision)

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), None, table)
        output: Tensor = hidden + self.mlp(self.norm2(hidden))
        return output


class DeepPatchMerger(nn.Module):
    """Neighbouring patches to one state; details are normalised when they are joined, not before."""

    def __init__(self, vision: DeepVisionSettings, *, details: bool) -> None:
        super().__init__()
        self.each, self.details = vision.merge**2, details
        width = self.each * vision.hidden_size
        self.norm = nn.LayerNorm(width if details else vision.hidden_size, eps=_EPS)
        self.linear_fc1 = nn.Linear(width, width)
        self.linear_fc2 = nn.Linear(width, vision.out_hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        before = hidden if self.details else self.norm(hidden)
        joined: Tensor = before.unflatten(1, (-1, self.each)).flatten(2)
        joined = self.norm(joined) if self.details else joined
        output: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(joined)))
        return output


class DeepVisionModel(nn.Module):
    """``patches, places, shares, rotary`` to ``(picture_states, picture_details)``."""

    def __init__(self, vision: DeepVisionSettings) -> None:
        super().__init__()
        self.deep = vision.deep
        self.patch_embed = PatchEmbed(vision, bias=True)
        self.pos_embed = nn.Embedding(vision.num_position_embeddings, vision.hidden_size)
        self.blocks = nn.ModuleList(DeepVisionBlock(vision) for _ in range(vision.depth))
        self.merger = DeepPatchMerger(vision, details=False)
        self.deepstack_merger_list = nn.ModuleList(
            DeepPatchMerger(vision, details=True) for _ in vision.deep
        )

    def forward(
        self, patches: Tensor, places: Tensor, shares: Tensor, rotary: Tensor
    ) -> tuple[Tensor, Tensor]:
        around = self.pos_embed(places) * shares[..., None]
        hidden = self.patch_embed(patches) + around.sum(dim=1)
        details: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            hidden = block(hidden, rotary)
            if i in self.deep:
                details.append(self.deepstack_merger_list[len(details)](hidden))
        return self.merger(hidden), torch.stack(details, dim=1)
