"""A scheduler is one file: nothing else names it."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import perfuse
from perfuse.schedulers import SCHEDULERS, SHORT_NAMES, calculate_shift, scheduler_class

HALFWAY = '''
"""Goes half of the way to the clean sample at each step."""

from dataclasses import dataclass

import numpy as np

from .base import KARRAS, Grid
from .betas import BetaSettings
from .prediction import x0_of
from .linear import X
from .table import Row, Schedule
from .variance_preserving import VariancePreserving

NAMES = ("half", "1/2")


@dataclass(frozen=True, kw_only=True)
class HalfwaySettings(BetaSettings):
    """No more than the betas."""


class HalfwayScheduler(VariancePreserving):
    """Half of the way."""

    Settings = HalfwaySettings
    family = KARRAS

    def _grid(self, request):
        return Grid(timesteps=np.arange(request.count)[::-1].copy(), steps=request.count)

    def _table(self, grid, begin, options):
        rows = []
        for t in grid.timesteps[begin:].tolist():
            signal, sigma = (float(v[0]) for v in self._noise_scales(np.array([t])))
            x0 = x0_of("epsilon", signal, sigma)
            rows.append(
                Row(timestep=t, update=((X + x0) / 2,), denoised=x0, noising=(signal, sigma))
            )
        return Schedule(rows=tuple(rows))

    def set_timesteps(self, num_inference_steps, device=None):
        self._set(num_inference_steps, device)

    def step(self, model_output, timestep, sample, return_dict=True):
        return self._step(model_output, timestep, sample, return_dict)
'''

PROGRAM = """
import sys
import perfuse
assert "perfuse.schedulers.halfway" not in sys.modules
from perfuse import HalfwayScheduler
from perfuse.schedulers import SCHEDULERS, scheduler_class, scheduler_from_config
assert "HalfwayScheduler" in perfuse.__all__ and "HalfwayScheduler" in dir(perfuse)
for name in ("halfway", "half", "1/2", "HalfwayScheduler"):
    assert scheduler_class(name) is HalfwayScheduler
scheduler = scheduler_from_config({"_class_name": "HalfwayScheduler", "beta_end": 0.01})
assert scheduler.config.beta_end == 0.01 and len(scheduler.schedule(4)) == 4
assert HalfwayScheduler in scheduler_class("euler")().compatibles
from perfuse.plugins.host import host
assert host().schedulers()["HalfwayScheduler"] == SCHEDULERS["HalfwayScheduler"]
print("found")
"""


def test_a_new_file_is_found(tmp_path: Path) -> None:
    source = Path(perfuse.__file__).parent
    shutil.copytree(source, tmp_path / "perfuse", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "perfuse" / "schedulers" / "halfway.py").write_text(HALFWAY, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "found\n", done.stderr


def test_each_file_defines_one_scheduler() -> None:
    folder = Path(perfuse.schedulers.__file__).parent
    defined = {}
    for path in folder.glob("*.py"):
        classes = [
            n for n in ast.parse(path.read_text("utf-8")).body if isinstance(n, ast.ClassDef)
        ]
        names = [c.name for c in classes if c.name.endswith("Scheduler") and c.name != "Scheduler"]
        assert len(names) <= 1, path
        defined.update({name: f"perfuse.schedulers.{path.stem}:{name}" for name in names})
    assert defined == dict(SCHEDULERS)


def test_short_names_are_each_one_class() -> None:
    files = [reference.split(":")[0].rsplit(".", 1)[1] for reference in SCHEDULERS.values()]
    assert {file.replace("_", "-") for file in files} <= set(SHORT_NAMES)
    assert len(SHORT_NAMES) == len({name.lower() for name in SHORT_NAMES})
    assert set(SHORT_NAMES.values()) == set(SCHEDULERS)


def test_the_list_is_read_without_importing() -> None:
    program = (
        "import sys, perfuse\n"
        "assert 'perfuse.schedulers' not in sys.modules\n"
        "names = [n for n in perfuse.__all__ if n.endswith('Scheduler')]\n"
        "loaded = [m for m in sys.modules if m.startswith('perfuse.schedulers.')]\n"
        "assert names and not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9000])
def test_the_shift_for_a_size(tokens: int) -> None:
    line = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    assert calculate_shift(tokens) == pytest.approx(line)
    assert scheduler_class("euler")().mu_for(tokens) == pytest.approx(line)
    other = scheduler_class("flow-match-euler")(base_shift=1.0, max_image_seq_len=1024)
    assert other.mu_for(1024) == pytest.approx(1.15)
    assert other.mu_for(256) == pytest.approx(1.0)
