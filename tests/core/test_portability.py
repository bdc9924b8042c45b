"""The portability report: what it says of a target, and how often an engine that is here agrees.

``AGREEMENT_MODELS="shapes ddpm" pytest tests/core/test_portability.py -k engines_agree -s``
compares on these models, ``shapes`` or kinds of ``perfuse_conformance.checkpoints``, in every
precision, for one size and for any, and with every operation below. That takes minutes.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.distributions import Install

from perfuse.backend import PRECISIONS, Component, Request, Target
from perfuse.cli import main
from perfuse.contract.limits import Limits
from perfuse.errors import DeviceNotFoundError, InputError, PerfuseError, PluginError
from perfuse.memory import read_size
from perfuse.plugins import host, resolve
from perfuse.report.portability import Finding, examine, limits_of, report, verdicts
from perfuse.run.pipeline import DiffusionPipeline
from perfuse.sources.opening import open_model
from perfuse.sources.store import ArtifactStore
from perfuse.spec import ComponentSpec, Signature, TensorSpec

torch = pytest.importorskip("torch")

Make = Callable[[str], Path]
TARGETS = ("torch:cpu", "onnxruntime:cpu", "openvino:CPU")


def found(
    findings: list[Finding], topic: str, component: str | None = None
) -> list[tuple[str, str, str]]:
    return [
        (one.standing, one.found, one.action)
        for one in findings
        if one.topic == topic and component in (None, one.component)
    ]


# Agreement with the engines


def small(calculate: Callable[[Any], Any], name: str | None = None) -> Component:
    """A component of one operation over [batch, 6, 6], and two weights."""

    class Small(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((2,), 0.5))

        def forward(self, sample: Any) -> tuple[Any]:
            return (calculate(sample * self.weight.sum()),)

    spec = ComponentSpec(
        name="small",
        class_name="Small",
        folder="small",
        config={},
        signature=Signature(
            inputs=(TensorSpec(name="sample", dtype="float", shape=("batch", 6, 6)),),
            outputs=(TensorSpec(name="out", dtype="float", shape=("batch", 6, 6)),),
        ),
    )
    return Component(spec=spec, build=lambda: Small().eval(), fingerprint=name)


def _steady(matrix: Any) -> Any:
    """One whose inverse and root exist."""
    return matrix @ matrix.mT + torch.eye(6)


#: Operations, among them some that an exporter has no form for, or must not have.
OPERATIONS: Mapping[str, Callable[[Any], Any]] = {
    "softmax": lambda x: x.softmax(-1),
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(-1).values,
    "float64": lambda x: x.double().sin().float(),
    "fft": lambda x: torch.fft.fft(x).abs(),
    "inverse": lambda x: torch.linalg.inv(_steady(x)),
    "cholesky": lambda x: torch.linalg.cholesky(_steady(x)),
    "lgamma": lambda x: torch.lgamma(x.abs() + 1),
    "bessel": torch.special.bessel_j0,
    "noise": lambda x: x + torch.rand_like(x),
}


#: The models to compare on; a few cases of a small one where none are named.
MODELS = os.environ.get("AGREEMENT_MODELS", "").split()

Case = tuple[str, Component, Mapping[str, int]]


def cases(checkpoint: Make) -> Iterator[Case]:
    """Components with their precision and the sizes to fix, and a size for each dimension."""
    for kind in MODELS or ["tiny"]:
        pipe = DiffusionPipeline.from_pretrained(None if kind == "shapes" else checkpoint(kind))
        for name, spec in pipe.spec.components.items():
            usual = pipe.usual_sizes(spec.name)
            for precision, static in itertools.product(PRECISIONS, ({}, usual)):
                if MODELS or (precision, bool(static)) == ("bfloat16", True):
                    one = pipe.component(name, static=static)
                    one = dataclasses.replace(one, precision=precision)
                    size = "one size" if static else "any size"
                    yield f"{kind} {name} {precision} {size}", one, usual
    for name in OPERATIONS if MODELS else ("bessel",):
        yield name, small(OPERATIONS[name], name), {"batch": 1}


def runs(component: Component, target: Target, usual: Mapping[str, int], store: Path) -> str:
    """Empty where the engine prepares it and its results are finite; else what went wrong."""
    random = np.random.default_rng(0)
    open_dims = component.signature.dims
    try:
        program = host().backend(target.backend).prepare(component, target, ArtifactStore(store))
        # Where the batch is open, a program of any size takes another one too.
        for batch in (2, 3) if "batch" in open_dims else (usual["batch"],):
            inputs = {}
            for tensor in component.spec.signature.inputs:
                shape = tensor.resolve({**usual, "batch": batch})
                whole = tensor.dtype == "int64"
                drawn = random.integers(0, 9, shape) if whole else random.standard_normal(shape)
                inputs[tensor.name] = drawn.astype(np.int64 if whole else np.float32)
            for array in program(**inputs).values():
                if not np.isfinite(array).all():
                    return "not finite"
    except PerfuseError as exc:
        return f"{type(exc).__name__}: {exc}"
    return ""


@pytest.mark.export
@pytest.mark.exhaustive
def test_report_and_engines_agree(checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    wrong, refused, count = [], 0, 0
    for name, component, usual in cases(checkpoint):
        for target in map(Target.parse, TARGETS):
            verdict = verdicts(examine(component, target, usual=usual))[component.name]
            failure = runs(component, target, usual, tmp_path)
            count += 1
            refused += verdict == "does not run"
            if (verdict == "does not run") != bool(failure):
                wrong.append(f"{name} on {target}: {verdict}, but {failure or 'it ran'}")
    print(f"\nreport and engine agreed {count - len(wrong)} of {count} times; {refused} refused")
    assert not wrong, "\n".join(wrong)
    assert 2 <= refused <= count / 2


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``limit("openreg", {"*": Limits(…)})``: from here on the backend's manifest names these."""

    def limit(backend: str, limits: Any) -> None:
        module = types.ModuleType("fake_limits")
        module.LIMITS = limits  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_limits", module)
        known = host().backends()
        named = dataclasses.replace(known[backend], limits="fake_limits:LIMITS")
        monkeypatch.setattr(host(), "backends", lambda: {**known, backend: named})

    return limit


