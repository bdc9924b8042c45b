"""Where a transformer is cut between its blocks."""

from dataclasses import dataclass

__all__ = ["Cut"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a transformer is cut."""

    #: How many blocks are the first ones; 0 for none.
    first: int
    #: How many are the last ones; 0 for none.
    last: int
    #: How many there are.
    of: int
    #: The side of a token, in latents; ``None`` where latents are packed to tokens before.
    patch: int | None
    #: How many tokens there are between the picture's and the text's; ``None`` where the blocks
    #: have the picture's alone.
    between: int | None

    @property
    def end(self) -> int:
        """The number of the first one of the last blocks."""
        return self.of - self.last

    @property
    def kept(self) -> int:
        """How many tensors are kept for later steps: last blocks read the text's tokens, too."""
        if not self.last or self.between is None:
            return 1
        return 3 if self.between else 2
