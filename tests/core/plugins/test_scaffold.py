"""``perfuse plugin new``: what it writes installs with pip, runs, and passes level L1 as it is."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from perfuse.cli import main
from perfuse.errors import InputError
from perfuse.plugins.scaffold import new_plugin, plugin_files

ROOT = Path(__file__).parents[3]


def run(*words: str, cwd: Path, **variables: str) -> str:
    """Run a module of this Python; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.mark.export
def test_it_installs_is_listed_and_passes_level_1(tmp_path: Path) -> None:
    needs("torch", "onnxscript", "onnxruntime", "hatchling")
    done = CliRunner().invoke(main, ["plugin", "new", "acme-npu", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    folder, site = tmp_path / "perfuse-acme-npu", tmp_path / "site"
    assert f"cd {folder}" in done.output
    pip = ("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site))
    run(*pip, str(folder), cwd=tmp_path)
    installed = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    listed = json.loads(run("perfuse.cli", "backends", "--json", cwd=tmp_path, **installed))
    (row,) = [row for row in listed["backends"] if row["backend"] == "acme-npu"]
    assert (row["state"], row["distribution"]) == ("available", "perfuse-acme-npu")
    assert [device["target"] for device in row["devices"]] == ["acme-npu:cpu"]

    run("pytest", "--perfuse-results", "results", cwd=folder, **installed)
    results = json.loads((folder / "results/TestConformance/results.json").read_text("utf-8"))
    assert (results["claim"]["level"], results["claim"]["blockers"]) == ("L1", [])
    assert results["totals"]["executed"] > 30
    assert results["backend"]["engine"].startswith("onnxruntime ")  # it names what computed
    assert not (site / "perfuse").exists()  # what was tested is this perfuse


def test_it_is_small(tmp_path: Path) -> None:
    sizes = {where: text.count("\n") for where, text in plugin_files("acme-npu").items()}
    assert sizes["tests/test_conformance.py"] <= 10
    assert sizes["src/perfuse_acme_npu/backend.py"] <= 120
    assert sizes["src/perfuse_acme_npu/exporter.py"] <= 60


@pytest.mark.parametrize("name", ["x", "npu2-lite", "a-name-of-24-letters-abc"])
def test_every_name_goes_everywhere_and_keeps_the_style(name: str, tmp_path: Path) -> None:
    needs("ruff")
    folder = new_plugin(name, tmp_path / "new")
    assert folder == tmp_path / "new" / f"perfuse-{name}"
    for path in folder.rglob("*"):
        text = f"{path}{path.read_text('utf-8') if path.is_file() else ''}"
        assert not any(word in text for word in ("acme-npu", "acme_npu", "AcmeNpu")), path
    run("ruff", "check", "--no-cache", cwd=folder)
    run("ruff", "format", "--check", "--no-cache", cwd=folder)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_has_types(tmp_path: Path) -> None:
    needs("mypy")
    folder = new_plugin("acme-npu", tmp_path)
    assert "no issues found in 5 source files" in run("mypy", cwd=folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Acme", "lower-case"),
        ("acme_npu", "lower-case"),
        ("acme--npu", "single hyphens"),
        ("../acme", "begins with a letter"),
        ("3d", "begins with a letter"),
        ("", "begins with a letter"),
        ("acme\n", "lower-case"),
        ("a" * 25, "at most 24"),
        ("perfuse-acme", "perfuse plugin new acme"),
        ("torch", "a backend torch is installed"),
        ("onnx", "an exporter for onnx is installed"),
        ("exporters", "a module perfuse_exporters is installed"),
    ],
)
def test_a_name_that_cannot_be_used(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        new_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tmp_path: Path) -> None:
    mine = tmp_path / "perfuse-acme-npu" / "mine.py"
    mine.parent.mkdir()
    mine.write_text("work of days", "utf-8")
    arguments = ["plugin", "new", "acme-npu", "--output", str(tmp_path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "it is there already" in done.output
    assert [path.name for path in tmp_path.rglob("*")] == ["perfuse-acme-npu", "mine.py"]
    assert mine.read_text("utf-8") == "work of days"


def test_the_wheel_of_perfuse_holds_the_template(tmp_path: Path) -> None:
    needs("hatchling")
    run("hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    template = ROOT / "core" / "perfuse" / "plugins" / "template"
    there = {
        f"perfuse/plugins/{path.relative_to(template.parent).as_posix()}"
        for path in files(template)
    }
    assert len(there) == len(plugin_files("acme-npu"))
    assert there <= set(zipfile.ZipFile(wheel).namelist())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
