"""What a call of a pipeline returns."""

from typing import Any

__all__ = ["PipelineOutput"]


class PipelineOutput(dict[str, Any]):
    """The results of a call by name; it indexes as Diffusers' outputs do.

    What is ``None`` is an attribute, but no entry. As of Diffusers' outputs, ``tuple(out)`` is
    that of the names; ``out.to_tuple()`` or ``return_dict=False`` gives the values.

    >>> out = PipelineOutput(images=["a picture"], seeds=(3,))
    >>> out.images, out["images"], out[0], out.nsfw_content_detected, out.seeds
    (['a picture'], ['a picture'], ['a picture'], None, (3,))
    >>> out.to_tuple()
    (['a picture'],)
    """

    #: By ``output_type``: PIL pictures, an array [B, H, W, C] or a tensor [B, C, H, W] in [0, 1], or
    #: latents [B, C, h, w].
    images: Any
    #: For each picture whether the safety checker blackened it; ``None`` where nothing was checked.
    nsfw_content_detected: list[bool] | None
    #: The seed of each noise stream; ``None`` for a generator that the caller gave.
    seeds: tuple[int | None, ...]

    def __init__(
        self,
        *,
        images: Any,
        nsfw_content_detected: list[bool] | None = None,
        seeds: tuple[int | None, ...] = (),
    ) -> None:
        results = {"images": images, "nsfw_content_detected": nsfw_content_detected}
        super().__init__({name: one for name, one in results.items() if one is not None})
        self.__dict__.update(results, seeds=seeds)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The entries' values, in order."""
        return tuple(self.values())
