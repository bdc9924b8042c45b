"""A run of the tests that is killed leaves nothing that the next one finds."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Two tests, one a worker: each starts a process that ignores being asked to end, and waits for it.
HANGS = """
import subprocess, sys, tempfile
import pytest

SLEEPS = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"

@pytest.mark.parametrize("number", [1, 2])
def test_hangs(number, pytestconfig):
    tempfile.mkdtemp()
    child = subprocess.Popen([sys.executable, "-c", SLEEPS], start_new_session=True)
    with open(pytestconfig.rootpath / f"started-{number}", "w") as file:
        file.write(str(child.pid))
    child.wait()
"""
PASSES = """
import os, tempfile

def test_environment():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["TMPDIR"] == tempfile.gettempdir()
    assert os.environ["PERFUSE_CACHE"].startswith(os.environ["PERFUSE_TEST_CACHE"])
    print("threads", os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the conftest of this repository."""
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "tmp").mkdir()
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_hangs.py").write_text(HANGS)
    (folder / "test_passes.py").write_text(PASSES)
    return folder


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    ours = ("PERFUSE_", "PYTEST_", "OMP_", "MKL_", "OPENBLAS_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", *arguments],
        cwd=project,
        env={**environment, "TMPDIR": str(project.parent / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def passed(process: subprocess.Popen[str]) -> str:
    """What a run printed that has ended well."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for(*paths: Path) -> None:
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes cannot be asked")
def test_the_next_run_ends_what_a_killed_one_left(project: Path) -> None:
    first = start(project, "-n", "2", "test_hangs.py")
    started = [project / "started-1", project / "started-2"]
    wait_for(*started)
    pids = [int(path.read_text()) for path in started]
    first.send_signal(signal.SIGKILL)
    first.wait()
    temporary = project.parent / "tmp"
    (left,) = temporary.glob("perfuse-tests-*")
    assert all(map(alive, pids))

    passed(start(project, "test_passes.py"))
    assert not left.exists()
    assert list(temporary.glob("perfuse-tests-*")) == []
    wait_until(lambda: not any(map(alive, pids)))  # the system takes a moment to bury them
    first.communicate()  # its workers, too, have let go of the pipe


@pytest.mark.slow
def test_a_run_leaves_another_alone_that_lives(project: Path) -> None:
    first = start(project, "-n", "2", "test_hangs.py")
    started = [project / "started-1", project / "started-2"]
    wait_for(*started)
    temporary = project.parent / "tmp"
    (folder,) = temporary.glob("perfuse-tests-*")
    try:
        passed(start(project, "test_passes.py"))
        assert list(temporary.glob("perfuse-tests-*")) == [folder]
        assert all(alive(int(path.read_text())) for path in started)
    finally:
        first.kill()
        first.wait()
        passed(start(project, "test_passes.py"))  # ends what is left of it


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_share_the_cores(project: Path, workers: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores is not None
    parallel = ("-n", str(workers), "-rP", "--capture=fd") if workers > 1 else ()
    output = passed(start(project, *parallel, "test_passes.py"))
    assert f"threads {max(1, cores // workers)}" in output
