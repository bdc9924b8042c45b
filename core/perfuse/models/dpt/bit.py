"""The convolutions of a hybrid DPT: Big Transfer's ResNet (Kolesnikov et al. 2020, arXiv:1912.11370)."""

from torch import Tensor, nn
from torch.nn import functional as F

from perfuse.models.dpt.description import BitConfig

__all__ = ["BitBackbone"]


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1 (Qiao et al. 2019, arXiv:1903.10520).

    It pads as TensorFlow's "same" does: the odd pixel is at the bottom and on the right.
    """

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1) -> None:
        super().__init__(before, after, kernel, stride=stride, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        weight = self.weight.float()  # half precision has no such variance
        centred = weight - weight.mean(dim=(1, 2, 3), keepdim=True)
        variance = (centred * centred).mean(dim=(1, 2, 3), keepdim=True)
        filters = (centred / (variance + 1e-8).sqrt()).to(hidden.dtype)
        hidden = _padded(hidden, self.kernel_size[0], self.stride[0])
        return F.conv2d(hidden, filters, stride=self.stride)


def _padded(hidden: Tensor, kernel: int, stride: int) -> Tensor:
    sizes: list[int] = []
    for size in reversed(hidden.shape[-2:]):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sizes += [missing // 2, missing - missing // 2]
    return F.pad(hidden, sizes) if any(sizes) else hidden


class Embedder(nn.Module):
    """The first convolution, its norm and a maximum: a quarter of height and width."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        width = config.embedding_size
        self.convolution = StandardisedConv2d(config.num_channels, width, 7, stride=2)
        self.norm = nn.GroupNorm(config.num_groups, width)

    def forward(self, pictures: Tensor) -> Tensor:
        hidden = self.norm(self.convolution(pictures)).relu()
        return _largest(_padded(hidden, 3, 2))


def _largest(hidden: Tensor) -> Tensor:
    """The maximum of 3 by 3, of every second: slices, because not every engine pools so."""
    rows = hidden[:, :, :-2:2].maximum(hidden[:, :, 1:-1:2]).maximum(hidden[:, :, 2::2])
    return rows[..., :-2:2].maximum(rows[..., 1:-1:2]).maximum(rows[..., 2::2])


class Shortcut(nn.Module):
    """A convolution of one pixel and its norm, where a stage changes width."""

    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = StandardisedConv2d(before, after, 1, stride=stride)
        self.norm = nn.GroupNorm(groups, after)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.norm(self.conv(hidden))
        return output


class Bottleneck(nn.Module):
    """Three convolutions, the middle one at a quarter of the width, added to the input."""

    def __init__(self, before: int, after: int, *, stride: int, groups: int, first: bool) -> None:
        super().__init__()
        middle = _eighths(after / 4)
        self.downsample = Shortcut(before, after, stride, groups) if first else None
        self.conv1 = StandardisedConv2d(before, middle, 1)
        self.norm1 = nn.GroupNorm(groups, middle)
        self.conv2 = StandardisedConv2d(middle, middle, 3, stride=stride)
        self.norm2 = nn.GroupNorm(groups, middle)
        self.conv3 = StandardisedConv2d(middle, after, 1)
        self.norm3 = nn.GroupNorm(groups, after)

    def forward(self, residual: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(residual)).relu()
        hidden = self.norm2(self.conv2(hidden)).relu()
        hidden = self.norm3(self.conv3(hidden))
        if self.downsample is not None:
            residual = self.downsample(residual)
        output: Tensor = (hidden + residual).relu()
        return output


def _eighths(width: float) -> int:
    """The multiple of 8 nearest to a width, and not below nine tenths of it."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


class Stage(nn.Module):
    """Bottlenecks of one width; the first may halve height and width."""

    def __init__(self, before: int, after: int, *, depth: int, stride: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                Bottleneck(
                    before if i == 0 else after,
                    after,
                    stride=stride if i == 0 else 1,
                    groups=groups,
                    first=i == 0,
                )
                for i in range(depth)
            )
        )

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.layers(hidden)
        return output


class Encoder(nn.Module):
    """The stages."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        widths = (config.embedding_size, *config.hidden_sizes)
        self.stages = nn.ModuleList(
            Stage(
                widths[i],
                widths[i + 1],
                depth=depth,
                stride=1 if i == 0 else 2,
                groups=config.num_groups,
            )
            for i, depth in enumerate(config.depths)
        )


class Bit(nn.Module):
    """Pictures [B, C, H, W] to the features of each stage, at a 4th, 8th and 16th of their size."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.embedder = Embedder(config)
        self.encoder = Encoder(config)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        hidden, features = self.embedder(pictures), []
        for stage in self.encoder.stages:
            hidden = stage(hidden)
            features.append(hidden)
        return features


class BitBackbone(nn.Module):
    """``Bit`` under the name that checkpoints have for it."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.bit = Bit(config)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.bit(pictures)
        return features
