"""DPT with its head for depth (Ranftl et al. 2021, arXiv:2103.13413)."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.contract.spec import ComponentSpec
from perfuse.models.building import load_native, native
from perfuse.models.dpt.description import DptConfig
from perfuse.models.dpt.transformer import Dpt
from perfuse.models.model import Model
from perfuse.sources.weights import Weights

__all__ = ["DPTForDepthEstimation", "build", "wrap"]


class ReassembleLayer(nn.Module):
    """A map of tokens at its own width, enlarged or reduced by a factor."""

    def __init__(self, before: int, after: int, factor: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(before, after, kernel_size=1)
        self.resize: nn.Module = nn.Identity()
        if factor > 1:
            times = int(factor)
            self.resize = nn.ConvTranspose2d(after, after, kernel_size=times, stride=times)
        elif factor < 1:
            self.resize = nn.Conv2d(after, after, 3, stride=int(1 / factor), padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.resize(self.projection(hidden))
        return output


class Reassemble(nn.Module):
    """States to maps [B, C, h, w]; the class token goes into each token, as ``readout_type`` says.

    The first two of a hybrid are maps already.
    """

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.grid, self.readout = config.grid, config.readout_type
        self.maps = 2 if config.is_hybrid else 0
        pairs = zip(config.neck_hidden_sizes, config.reassemble_factors, strict=True)
        self.layers = nn.ModuleList(
            nn.Identity()
            if i < self.maps
            else ReassembleLayer(config.hidden_size, channels, factor)
            for i, (channels, factor) in enumerate(pairs)
        )
        width = config.hidden_size
        if self.readout == "project":
            self.readout_projects = nn.ModuleList(
                nn.Sequential(nn.Identity())
                if i < self.maps
                else nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
                for i in range(len(self.layers))
            )

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        return [
            state if i < self.maps else self.layers[i](self._map(i, state))
            for i, state in enumerate(states)
        ]

    def _map(self, i: int, state: Tensor) -> Tensor:
        first, tokens = state[:, :1], state[:, 1:]
        if self.readout == "project":
            tokens = self.readout_projects[i](torch.cat([tokens, first.expand_as(tokens)], dim=-1))
        elif self.readout == "add":
            tokens = tokens + first
        size = (self.grid, self.grid)
        pixels: Tensor = tokens.unflatten(1, size).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
        return pixels


class ResidualLayer(nn.Module):
    """Two convolutions, each after a ReLU, added to the input."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        width, normed = config.fusion_hidden_size, bool(config.use_batch_norm_in_fusion_residual)
        asked = config.use_bias_in_fusion_residual
        bias = asked if asked is not None else not normed
        self.convolution1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.batch_norm1 = nn.BatchNorm2d(width) if normed else None
        self.batch_norm2 = nn.BatchNorm2d(width) if normed else None

    def forward(self, residual: Tensor) -> Tensor:
        hidden = self.convolution1(residual.relu())
        if self.batch_norm1 is not None:
            hidden = self.batch_norm1(hidden)
        hidden = self.convolution2(hidden.relu())
        if self.batch_norm2 is not None:
            hidden = self.batch_norm2(hidden)
        output: Tensor = hidden + residual
        return output


class FusionLayer(nn.Module):
    """The coarser maps and the next one, together at twice the size."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.projection = nn.Conv2d(width, width, kernel_size=1)
        self.residual_layer1 = ResidualLayer(config)
        self.residual_layer2 = ResidualLayer(config)

    def forward(self, hidden: Tensor, finer: Tensor | None = None) -> Tensor:
        if finer is not None:
            size = hidden.shape[-2:]
            if finer.shape[-2:] != size:
                finer = F.interpolate(finer, size=size, mode="bilinear", align_corners=False)
            hidden = hidden + self.residual_layer1(finer)
        output: Tensor = self.projection(_doubled(self.residual_layer2(hidden)))
        return output


def _doubled(hidden: Tensor) -> Tensor:
    """Twice the height and width, the corners where they were."""
    size = 2 * hidden.shape[-2], 2 * hidden.shape[-1]
    return F.interpolate(hidden, size=size, mode="bilinear", align_corners=True)


class Fusion(nn.Module):
    """From the coarsest map to the finest."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusionLayer(config) for _ in config.neck_hidden_sizes)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        coarsest, *others = reversed(maps)
        fused = [self.layers[0](coarsest)]
        for layer, finer in zip(list(self.layers)[1:], others, strict=True):
            fused.append(layer(fused[-1], finer))
        return fused


class Neck(nn.Module):
    """States to fused maps, each twice the size of the one before."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.reassemble_stage = Reassemble(config)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, width, 3, padding=1, bias=False)
            for channels in config.neck_hidden_sizes
        )
        self.fusion_stage = Fusion(config)

    def forward(self, states: list[Tensor]) -> list[Tensor]:
        maps = self.reassemble_stage(states)
        fused: list[Tensor] = self.fusion_stage(
            [conv(one) for conv, one in zip(self.convs, maps, strict=True)]
        )
        return fused


class Doubled(nn.Module):
    """Twice the height and width."""

    def forward(self, hidden: Tensor) -> Tensor:
        return _doubled(hidden)


class DepthHead(nn.Module):
    """A fused map to depth [B, H, W], which is nowhere below zero."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        width = config.fusion_hidden_size
        self.projection = nn.Conv2d(width, width, 3, padding=1) if config.add_projection else None
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            Doubled(),
            nn.Conv2d(width // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, kernel_size=1),
            nn.ReLU(),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        if self.projection is not None:
            hidden = self.projection(hidden).relu()
        depth: Tensor = self.head(hidden)
        return depth[:, 0]


class DPTForDepthEstimation(Model):
    """``pixel_values -> (predicted_depth,)``, larger where nearer."""

    config_class = DptConfig
    config: DptConfig
    weights_name: ClassVar[str] = "model.safetensors"

    def build(self) -> None:
        self.dpt = Dpt(self.config)
        self.neck = Neck(self.config)
        self.head = DepthHead(self.config)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Pictures [B, C, S, S] of the config's ``image_size``, as its image processor makes them."""
        fused = self.neck(self.dpt(pixel_values))
        return (self.head(fused[self.config.head_in_index]),)

    @staticmethod
    def rename(name: str) -> str | None:
        """A tensor's name; ``None`` for the pooled state, which depth does not read."""
        return None if name.startswith("dpt.pooler.") else name


def build(spec: ComponentSpec, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The flat module of a checkpoint's component."""
    return load_native(DPTForDepthEstimation, spec, weights, dtype)


def wrap(spec: ComponentSpec, model: nn.Module) -> nn.Module:
    """The flat module of a depth estimator of perfuse or Transformers."""
    ours = native(DPTForDepthEstimation, spec, model)
    return ours if isinstance(ours, Model) else Flat(ours)


class Flat(nn.Module):
    """Transformers' own module, called as perfuse's is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.model(pixel_values).predicted_depth,)
