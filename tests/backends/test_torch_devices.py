"""The table of torch devices, and what the backend does by it. None of mps, xpu, hpu runs here.

The CPU is given another device's entry: what an entry asks for is then seen to be done, and to
change no number.
"""

import dataclasses
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from perfuse import DiffusionPipeline
from perfuse.backend import Request, SupportLevel, Target
from perfuse.contract.limits import Limits
from perfuse.errors import UnsupportedError
from perfuse.plugins import resolve
from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.store import ArtifactStore
from perfuse_torch import devices
from perfuse_torch.attention import SlicedAttention
from perfuse_torch.backend import Torch
from perfuse_torch.devices import DEVICES, TorchDevice
from perfuse_torch.limits import LIMITS

Give = Callable[..., TorchDevice]
_SHAPES = {
    "text_encoder": {"batch": 3, "sequence": 7},
    "unet": {"batch": 4, "latent_height": 8, "latent_width": 6, "sequence": 7},
}


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """``give("mps", …)``: from here on the CPU is taken for a device of that kind."""

    def give(kind: str = "cpu", **changes: Any) -> TorchDevice:
        entry = dataclasses.replace(DEVICES[kind], kind="cpu", **changes)
        monkeypatch.setitem(DEVICES, "cpu", entry)  # type: ignore[arg-type]
        return entry

    return give


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called of the module ``fake_device``, in order."""
    made: list[str] = []
    module = types.ModuleType("fake_device")
    for name in ("after", "synchronize", "empty"):
        setattr(
            module, name, lambda *given, name=name: made.append(" ".join([name, *map(str, given)]))
        )
    module.no = lambda: False  # type: ignore[attr-defined]
    module.flags = types.SimpleNamespace()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_device", module)
    return made


@pytest.fixture
def run(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """``run("unet")``: the array that a component of the small SD computes, and its program."""

    def run(name: str, *, precision: str = "float32", wide: bool = False) -> tuple[Any, Any]:
        component = Checkpoint.open(checkpoint("sd1")).component(name, precision=precision)
        target = Target(backend="torch", device="cpu")
        program = Torch().prepare(component, target, ArtifactStore(tmp_path))
        random = np.random.default_rng(0)
        inputs = {}
        for tensor in component.spec.signature.inputs:
            shape = tensor.resolve(_SHAPES[name])
            drawn = random.standard_normal(shape).astype(np.float64 if wide else np.float32)
            if tensor.dtype == "int64":
                drawn = random.integers(0, 10, shape)
            inputs[tensor.name] = drawn
        return next(iter(program(**inputs).values())), program

    return run


def test_whatever_is_not_the_default_has_a_source() -> None:
    """Every kind, every field that says something, in the entry and in its limits."""
    assert list(DEVICES) == ["cuda", "hpu", "xpu", "mps", "cpu"]
    for entry in DEVICES.values():
        for table, own in ((entry, {"kind", "limits", "sources"}), (entry.limits, {"sources"})):
            said = {
                one.name
                for one in dataclasses.fields(table)
                if one.name not in {*own, "executed", "precisions"}
                and getattr(table, one.name) != _default(one)
            }
            sources = dict(table.sources)
            assert said <= sources.keys(), (entry.kind, said - sources.keys())
            assert sources.keys() <= {one.name for one in dataclasses.fields(table)}
            assert all(url.startswith("https://") for url in sources.values())


def _default(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_what_an_entry_names_is_there(kind: str) -> None:
    """In this torch; an HPU's functions come with Gaudi's bridge alone."""
    entry = DEVICES[kind]
    for name in (entry.has_bfloat16, entry.after_call, entry.synchronize, entry.empty_cache):
        assert not name or callable(resolve(name))
    for setting in entry.tf32:
        where, _, attribute = setting.rpartition(".")
        assert isinstance(getattr(resolve(where), attribute), bool)


def test_nothing_is_called_executed_that_was_not() -> None:
    executed = {kind: bool(entry.limits.executed) for kind, entry in DEVICES.items()}
    assert not any(executed[kind] for kind in ("mps", "xpu", "hpu"))
    assert executed["cpu"]
    assert next(iter(LIMITS)) == "cpu*"


def test_what_nobody_has_executed_is_unknown(give: Give, checkpoint: Any) -> None:
    give("mps", has_bfloat16="")
    unet = Checkpoint.open(checkpoint("sd1")).spec.components["unet"]
    support = Torch().supports(Request(component=unet, precision="float16", device="cpu"))
    assert support.level is SupportLevel.CONDITIONAL and support.works
    assert "not been executed" in support.reason


@pytest.mark.parametrize("kind", ["mps", "xpu", "hpu", "cuda"])
def test_an_entry_changes_no_number(
    kind: str, give: Give, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches in parts, attention in slices and casts on the host: the same arrays."""
    plain = {name: run(name)[0] for name in _SHAPES}
    # What is a function of the device itself is not there.
    give(kind, brought_by="", has_bfloat16="", after_call="", synchronize="", empty_cache="")
    monkeypatch.setattr("perfuse_torch.backend.host_memory", lambda: 16 * 2**30)
    for name, expected in plain.items():
        for wide in (False, True):
            found, program = run(name, wide=wide)
            assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max(), (name, wide)
            program.close()


