"""Whatever a user changes between two calls, no graph of the old module answers."""

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

import perfuse
from perfuse import ArtifactStore

pytestmark = pytest.mark.export


class Scaled(AttnProcessor2_0):  # type: ignore[misc]
    """An attention processor of the user's, with a number of its own."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) * self.scale


def louder(self: Any, *args: Any, **kwargs: Any) -> Any:
    return AttnProcessor2_0.__call__(self, *args, **kwargs) * 3


class Kept:
    """An object of the user's that keeps a number without a ``__dict__``."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 1.0

    def times(self, x: Any) -> Any:
        return x * self.number


def counting() -> Any:
    """A method with a number of its own, as decorators have one, and a function that sets it."""
    number = 0.0

    def counted(self: Any) -> float:
        return number

    def put(value: float) -> None:
        nonlocal number
        number = value

    counted.put = put  # type: ignore[attr-defined]
    return counted


#: A number that code reads from its module.
LEVEL = 0.0


class Doubled(torch.nn.Module):  # type: ignore[misc]
    """A parametrization."""

    def forward(self, weight: Any) -> Any:
        return weight * 2


class Raised(torch.nn.LayerNorm):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        return super().forward(x) + 1


class Block(torch.nn.Module):  # type: ignore[misc]
    """A transformer block behind a switch and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.block = BasicTransformerBlock(8, 2, 4, cross_attention_dim=8)
        self.register_buffer("table", torch.linspace(0, 1, 8))
        self.factor = 1.0
        self.options = {"shift": 0.0}
        self.late = lambda x: x
        self.kept = Kept()
        self.many = [0.0] * 400
        self.unlisted = [torch.nn.Linear(8, 8)]

    power = 1.0
    shared: ClassVar[list[float]] = [0.0]
    counted = counting()

    def forward(self, sample: Any, states: Any, gain: float = 1.0) -> Any:
        mixed = self.block(sample + self.table, encoder_hidden_states=states)
        shifted = mixed * float(self.factor) + float(self.options["shift"]) + self.helped()
        shifted = shifted + self.more() + 0.1 * self.unlisted[0](sample.float())
        return self.late(shifted) * gain * self.power * self.kept.number

    def more(self, also: float = 0.0) -> float:
        return LEVEL + self.shared[0] + self.many[300] + self.counted() + also

    def helped(self) -> float:
        return 0.0

    @property
    def attention(self) -> Any:
        return self.block.attn1


def half_of(weight: Any) -> None:
    rows = weight.data.clone()
    weight.data[0], weight.data[1] = rows[1], rows[0]


def _times(factor: float) -> Any:
    return lambda x, by=factor: x * by


def longer(self: Any, also: float = 0.0) -> float:
    return 0.75


def _put_code(m: Any) -> None:
    """What autoreload does to a function whose file was edited."""
    m.more.__func__.__code__ = longer.__code__


def _sdpa(monkeypatched: Any = torch.nn.functional.scaled_dot_product_attention) -> Any:
    return lambda *args, **kwargs: monkeypatched(*args, **kwargs) * 0.5


WAYS: dict[str, Callable[[Block], object]] = {
    "written in place": lambda m: m.block.ff.net[2].weight.mul_(1.1),
    "written through data": lambda m: m.block.ff.net[2].weight.data.mul_(1.1),
    "one number through data": lambda m: m.block.ff.net[2].weight.data[3].__setitem__(5, 4.0),
    "rows exchanged through data": lambda m: half_of(m.block.ff.net[2].weight),
    "data replaced": lambda m: setattr(m.block.norm1.weight, "data", m.block.norm1.weight * 2),
    "parameter replaced": lambda m: setattr(
        m.block.norm1, "bias", torch.nn.Parameter(m.block.norm1.bias + 1)
    ),
    "state loaded": lambda m: m.load_state_dict({k: v * 0.9 for k, v in m.state_dict().items()}),
    "buffer written": lambda m: m.table.add_(0.5),
    "buffer replaced": lambda m: setattr(m, "table", m.table * 2),
    "number replaced": lambda m: setattr(m, "factor", 1.5),
    "dict written": lambda m: m.options.update(shift=0.25),
    "function replaced": lambda m: setattr(m, "late", lambda x: x * 2),
    "numpy's number": lambda m: setattr(m, "factor", np.float32(1.25)),
    "numpy's other number": lambda m: setattr(m, "factor", np.float32(0.5)),
    "numpy's array": lambda m: m.options.update(shift=np.array(0.75)),
    "numpy's array written": lambda m: m.options["shift"].__iadd__(1.0),
    "function of torch": lambda m: setattr(m, "late", torch.sin),
    "another of torch": lambda m: setattr(m, "late", torch.cos),
    "function with a default": lambda m: setattr(m, "late", _times(2.0)),
    "another default": lambda m: setattr(m, "late", _times(3.0)),
    "an object's method": lambda m: setattr(m, "late", m.kept.times),
    "an object's number": lambda m: setattr(m.kept, "number", 0.5),
    "class's number": lambda m: setattr(type(m), "power", 2.0),
    "class's other method": lambda m: setattr(type(m), "helped", lambda self: 1.0),
    "layer replaced": lambda m: m.block.ff.net.__setitem__(1, torch.nn.Tanh()),
    "layer's forward replaced": lambda m: setattr(
        m.block.norm3, "forward", types.MethodType(lambda self, x: x * 2, m.block.norm3)
    ),
    "processor replaced": lambda m: m.attention.set_processor(Scaled(1.5)),
    "processor's number": lambda m: setattr(m.attention.processor, "scale", 0.5),
    "processor's class": lambda m: setattr(Scaled, "__call__", louder),
    "processor back": lambda m: m.attention.set_processor(AttnProcessor()),
    "fused": lambda m: m.attention.fuse_projections(),
    "class's list": lambda m: m.shared.__setitem__(0, 0.5),
    "class's other list": lambda m: setattr(type(m), "shared", [0.25]),
    "default replaced in place": lambda m: setattr(m.more.__func__, "__defaults__", (0.3,)),
    "closure of a class's method": lambda m: type(m).counted.put(0.4),
    "global of its module": lambda m: globals().update(LEVEL=0.2),
    "late in a long list": lambda m: m.many.__setitem__(300, 0.6),
    "layer in a plain list": lambda m: m.unlisted[0].weight.mul_(3),
    "code replaced in place": _put_code,
    "class of a layer": lambda m: setattr(m.block.norm1, "__class__", Raised),
    "parametrized": lambda m: torch.nn.utils.parametrize.register_parametrization(
        m.block.ff.net[2], "weight", Doubled()
    ),
    "torch's function replaced": lambda m: setattr(
        torch.nn.functional, "scaled_dot_product_attention", _sdpa()
    ),
    "float64": lambda m: m.double(),
    "float32 again": lambda m: m.float(),
    "trained": lambda m: m.train(),
    "hook on a layer": lambda m: m.block.norm1.register_forward_hook(lambda m, i, o: o * 2),
    "hook on every module": lambda m: torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, answer: answer * 1.1
    ),
    "hook on the module": lambda m: m.register_forward_hook(lambda m, i, o: o + 1),
    "class's forward": lambda m: setattr(type(m), "forward", lambda self, s, e, gain=1.0: s * 7),
}


#: One of each kind; each costs a capture.
SOME = (
    "one number through data",
    "buffer written",
    "class's number",
    "processor replaced",
    "processor's number",
    "torch's function replaced",
    "hook on a layer",
    "class's forward",
)


@pytest.mark.parametrize(
    ("names", "engine"),
    [
        pytest.param(SOME, "onnxruntime", id="some"),
        pytest.param(tuple(WAYS), "onnxruntime", id="all", marks=pytest.mark.exhaustive),
        pytest.param(tuple(WAYS), "openvino", id="all-openvino", marks=pytest.mark.exhaustive),
    ],
)
def test_no_answer_of_an_old_graph(
    names: tuple[str, ...], engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(WAYS) == 49
    pytest.importorskip(engine)
    _put_back(monkeypatch)
    torch.manual_seed(0)
    module = Block().eval()
    perfuse.accelerate(module, engine, store=ArtifactStore(tmp_path))
    sample, states = torch.randn(2, 6, 8), torch.randn(2, 5, 8)

    def both() -> tuple[Any, Any]:
        dtype = module.table.dtype
        with torch.no_grad():
            found = module(sample.to(dtype), states.to(dtype))
            kept = vars(module).pop("forward")
            expected = module(sample.to(dtype), states.to(dtype))
            module.forward = kept
        return found, expected

    _, before = both()
    for name in names:
        with torch.no_grad():
            WAYS[name](module)
        found, expected = both()
        scale = float(expected.abs().max())
        assert float((found - expected).abs().max()) <= 1e-5 * scale, name
        if name not in ("float64", "float32 again", "trained", "fused"):
            assert float((expected - before).abs().max()) > 1e-4 * scale, f"{name} changed nothing"
        before = expected
    (row,) = module.perfuse.report()
    assert row.calls >= len(names) - 8 and row.calls > 4, (
        "most of this has to have run on the engine"
    )
    assert "hook" in row.reasons[-1]


def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what the ways do to classes undone at the end."""
    monkeypatch.setattr(Scaled, "__call__", Scaled.__call__)
    for name in ("forward", "helped", "power", "shared"):
        monkeypatch.setattr(Block, name, getattr(Block, name))
    monkeypatch.setattr(Block, "shared", [0.0])
    monkeypatch.setattr(Block.more, "__code__", Block.more.__code__)
    monkeypatch.setattr(Block.more, "__defaults__", Block.more.__defaults__)
    monkeypatch.setitem(globals(), "LEVEL", 0.0)
    space = torch.nn.functional
    monkeypatch.setattr(space, "scaled_dot_product_attention", space.scaled_dot_product_attention)
    hooks = torch.nn.modules.module._global_forward_hooks
    monkeypatch.setattr(torch.nn.modules.module, "_global_forward_hooks", type(hooks)())
    Block.counted.put(0.0)


