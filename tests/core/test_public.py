"""What perfuse makes public, what importing it loads, what its wheel holds."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import perfuse
from perfuse.plugins import host
from perfuse.schedulers import SCHEDULERS

ROOT = Path(__file__).parents[2]

_TEXT = """
    Acceleration AdaptiveProjectedGuidance AdaptiveProjectedMixGuidance Architecture Artifact ArtifactStore
    AutoGuidance AutoModel AutoPipelineForImage2Image AutoPipelineForInpainting
    AutoPipelineForText2Image Backend BackendManifest Branch Checkpoint Choice
    ClassifierFreeGuidance ClassifierFreeZeroStarGuidance Component Device
    DiffusionPipeline Dim EmbeddedGuidance EntryReport Event ExecutionReport Exporter ExporterManifest
    FrequencyDecoupledGuidance Guider GuiderManifest Input InstructPix2PixGuidance LatentSpec
    LengthPreservingGuidance Limits Loop MagnitudeAwareGuidance Moment NoGuidance NoiseSource PAGGuidance Patch PerfuseError
    Perturbation PerturbedAttentionGuidance PipelineManifest PipelineOutput PipelineSpec
    PixelLatents Placement Plan Program Reader ReaderManifest Recipe Request Role Schedule
    Scheduler Signature SkipLayerGuidance SmoothedEnergyGuidance Source SourceManifest Step
    Support SupportLevel TangentialClassifierFreeGuidance Target Task TensorSpec Tokenizer Tools
    Transform TransformManifest TruncatedGuidance When accelerate exported hookimpl load_accelerated patch_diffusers step
"""
TYPED = _TEXT.split()
#: A scheduler is a file of its room, a pipeline class is made of its manifest: no list names them.
NAMES = [*TYPED, *SCHEDULERS, *host().pipelines()]


def test_names_are_pinned() -> None:
    assert sorted(perfuse.__all__) == sorted(NAMES)
    assert sorted(dir(perfuse)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_names_can_be_imported(name: str) -> None:
    value = getattr(perfuse, name)
    assert value is getattr(perfuse, name)
    assert value.__doc__ or name == "hookimpl"
    if isinstance(value, type):
        assert value.__name__ == name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'perfuse' has no attribute 'Pipelin'"):
        perfuse.Pipelin  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    """The lazy table and the imports under TYPE_CHECKING are two lists of one thing."""
    text = Path(perfuse.__file__).read_text("utf-8")
    typed = text[text.index("if TYPE_CHECKING:") : text.index("__version__")]
    assert sorted({name for name in TYPED if f" as {name}" in typed}) == sorted(TYPED)
    assert typed.count(" as ") == len(TYPED)


HEAVY = ("torch", "transformers", "diffusers", "onnxruntime", "openvino", "onnx", "onnxscript")


def loaded_after(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def test_import_is_light() -> None:
    modules = loaded_after("import perfuse")
    assert not modules & {*HEAVY, "huggingface_hub", "tokenizers", "PIL", "rich", "pluggy"}


@pytest.mark.parametrize(
    "program",
    [
        "from perfuse import *",
        "import perfuse.cli",
        "from perfuse import Artifact, Checkpoint, DiffusionPipeline, Backend",
        "from perfuse.plugins import host\nhost().backends(), host().exporters()",
    ],
)
def test_no_engine_is_loaded_on_the_way(program: str) -> None:
    assert not loaded_after(program) & set(HEAVY)


# ── The wheel ───────────────────────────────────────────────────────────────────────────────────

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOTS = ("core", "backends", "exporters", "conformance")


def test_the_wheel_lists_every_package() -> None:
    """A new folder can be imported at once in development, and is missing in the wheel."""
    listed = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    there = {
        path.parent.relative_to(ROOT).as_posix()
        for root in ROOTS
        for path in (ROOT / root).glob("*/__init__.py")
    }
    assert set(listed) == there


def test_source_roots_are_no_packages() -> None:
    for root in ROOTS:
        assert not (ROOT / root / "__init__.py").exists()


def test_source_roots_are_not_imported_by_their_own_name() -> None:
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(ROOTS) <= set(banned)


def test_entry_points_can_be_loaded() -> None:
    from importlib.metadata import entry_points

    declared = PROJECT["project"]["entry-points"]["perfuse.v1"]
    installed = {
        entry.name: entry.value
        for entry in entry_points(group="perfuse.v1")
        if entry.dist is not None and entry.dist.name == "perfuse"
    }
    assert installed == declared


def test_versions_are_one() -> None:
    assert PROJECT["project"]["version"] == perfuse.__version__


def test_core_spells_no_engine_s_name() -> None:
    """Backends are found, not known; what is said to people in docstrings does not count."""
    import ast

    engines = {"onnxruntime", "openvino", "coreml", "neuron"}
    for path in (ROOT / "core" / "perfuse").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names]
                names.append(getattr(node, "module", None) or "")
                assert not {name.split(".")[0] for name in names} & engines, path
            if isinstance(node, ast.Compare):
                values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not {v for v in values if isinstance(v, str)} & engines, path