@pytest.mark.parametrize(("name", "batches"), [("text_encoder", [1, 1, 1]), ("unet", [2, 2])])
def test_one_picture_at_a_time_where_the_table_says_so(
    name: str, batches: list[int], give: Give, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the denoiser are one picture: with the words and without."""
    seen = []
    kept = nn.Module.__call__

    def watched(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        if type(self).__name__ in ("ClipText", "UNet2DCondition"):
            seen.append(len(inputs[0]))
        return kept(self, *inputs, **named)

    monkeypatch.setattr(nn.Module, "__call__", watched)
    run(name)
    assert seen == [sum(batches)]
    seen.clear()
    give(limits=dataclasses.replace(DEVICES["cpu"].limits, pictures=1))
    _, program = run(name)
    assert seen == batches
    assert program.report().details["largest_batch"] == max(batches)


class _Attention(TorchFunctionMode):
    """Notes how many scores each attention has at once."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            self.scores.append(query.shape[:-1].numel() * key.shape[-2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gib", [16, 128])
def test_attention_is_sliced_under_64_gb(
    gib: int, give: Give, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _Attention() as whole:
        run("unet")
    give("mps", has_bfloat16="", synchronize="", empty_cache="")
    monkeypatch.setattr("perfuse_torch.backend.host_memory", lambda: gib * 2**30)
    with _Attention() as sliced:
        run("unet")
    # The batch of four is two calls, and each attention in each of them two slices or one.
    assert len(sliced.scores) == len(whole.scores) * 2 * (2 if gib == 16 else 1)
    assert sum(sliced.scores) == sum(whole.scores)


@pytest.mark.parametrize("mask", [None, (1, 1, 5), (2, 1, 1, 5), (2, 3, 7, 5)])
@pytest.mark.parametrize(("slices", "most"), [(2, None), (7, None), (1, 70), (2, 1)])
def test_slices_are_what_the_whole_is(mask: Any, slices: int, most: int | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    bias = torch.randn(mask) if mask is not None else None
    whole = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    with _Attention() as seen, SlicedAttention(slices=slices, most=most):
        parts = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    torch.testing.assert_close(parts, whole)
    # Thirty scores a query: seventy are of two queries, and one query is the least there is.
    assert len(seen.scores) == {None: slices, 70: 4, 1: 7}[most]


def test_causal_attention_stays_whole() -> None:
    query = torch.randn(1, 1, 6, 4)
    whole = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    with _Attention() as seen, SlicedAttention(slices=2):
        found = F.scaled_dot_product_attention(query, query, query, is_causal=True)
    torch.testing.assert_close(found, whole)
    assert len(seen.scores) == 1


def test_what_was_gathered_is_run_and_memory_is_given_back(
    give: Give, run: Any, calls: list[str]
) -> None:
    give(
        after_call="fake_device:after",
        synchronize="fake_device:synchronize",
        empty_cache="fake_device:empty",
    )
    _, program = run("text_encoder")
    assert calls == ["after"]
    program.close()
    program.close()
    assert calls == ["after", "synchronize cpu", "empty"]


def test_a_machine_without_bfloat16_says_so(give: Give, run: Any, calls: list[str]) -> None:
    give(has_bfloat16="fake_device:no")
    assert Torch().devices()[-1].precisions == ("float32", "float16")
    with pytest.raises(UnsupportedError, match="bfloat16; torch:cpu computes in float32, float16"):
        run("unet", precision="bfloat16")


@pytest.mark.parametrize(
    ("machine", "release", "has"),
    [
        ("arm64", "14.5", True),
        ("arm64", "13.6", False),
        ("x86_64", "15.1", False),
        ("x86_64", "", False),
    ],
)
def test_bfloat16_by_the_system(
    machine: str, release: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("platform.mac_ver", lambda: (release, ("", "", ""), ""))
    assert devices.bfloat16_on_macos() is has


def test_settings_compiler_and_fallbacks_are_those_of_the_entry(
    give: Give, checkpoint: Any, calls: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled.append(how))
    monkeypatch.setenv("FAKE_FALLBACK", "1")
    give(
        tf32=("fake_device:flags.tf32",), compiler="fake_backend", fallback_variable="FAKE_FALLBACK"
    )
    component = Checkpoint.open(checkpoint("sd1")).component("vae_decoder")
    target = Target(backend="torch", device="cpu", options={"compile": "true"})
    program = Torch().prepare(component, target, ArtifactStore(tmp_path))
    assert sys.modules["fake_device"].flags.tf32 is False
    assert compiled == [{"dynamic": True, "backend": "fake_backend"}]
    assert program.report().fallbacks == (
        "operators that cpu lacks are computed on the CPU: FAKE_FALLBACK=1",
    )


def test_a_device_that_another_package_brings(
    give: Give, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fake_bridge.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    give(brought_by="fake_bridge")
    Torch().devices()
    assert sys.modules.pop("fake_bridge")


class _Watch(TorchDispatchMode):
    """Fails on what a device cannot hold: a dtype, or too many elements."""

    def __init__(self, limits: Limits, *, also: int | None = None) -> None:
        super().__init__()
        self.dtypes = {name for name, instead in limits.dtypes.items() if not instead}
        self.most = also if also is not None else limits.max_elements
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else [made]:
            if isinstance(one, Tensor):
                self.seen += 1
                name = str(one.dtype).removeprefix("torch.")
                assert name not in self.dtypes, f"{func} makes {name}"
                assert self.most is None or one.numel() <= self.most, f"{func}: {one.numel()}"
        return made


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "lcm"])
def test_a_whole_picture_makes_nothing_that_mps_lacks(kind: str, checkpoint: Any) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
    with _Watch(DEVICES["mps"].limits) as watch:
        pipe("a red circle", num_inference_steps=2, seed=0)
    assert watch.seen > 100


@pytest.mark.parametrize(
    "scheduler", ["ddim", "ddpm", "pndm", "euler", "euler-ancestral", "dpm++", "unipc", "lcm"]
)
def test_no_schedule_makes_what_mps_lacks(scheduler: str, checkpoint: Any) -> None:
    from perfuse.schedulers import scheduler_class

    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"), backend="torch:cpu")
    pipe.scheduler = scheduler_class(scheduler).from_config(pipe.scheduler.config)
    with _Watch(DEVICES["mps"].limits) as watch:
        pipe(num_inference_steps=4, seed=0)
    assert watch.seen > 20


def test_the_watch_sees() -> None:
    limits = DEVICES["mps"].limits
    with _Watch(limits), pytest.raises(AssertionError, match="float64"):
        torch.ones(2).double()
    with _Watch(limits), pytest.raises(AssertionError, match="complex64"):
        torch.fft.rfft(torch.ones(4))
    with _Watch(limits, also=8), pytest.raises(AssertionError, match="9"):
        torch.ones(3, 3)


class _Copies(TorchDispatchMode):
    """Notes the dtype, the device and the waiting of every copy."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, bool, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if "_to_copy" in str(func):
            moves = given.get("device") is not None
            self.seen.append((args[0].dtype, moves, bool(given.get("non_blocking"))))
        return func(*args, **given)


def test_float64_is_cast_before_it_is_moved_and_copies_wait(give: Give, run: Any) -> None:
    with _Copies() as plain:
        run("unet", wide=True)
    assert (torch.float64, True, True) in plain.seen
    give("mps", has_bfloat16="", synchronize="", empty_cache="")
    with _Copies() as copies:
        run("unet", wide=True)
        run("unet", precision="float16")
    assert (torch.float64, False, False) in copies.seen
    assert not any(dtype == torch.float64 and moves for dtype, moves, _ in copies.seen)
    assert not any(asynchronous for *_, asynchronous in copies.seen)