@pytest.mark.export
@pytest.mark.parametrize("memory", ["0.02MB", "100MB"])
def test_weights_that_do_not_fit(memory: str, limit: Any, checkpoint: Make, tmp_path: Path) -> None:
    """openreg refuses, as it runs, what its memory does not hold."""
    pytest.importorskip("perfuse_openreg")
    limit("openreg", {"*": Limits(precisions={"float32": ""}, fixed_sizes=True)})
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"))
    usual = pipe.usual_sizes("unet")
    component = pipe.component("unet", static=usual)
    target = Target(backend="openreg", device="0", options={"memory": memory})
    findings = examine(component, target, usual=usual, memory=read_size(memory))
    failure = runs(component, target, usual, tmp_path)
    assert bool(failure) == (memory == "0.02MB"), failure
    assert (verdicts(findings)["unet"] == "does not run") == bool(failure)
    # Any size is run too, by making a program a size: the host's part, so only the report's here.
    open_sizes = examine(pipe.component("unet"), target, usual=usual)
    assert verdicts(open_sizes)["unet"] == "runs with changes"
    assert found(open_sizes, "sizes")[0][2].endswith("one program a size, kept two at a time")


class _Core:
    """OpenVINO's runtime as its documentation describes it on three devices; two are not here."""

    capabilities: Mapping[str, list[str]] = {
        "CPU": ["FP32", "INT8"],
        "GPU": ["FP32", "FP16", "INT8"],
        "NPU": ["FP16", "INT8"],
    }
    available_devices = tuple(capabilities)

    def get_property(self, device: str, name: str) -> list[str]:
        assert name == "OPTIMIZATION_CAPABILITIES"
        return self.capabilities[device]


