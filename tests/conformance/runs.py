"""Runs made by hand, for what reads them: every kind of result, and a claim."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perfuse_conformance.judge.results import Claim, Metric, Result, Run, Status

PICTURES = ("reference", "backend", "difference")


def metrics(ratio: float | None) -> tuple[Metric, ...]:
    return (
        Metric(name="rmse_ratio", value=ratio, limit=2.0),
        Metric(name="lpips", value=3e-6),
    )


def component(where: str, status: Status = Status.PASS, ratio: float | None = 0.5, **more: Any):
    name, precision, _, _ = where.split("/")
    fields = {"executed_precision": precision, "worst_call": 1, "worst_output": "sample", **more}
    return Result(
        id=f"component/{where}",
        level="L1",
        status=status,
        component=name,
        precision=precision,
        metrics=metrics(ratio),
        input_sha256="ab" * 32,
        prepare_s=0.25,
        run_s=0.5,
        **fields,
    )


def draw(name: str, status: Status = Status.PASS, **more: Any) -> Result:
    return Result(
        id=f"draw/float32/{name}",
        level="L2",
        status=status,
        precision="float32",
        metrics=(Metric(name="psnr_db", value=46.0, limit=40.0, bound="min"),),
        **more,
    )


def make_run(*results: Result, target: str = "acme:npu", model: str = "shapes", **more: Any) -> Run:
    """A run of a backend with a host's case and those given."""
    host = Result(id="host/devices", level="L0", status=Status.PASS, run_s=0.125)
    fields: dict[str, Any] = {"claim": Claim(level="L2", profiles=("dyn",)), **more}
    return Run(
        suite={"version": "1.0", "tolerances": "1.0", "tolerances_sha256": "3f" * 32},
        run={
            "id": f"{target}-{model}",
            "utc": "2026-11-20T14:03:11+00:00",
            "level": "L2",
            "command": f"perfuse conformance --backend {target}",
            "model": model,
            "reference": "torch:cpu torch 2.13.0",
        },
        host={"os": "Linux", "cpu": "x86-64", "packages": {"torch": "2.13.0"}},
        backend={
            "target": target,
            "distribution": "perfuse-acme",
            "version": "0.3",
            "engine": "acme 1.0",
            "device": "npu",
            "description": "",
        },
        capabilities={
            "unet/float32/static": {"level": "full", "reason": ""},
            "unet/float16/static": {"level": "unsupported", "reason": "no halves on this device"},
        },
        results=(host, *results),
        **fields,
    )


def with_pictures(result: Result, folder: Path, color: int = 90) -> Result:
    """The result with pictures in ``folder``; the reference's is the same for every color."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for role in PICTURES:
        shade = 200 if role == "reference" else color
        names[role] = f"{result.id.replace('/', '-')}-{role}.png"
        Image.fromarray(np.full((16, 24, 3), shade, np.uint8)).save(folder / names[role])
    return replace(result, pictures=names)