def test_every_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from perfuse.bridge.state import Weights, described

    _put_back(monkeypatch)
    module = Block().eval()
    for name, change in WAYS.items():
        before, weights = described(module), Weights(module)
        assert described(module) == before and not weights.changed(module, thorough=True)
        with torch.no_grad():
            change(module)
        seen = described(module) != before or weights.changed(module, thorough=True)
        assert seen or name == "hook on the module", name  # torch calls that one around the graph


def test_a_description_is_the_same_in_another_process() -> None:
    """Sets come in another order there: those in code, and the list that Diffusers makes of one."""
    from perfuse.bridge.state import _constant, described

    module = diffusers.UNet2DModel(
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    before, listed = described(module), module.config["_use_default_values"]
    assert len(listed) > 1
    listed.reverse()
    assert described(module) == before
    assert _constant(frozenset("ba")) == "[\"'a'\", \"'b'\"]"


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_the_same_module_is_captured_once(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    torch.manual_seed(0)
    module = perfuse.accelerate(Block().eval(), engine, store=ArtifactStore(tmp_path))
    with torch.no_grad():
        for size in (6, 6, 9, 12, 15):
            module(torch.randn(2, size, 8), torch.randn(2, 5, 8))
        (row,) = module.perfuse.report()
        assert (row.calls, row.torch_calls, row.graphs) == (5, 0, 2)  # one size, then any
        made = len(ArtifactStore(tmp_path).entries())
        module.perfuse.restore()
        assert "forward" not in vars(module)
        perfuse.accelerate(module, engine, store=ArtifactStore(tmp_path))
        for size in (6, 9):
            module(torch.randn(2, size, 8), torch.randn(2, 5, 8))
    assert len(ArtifactStore(tmp_path).entries()) == made  # found again by its content


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_a_number_that_changes_becomes_an_input(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    torch.manual_seed(0)
    module = perfuse.accelerate(Block().eval(), engine, store=ArtifactStore(tmp_path))
    sample, states = torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    with torch.no_grad():
        one = module(sample, states, 1.0)
        for gain in (2.5, 0.75, -1.25):
            assert torch.allclose(module(sample, states, gain), one * gain, atol=1e-5)
    (row,) = module.perfuse.report()
    assert (row.calls, row.torch_calls, row.graphs) == (4, 0, 2)
