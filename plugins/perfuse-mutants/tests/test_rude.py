"""The ill-mannered backends are ill-mannered in the stated way; those that end a process, in one."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from perfuse_mutants.catalogue import CATALOGUE
from perfuse_mutants.rude import AcmeError, LeaksThread

from perfuse.backend import Program, Request, SupportLevel
from perfuse.errors import ExecutionError, PluginError, UnsupportedError
from perfuse.plugins import host
from perfuse.sources import ArtifactStore, open_model

Prepare = Callable[..., Program]


def inputs() -> dict[str, Any]:
    random_ = np.random.default_rng(0)
    return {
        "sample": random_.standard_normal((1, 4, 16, 16), dtype=np.float32),
        "timestep": np.full(1, 500, dtype=np.float32),
        "encoder_hidden_states": random_.standard_normal((1, 32, 64), dtype=np.float32),
    }


def request(precision: str) -> Request:
    return Request(component=open_model().spec.denoiser, precision=precision)


# What they say of themselves


def test_what_is_declared_is_not_what_is(prepare: Prepare) -> None:
    over, under, zeros = (
        host().backend(f"rude-{n}") for n in ("overdeclared", "underdeclared", "unrefused")
    )
    assert over.supports(request("bfloat16")).level is SupportLevel.FULL
    with pytest.raises(UnsupportedError):
        prepare("rude-overdeclared", "unet", "bfloat16")
    for backend in (under, zeros):
        assert backend.supports(request("float16")).level is SupportLevel.UNSUPPORTED
    works = prepare("rude-underdeclared", "unet", "float16")(**inputs())["out_sample"]
    right = prepare("torch", "unet", "float16")(**inputs())["out_sample"]
    np.testing.assert_array_equal(works, right)
    assert not prepare("rude-unrefused", "unet", "float16")(**inputs())["out_sample"].any()
    assert prepare("rude-unrefused", "unet")(**inputs())["out_sample"].any()


def test_devices_and_supports_answer_nothing_or_raise() -> None:
    assert host().backend("rude-no-devices").devices() == []
    with pytest.raises(OSError, match="libacme"):
        host().backend("rude-devices-raise").devices()
    assert host().backend("rude-supports-none").supports(request("float32")) is None
    with pytest.raises(KeyError):
        host().backend("rude-supports-raises").supports(request("float32"))
    with pytest.raises(PluginError):
        host().backend("rude-absent")


def test_what_should_be_refused_is_taken(prepare: Prepare) -> None:
    prepare("rude-any-device", "vae_encoder", device="no-such-device")
    prepare("rude-any-option", "vae_encoder", options={"no-such-option": "1"})
    prepare("rude-any-precision", "vae_encoder", "float7")
    assert host().backend("rude-any-precision").supports(request("float7")).works


def test_a_report_raises(prepare: Prepare) -> None:
    with pytest.raises(NotImplementedError):
        prepare("rude-report-raises", "unet").report()


# What they return and raise


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rude-wrong-names", ("noise_pred", np.ndarray, "float32", (1, 4, 16, 16))),
        ("rude-wrong-shape", ("out_sample", np.ndarray, "float32", (1, 16, 16, 4))),
        ("rude-float64", ("out_sample", np.ndarray, "float64", (1, 4, 16, 16))),
    ],
)
def test_outputs_break_the_contract(prepare: Prepare, name: str, found: tuple[Any, ...]) -> None:
    ((key, array),) = prepare(name, "unet")(**inputs()).items()
    assert (key, type(array), str(array.dtype), array.shape) == found


def test_outputs_are_of_another_kind(prepare: Prepare) -> None:
    import torch

    assert isinstance(prepare("rude-list", "unet")(**inputs()), list)
    assert isinstance(prepare("rude-tensors", "unet")(**inputs())["out_sample"], torch.Tensor)
    halves = prepare("rude-float16", "unet", "float16")(**inputs())["out_sample"]
    assert halves.dtype == np.float16


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("rude-own-exception", AcmeError),
        ("rude-unprintable-exception", AcmeError),
        ("rude-system-exit", SystemExit),
        ("rude-interrupt", KeyboardInterrupt),
    ],
)
def test_calls_raise_what_is_not_perfuses(
    prepare: Prepare, name: str, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        prepare(name, "unet")(**inputs())


def test_standard_output_is_written_to(prepare: Prepare, capfd: pytest.CaptureFixture[str]) -> None:
    prepare("rude-print-prepare", "unet")
    prepare("rude-print-call", "unet")(**inputs())
    assert capfd.readouterr().out == 'acme 1.0: compiling unet\n{"acme": "took 3 ms"}\n'


def test_a_closed_program_goes_on(prepare: Prepare) -> None:
    program = prepare("rude-open-after-close", "unet")
    program.close()
    assert program(**inputs())["out_sample"].shape == (1, 4, 16, 16)
    right = prepare("mutant-none", "unet")
    right.close()
    with pytest.raises(ExecutionError):
        right(**inputs())


# What they do to the process


def test_the_process_is_left_otherwise(prepare: Prepare) -> None:
    import torch

    before = os.getcwd(), torch.get_default_dtype(), torch.get_num_threads(), np.geterr()
    try:
        for name in ("chdir", "default-dtype", "torch-threads", "numpy-errors"):
            prepare(f"rude-{name}", "vae_encoder")
        after = os.getcwd(), torch.get_default_dtype(), torch.get_num_threads(), np.geterr()
    finally:
        os.chdir(before[0])
        torch.set_default_dtype(before[1])
        torch.set_num_threads(before[2])
        np.seterr(**before[3])
    assert after[0] == str(ArtifactStore.default().root)
    assert after[1] is torch.float64
    assert after[2] == before[2] + 1
    assert after[3]["over"] == "raise"


def test_random_numbers_repeat(prepare: Prepare) -> None:
    import torch

    program = prepare("rude-seeds", "unet")
    drawn = []
    for _ in range(2):
        program(**inputs())
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_a_thread_stays(prepare: Prepare) -> None:
    prepare("rude-leaked-thread", "unet").close()
    left = [thread for thread in threading.enumerate() if thread.name == "acme-poll"]
    LeaksThread.release.set()
    assert len(left) == 1 and not left[0].daemon
    left[0].join()
    LeaksThread.release.clear()


#: A call, or a preparation, that a process does not outlive; the status that it ends with, and what
#: it leaves on standard output. ``None`` where it has to be ended.
ENDS = {
    "Exits().spoil(None, dict)({})": (3, 0),
    "Segfaults().spoil(None, dict)({})": (-signal.SIGSEGV, 0),
    "SegfaultsInPrepare().prepare(None, None, None)": (-signal.SIGSEGV, 0),
    "_Freed.__call__(type('P', (), {'_closed': True})())": (-signal.SIGSEGV, 0),
    "Floods().spoil(None, dict)({})": (0, 1 << 20),
    "HangsInCall().spoil(None, dict)({})": (None, 0),
    "HangsInPrepare().prepare(None, None, None)": (None, 0),
    "_Unclosable.close(None)": (None, 0),
}


@pytest.mark.parametrize("code", ENDS)
def test_a_process_ends_or_hangs(code: str) -> None:
    status, printed = ENDS[code]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from perfuse_mutants.rude import *\nfrom perfuse_mutants import rude\nrude.{code}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        out, _ = process.communicate(timeout=2 if status is None else 30)
        assert (process.returncode, len(out)) == (status, printed)
    except subprocess.TimeoutExpired:
        assert status is None
    finally:
        process.kill()
        process.wait()


def test_every_name_is_one_class_and_every_class_has_a_name() -> None:
    names = [entry.name for entry in CATALOGUE]
    assert len(names) == len(set(names))
    for entry in CATALOGUE:
        if entry.name != "rude-absent":
            assert type(host().backend(entry.name)).name == entry.name


# When whoever asks is killed

#: Asks for what never comes, says which process was asked, and waits.
ASKS = """
import json
from perfuse_conformance.runner.session import open_session

session = open_session("rude-hang-prepare", level="L1", model="random-ddpm")
case = next(case for case in session.cases() if case.kind == "component")
request = {"do": "prepare", "probe": case.subject, "precision": case.precision}
request |= {"static": case.mode == "static", "bundle": str(session.bundle.path)}
worker = session._worker._process
worker.stdin.write(json.dumps(request) + chr(10))
worker.stdin.flush()
print(worker.pid, flush=True)
session._worker._lines.get()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_request_that_hangs_ends_with_whoever_asked() -> None:
    asking = subprocess.Popen([sys.executable, "-c", ASKS], stdout=subprocess.PIPE, text=True)
    assert asking.stdout is not None
    worker = int(asking.stdout.readline())
    assert alive(worker)
    asking.kill()
    asking.communicate()
    began = time.monotonic()
    while alive(worker) and time.monotonic() < began + 60:
        time.sleep(0.1)
    assert not alive(worker)
    assert time.monotonic() > began + 4  # it was at it, and was given time to finish
