"""Pictures as tokens inside a network, and back: patches of P × P pixels of [B, C, H, W]."""

from torch import Tensor, nn

__all__ = ["PatchEmbed", "patchify", "unpatchify"]


class PatchEmbed(nn.Module):
    """Patches of [B, C, H, W] as tokens, with a table of their places [h, w, D] if there is one."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, sample: Tensor, positions: Tensor | None = None) -> Tensor:
        tokens: Tensor = self.proj(sample).flatten(2).transpose(1, 2)
        # Tokens one after the other in memory: what adds to them later leaves them so, and where they lie
        # otherwise, PyTorch copies the weight of each layer that they are multiplied by.
        if positions is None:
            return tokens.contiguous()
        return (positions.flatten(0, 1)[None] + tokens).to(tokens.dtype)


def patchify(picture: Tensor, patch: int, *, channels_first: bool = False) -> Tensor:
    """[B, C, H, W] to tokens [B, H/P · W/P, P · P · C].

    Within a token there are rows, columns, channels; or channels first, then rows and columns.
    """
    batch, channels, height, width = picture.shape
    split = picture.reshape(batch, channels, height // patch, patch, width // patch, patch)
    within = (1, 3, 5) if channels_first else (3, 5, 1)
    return split.permute(0, 2, 4, *within).flatten(3).flatten(1, 2)


def unpatchify(
    tokens: Tensor, height: int, width: int, patch: int, *, channels_first: bool = False
) -> Tensor:
    """Tokens [B, h · w, P · P · C] to [B, C, h · P, w · P], for a picture of h × w tokens."""
    within = (-1, patch, patch) if channels_first else (patch, patch, -1)
    split = tokens.reshape(tokens.shape[0], height, width, *within)
    order = (3, 1, 4, 2, 5) if channels_first else (5, 1, 3, 2, 4)
    return split.permute(0, *order).flatten(4, 5).flatten(2, 3)
