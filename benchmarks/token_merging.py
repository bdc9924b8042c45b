"""Merging tokens (ToMe) in one self-attention of SD 1.5's width, 320, on each engine: what it saves.

Half of the tokens are merged (Bolya & Hoffman 2023, arXiv:2303.17604). One token of each window of 2×2 is a
destination, the first one, where the authors draw one; of the others, those that are most like a
destination are merged into it. Batch 2, as with guidance; processor time, taken in turns in one process.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sidebyside import Row, command, compare, in_turns, say
from torch import Tensor, nn

_SIDES = (32, 64)


def measure(options: Namespace) -> list[Row]:
    rounds = 2 if options.quick else (options.rounds or 7)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for side in _SIDES[:1] if options.quick else _SIDES:
            plain, merged = _blocks()
            for engine in (_torch, _onnxruntime, _openvino):
                name = engine.__name__.lstrip("_")
                say(f"{side * side} tokens, {name}")
                sides = {
                    "merged": engine(merged, side, Path(folder) / "merged"),
                    "plain": engine(plain, side, Path(folder) / "plain"),
                }
                for run in sides.values():
                    run()
                found = in_turns(rounds, sides)
                rows.append(
                    compare(
                        f"A self-attention over {side * side} tokens, half of them merged, {name}",
                        found["merged"],
                        found["plain"],
                        unit="ms",
                        against="over all of them",
                    )
                )
    return rows


def _blocks() -> tuple[Any, Any]:
    """A self-attention [B, H * W, 320], and one that merges tokens."""

    from perfuse.models.attention import Attention

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(320, heads=8, head_dim=40)

        def forward(self, picture: Any) -> Any:
            return self.attention(picture.flatten(1, 2))

    class Merged(Plain):
        def forward(self, picture: Any) -> Any:
            tokens = picture.flatten(1, 2)
            merging = Merging.of(tokens, picture.shape[1:3], 0.5)
            return merging.unmerge(self.attention(merging.merge(tokens)))

    torch.manual_seed(0)
    plain, merged = Plain().eval(), Merged().eval()
    merged.load_state_dict(plain.state_dict())
    return plain, merged


class Merging:
    """Which tokens [B, N, C] become one: destinations are D of them, sources the other S."""

    def __init__(self, order: Tensor, merged: Tensor, kept: Tensor, into: Tensor) -> None:
        #: The places of the destinations, then those of the sources: [N].
        self.order = order
        #: Sources that are merged, those that stay [B, ...], and the destinations of the former.
        self.merged, self.kept, self.into = merged, kept, into

    @classmethod
    def of(cls, hidden: Tensor, size: torch.Size, ratio: float) -> "Merging":
        """Merge about ``ratio`` of the tokens by how alike their states are."""
        places = torch.arange(hidden.shape[1], device=hidden.device).reshape(size)
        first = places[::2, ::2].flatten()
        others = [places[::2, 1::2], places[1::2, ::2], places[1::2, 1::2]]
        order = torch.cat([first, *(one.flatten() for one in others)])
        unit = hidden / hidden.norm(dim=-1, keepdim=True)
        alike = unit[:, order[len(first) :]] @ unit[:, first].transpose(1, 2)
        best, into = alike.max(dim=-1)
        sources = best.argsort(dim=-1, descending=True)
        count = int(hidden.shape[1] * ratio)
        merged, kept = sources[:, :count], sources[:, count:]
        return cls(order, merged, kept, into.gather(1, merged))

    def merge(self, tokens: Tensor) -> Tensor:
        """The sources that stay, and the destinations, each the mean of what is in it."""
        width, count = tokens.shape[-1], self.order.shape[0] - self._sources
        ordered = tokens[:, self.order]
        first, others = ordered[:, :count], ordered[:, count:]
        added = _taken(others, self.merged)
        total = first.scatter_add(1, _wide(self.into, width), added)
        ones = torch.ones_like(self.into, dtype=tokens.dtype)
        numbers = torch.ones_like(first[..., 0]).scatter_add(1, self.into, ones)
        return torch.cat([_taken(others, self.kept), total / numbers[..., None]], dim=1)

    def unmerge(self, few: Tensor) -> Tensor:
        """Each source as what it was merged into, in the places that they had."""
        width, left = few.shape[-1], self.kept.shape[1]
        kept, first = few[:, :left], few[:, left:]
        sources = torch.cat([self.kept, self.merged], dim=1)
        others = torch.cat([kept, _taken(first, self.into)], dim=1)
        others = torch.zeros_like(others).scatter(1, _wide(sources, width), others)
        return torch.cat([first, others], dim=1)[:, self.order.argsort()]

    @property
    def _sources(self) -> int:
        return self.merged.shape[1] + self.kept.shape[1]


def _wide(index: Tensor, width: int) -> Tensor:
    """[B, K] for all of ``width`` channels."""
    return index[..., None].expand(-1, -1, width)


def _taken(tokens: Tensor, index: Tensor) -> Tensor:
    """Some of the tokens [B, N, C], by their numbers [B, K]."""
    return tokens.gather(1, _wide(index, tokens.shape[-1]))


def _given(side: int) -> Any:
    return np.random.default_rng(0).standard_normal((2, side, side, 320), np.float32)


def _program(module: Any, side: int) -> Any:
    dims = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}
    with torch.no_grad():
        return torch.export.export(
            module, (torch.from_numpy(_given(side)),), dynamic_shapes=(dims,), strict=False
        )


def _timed(run: Callable[[], Any]) -> Callable[[], float]:
    def timed() -> float:
        began = time.process_time()
        run()
        return time.process_time() - began

    return timed


def _torch(module: Any, side: int, path: Path) -> Callable[[], float]:
    given = torch.from_numpy(_given(side))

    def run() -> None:
        with torch.inference_mode():
            module(given)

    return _timed(run)


def _onnxruntime(module: Any, side: int, path: Path) -> Callable[[], float]:
    import onnxruntime

    file = path.with_suffix(".onnx")
    torch.onnx.export(_program(module, side), (), file, dynamo=True, external_data=False)
    session = onnxruntime.InferenceSession(file)
    given = {session.get_inputs()[0].name: _given(side)}
    return _timed(lambda: session.run(None, given))


def _openvino(module: Any, side: int, path: Path) -> Callable[[], float]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(
        openvino.convert_model(_program(module, side)), "CPU", settings
    )
    given = _given(side)
    return _timed(lambda: compiled([given]))


if __name__ == "__main__":
    command(measure, __doc__)