@pytest.mark.usefixtures("torchless")
def test_limits_say_what_the_backend_says(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of devices that are not here too: by what the backend makes of their capabilities."""
    pytest.importorskip("openvino")
    monkeypatch.setattr("perfuse_openvino.backend._core", _Core)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("tiny"))
    usual = pipe.usual_sizes("unet")
    backend = host().backend("openvino")
    for device, precision in itertools.product(_Core.capabilities, PRECISIONS):
        target = Target(backend="openvino", device=device)
        open_sizes, one_size = (
            dataclasses.replace(pipe.component("unet", static=static), precision=precision)
            for static in ({}, usual)
        )
        request = Request(component=open_sizes.spec, precision=precision, device=device)
        any_size = backend.supports(request)
        fixed = backend.supports(dataclasses.replace(request, static=usual))
        verdict = verdicts(examine(one_size, target, usual=usual))["unet"]
        assert (verdict != "does not run") == fixed.works, (device, precision, fixed)
        # What takes no open sizes and takes fixed ones is given a program a size.
        changes = found(examine(open_sizes, target, usual=usual), "sizes")[0][0] == "changed"
        assert changes == (device == "NPU")
        assert not fixed.works or changes == (not any_size.works), (device, precision, any_size)


# What it says


@pytest.mark.export
def test_each_operator_that_is_refused_is_named_with_its_line() -> None:
    pytest.importorskip("openvino")

    def calculate(x: Any) -> Any:
        return torch.special.bessel_j0(torch.lgamma(x))

    findings = examine(small(calculate), Target.parse("openvino:GPU"), usual={"batch": 1})
    refused = [text for standing, text, _ in found(findings, "operators") if standing == "refused"]
    assert [text.partition(":")[0] for text in refused] == [
        "aten.lgamma.default",
        "aten.special_bessel_j0.default",
    ]
    assert all("test_portability.py:" in text for text in refused)


@pytest.mark.export
def test_a_converter_that_is_not_installed_is_not_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # type: ignore[arg-type]
    one = small(lambda x: x.softmax(-1))
    findings = examine(one, Target.parse("onnxruntime"), usual={"batch": 1})
    assert found(findings, "operators")[0][0] == "unknown"
    assert "onnxscript" in found(findings, "operators")[0][1]


@pytest.mark.export
def test_a_graph_that_cannot_be_captured_runs_where_none_is_needed() -> None:
    def calculate(x: Any) -> Any:
        return x if x.sum() > 0 else -x

    one = small(calculate)
    assert verdicts(examine(one, Target.parse("torch:cpu"), usual={"batch": 1}))["small"] == "runs"
    findings = examine(one, Target.parse("openvino"), usual={"batch": 1})
    assert verdicts(findings)["small"] == "does not run"
    assert "torch.export" in found(findings, "operators")[0][1]


@pytest.mark.export
def test_dtypes_ranks_and_elements(limit: Any) -> None:
    limit(
        "torch",
        {
            "cpu": Limits(
                precisions={"float32": ""},
                dtypes={"float64": "", "int64": "given as int32"},
                max_rank=3,
                max_elements=1000,
            )
        },
    )

    def calculate(x: Any) -> Any:
        deep = x.double()[:, None, :, None].argmax(-1, keepdim=True)
        return x + deep.float().sum() * 0

    target = Target.parse("torch:cpu")
    findings = examine(small(calculate), target, usual={"batch": 20})
    assert [row[:2] for row in found(findings, "dtypes")] == [
        ("refused", "float64"),
        ("changed", "int64"),
    ]
    assert found(findings, "rank")[0][0] == "refused"
    assert found(findings, "elements")[0][0] == "fits"  # 20 times 36
    more = examine(small(calculate), target, usual={"batch": 30})
    assert found(more, "elements")[0][:2] == (
        "refused",
        "tensors of 1.1e+03 elements, of at most 1e+03",
    )


@pytest.mark.export
def test_attention_that_is_too_large_is_sliced_on_mps(checkpoint: Make) -> None:
    """Scores of 65536 by 65536 are 2^32; a little more is more than MPS holds."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("sd1"))
    component = pipe.component("vae_decoder")
    for side, standing in ((256, "fits"), (260, "changed"), (40000, "refused")):
        usual = {"batch": 1, "latent_height": side, "latent_width": side}
        findings = examine(component, Target.parse("torch:mps"), usual=usual)
        assert found(findings, "elements")[0][0] == standing, side


@pytest.fixture
def torchless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is not looked for, so that no graph is captured."""
    monkeypatch.setattr("perfuse.report.portability.missing_modules", lambda names: list(names))


@pytest.mark.usefixtures("torchless")
def test_a_checkpoint_on_a_target_that_is_not_here(checkpoint: Make) -> None:
    source, target = open_model(checkpoint("tiny")), Target.parse("openvino:NPU")
    findings = report(source, target)
    assert verdicts(findings) == {"unet": "does not run", "together": "runs"}
    assert found(findings, "precision") == [("refused", "float32 is not there", "use float16")]
    findings = report(source, target, precision="float16", batch=2)
    assert verdicts(findings)["unet"] == "runs with changes"
    assert found(findings, "sizes")[0][:2] == ("changed", "any height, width")
    findings = report(source, target, precision="float16", batch=2, height=8, width=16)
    assert verdicts(findings)["unet"] == "runs"
    assert found(findings, "sizes")[0][1] == "fixed: batch 2, height 8, width 16"


@pytest.mark.usefixtures("torchless")
def test_an_autoencoder_that_overflows_stays_in_float32(checkpoint: Make) -> None:
    findings = report(
        open_model(checkpoint("sdxl")), Target.parse("torch:xpu"), precision="float16"
    )
    rows = found(findings, "precision", "vae_decoder")
    assert (
        "changed",
        "float16 overflows in it, says force_upcast in its config",
        "stays float32",
    ) in rows
    assert ("fits", "float16", "") in found(findings, "precision", "unet")


@pytest.mark.usefixtures("torchless")
def test_the_memory_is_for_all_components_together(checkpoint: Make) -> None:
    source, target = open_model(checkpoint("sd1")), Target.parse("torch:cpu")
    weights = found(report(source, target), "weights")
    assert [row[0] for row in weights] == ["unknown"]
    total = sum(source.weight_bytes().values())
    assert weights[0][1] == f"{total / 1e6:.1f} MB of weights"
    fits = report(source, target, memory=total)
    assert set(verdicts(fits).values()) == {"runs"}
    tight = verdicts(report(source, target, memory=total - 1))
    assert [name for name, verdict in tight.items() if verdict == "does not run"] == ["together"]


@pytest.mark.export
def test_weights_are_counted_in_the_precision(checkpoint: Make) -> None:
    source, target = open_model(checkpoint("tiny")), Target.parse("torch:cpu")
    (size,) = source.weight_bytes().values()
    half = report(source, target, precision="float16", memory=size // 2)
    full = report(source, target, memory=size // 2)
    assert verdicts(half)["unet"] == "runs"
    assert verdicts(full)["unet"] == "does not run"


@pytest.mark.usefixtures("torchless")
def test_without_torch_it_says_what_it_can(checkpoint: Make) -> None:
    findings = report(
        open_model(checkpoint("sd1")), Target.parse("coreml"), precision="bfloat16", memory=10**9
    )
    assert {row[0] for row in found(findings, "operators")} == {"unknown"}
    assert found(findings, "precision", "unet")[0][0] == "refused"
    assert found(findings, "dtypes", "text_encoder")[-1][0] == "changed"
    assert found(findings, "weights", "unet")[0][0] == "fits"


@pytest.mark.export
def test_an_exported_folder(exported: Callable[[str, str], Path]) -> None:
    source = open_model(exported("tiny", "openvino"))
    assert verdicts(report(source, Target.parse("openvino")))["unet"] == "runs"
    other = report(source, Target.parse("coreml"))
    assert found(other, "format") == [
        (
            "refused",
            "the folder holds openvino; coreml loads coreml",
            "look at the checkpoint that was exported",
        )
    ]
    assert found(other, "sizes")[0][0] == "refused"


@pytest.mark.export
def test_a_plugin_that_says_nothing_is_unknown(install: Install, checkpoint: Make) -> None:
    from tests.distributions import GOOD

    install("acme", GOOD.format(name="acme"))
    findings = report(open_model(checkpoint("tiny")), Target.parse("acme"))
    assert verdicts(findings)["unet"] == "unknown"
    assert found(findings, "limits")[0][1] == "acme does not say what its devices take"


def test_limits_that_cannot_be_read_name_the_plugin(limit: Any) -> None:
    limit("torch", {"cpu": "all"})
    with pytest.raises(PluginError, match="not a dict of device to perfuse.Limits"):
        limits_of(Target.parse("torch"))
    limit("torch", 3)
    with pytest.raises(PluginError, match=r"fake_limits:LIMITS.*TypeError"):
        limits_of(Target.parse("torch"))


def test_every_backend_of_ours_has_limits_that_need_no_engine() -> None:
    """In a process of its own: whatever was imported here before is not there."""
    code = (
        "import sys; from perfuse.backend import Target; from perfuse.report.portability import limits_of;"
        f"names = {sorted(OURS)!r};"
        "print([limits_of(Target(backend=n))[0] for n in names]);"
        "print(sorted({'torch', 'onnxruntime', 'openvino', 'coremltools'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str([OURS[name] for name in sorted(OURS)]), "[]"]


#: Each with the device that its name alone stands for.
OURS = {
    "coreml": "coreml:ALL",
    "neuron": "neuron",
    "onnxruntime": "onnxruntime:cpu",
    "openvino": "openvino:CPU",
    "torch": "torch:cpu",
}


@pytest.mark.parametrize("backend", OURS)
def test_limits_have_sources(backend: str) -> None:
    for device, limits in resolve(host().backends()[backend].limits).items():  # type: ignore[attr-defined]
        said = {
            name
            for name in ("conditions", "dtypes", "fixed_sizes", "max_rank", "notes", "unknown")
            if getattr(limits, name)
        }
        assert said <= limits.sources.keys(), device
        assert all(url.startswith("https://") for url in limits.sources.values())
        assert set(limits.conditions) <= set(limits.precisions) <= set(PRECISIONS)


@pytest.mark.parametrize(
    ("text", "number"), [("8GB", 8 * 10**9), ("512 MiB", 2**29), ("1.5kb", 1500), ("7", 7)]
)
def test_bytes(text: str, number: int) -> None:
    assert read_size(text) == number


@pytest.mark.parametrize("text", ["", "GB", "8 apples", "-1GB", "1e9", "8GBB"])
def test_what_is_no_number_of_bytes(text: str) -> None:
    with pytest.raises(InputError, match="write a number and a unit"):
        read_size(text)


# The command


@pytest.mark.export
def test_the_command_for_a_person_and_for_a_machine(checkpoint: Make) -> None:
    line = ["inspect", "--model", str(checkpoint("tiny")), "--for"]
    shown = CliRunner().invoke(main, [*line, "torch:mps"])
    assert shown.exit_code == 0
    assert "torch:mps, not executed by perfuse so far" in shown.output
    assert "unet  runs with changes" in shown.output
    answer = CliRunner().invoke(main, [*line, "coreml", "--precision", "bfloat16", "--json"])
    assert answer.exit_code == 1
    data = json.loads(answer.output)
    assert data["target"] == "coreml:ALL" and data["executed"] == ""
    assert data["verdicts"]["unet"] == "does not run"
    assert {"component", "topic", "standing", "found", "action", "source"} == set(
        data["findings"][0]
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tpu"], "Backend 'tpu' was asked about"),
        (["torch:tpu"], "'tpu' of torch was asked about; what is known is of cpu, cuda"),
        (["torch", "--memory", "much"], "Memory 'much' was given"),
        (["torch", "--precision", "int4"], "Precision 'int4'"),
        (["torch", "--height", "0"], "height 0 was asked for"),
    ],
)
def test_a_wrong_line(words: list[str], says: str, checkpoint: Make) -> None:
    line = ["inspect", "--model", str(checkpoint("tiny")), "--for", *words]
    answer = CliRunner().invoke(main, line)
    assert says in answer.output
    assert answer.exit_code in (1, 2)


def test_devices_are_found_by_pattern() -> None:
    assert (
        limits_of(Target.parse("openvino:gpu.1"))[1] is limits_of(Target.parse("openvino:GPU"))[1]
    )
    assert limits_of(Target.parse("torch:cuda:1"))[0] == "torch:cuda:1"
    with pytest.raises(DeviceNotFoundError, match="Name one of these"):
        limits_of(Target.parse("coreml:NPU"))
