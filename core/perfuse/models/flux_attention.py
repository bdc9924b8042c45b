"""Attention in FLUX.1's blocks with two streams, and in those of what was made of it."""

from collections.abc import Callable

from torch import Tensor

from perfuse.models.joint_attention import JointAttention

__all__ = ["FluxAttention", "Look"]

#: What the picture's queries [B, H, N, D] see of image prompts, [B, N, H · D].
Look = Callable[[Tensor], Tensor]


class FluxAttention(JointAttention):
    """Joint attention of text and picture; the picture may look at image prompts beside it."""

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        text: Tensor,
        table: Tensor | None = None,
        bias: Tensor | None = None,
        look: Look | None = None,
    ) -> tuple[Tensor | None, ...]:
        """The picture's and the text's tokens after attention; and what is seen, if it looks.

        It looks with queries that are normalised, and not turned by ``table``.
        """
        heads = self.heads_of(hidden)
        both = self.left(*self.mixed(heads, text, table, bias))
        return both if look is None else (*both, look(heads[0]))
