"""What a run of the tests shares, and what it needs from the machine.

Everything that a run writes besides pytest's own ``tmp_path`` folders lies in one folder, which the run
holds a lock on; a run that was killed leaves its folder, and the next run removes it. What one test
exports or records there, the others find. ``PERFUSE_TEST_CACHE`` names a folder for that which stays
from run to run.
"""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

_PREFIX = "perfuse-tests-"
#: Files that take minutes in one piece, the longest first.
_LONGEST = {
    name: place
    for place, name in enumerate(
        ("test_readme.py", "test_extending.py", "test_pages.py", "test_scaffold.py")
    )
}
_LOCK = "run.lock"
_held = pytest.StashKey[filelock.FileLock]()
_folder = pytest.StashKey[Path]()
_before = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment of this process, which the workers of pytest-xdist inherit.

    No test reads or writes the user's cache or settings, and none asks a network.
    """
    if hasattr(config, "workerinput"):
        return
    config.stash[_before] = dict(os.environ)
    temporary = Path(tempfile.gettempdir())
    _remove_what_killed_runs_left(temporary)
    config.stash[_folder] = folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=temporary))
    config.stash[_held] = lock = filelock.FileLock(folder / _LOCK)
    lock.acquire()

    cache = Path(os.environ.get("PERFUSE_TEST_CACHE", folder / "shared")).absolute()
    for name in [name for name in os.environ if name.startswith("PERFUSE_")]:
        del os.environ[name]
    os.environ["PERFUSE_TEST_CACHE"] = str(cache)
    os.environ["PERFUSE_CACHE"] = str(cache / "cache")
    os.environ["PERFUSE_CONFIG"] = str(folder / "config")
    os.environ["HF_HUB_OFFLINE"] = "1"
    _keep_bytecode_in(cache / "bytecode")
    _share_the_cores(len(getattr(config.option, "tx", None) or ()) or 1)
    _make_temporary_files_in(folder / "tmp", except_pytests=temporary)


def _remove_what_killed_runs_left(temporary: Path) -> None:
    """A folder whose lock is free belongs to no run that lives; nor do processes that use it."""
    for lock in temporary.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with filelock.FileLock(lock, timeout=0):
                _end_processes_with(f"TMPDIR={lock.parent / 'tmp'}")
                shutil.rmtree(lock.parent, ignore_errors=True)
        except (filelock.Timeout, OSError):  # it is in use, or another user's
            continue


def _end_processes_with(variable: str) -> None:
    """End what was started with a variable in its environment, where the system shows that."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if variable.encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def _keep_bytecode_in(folder: Path) -> None:
    """Where nothing may be written beside modules, each process would compile all of PyTorch anew."""
    if not sys.dont_write_bytecode:
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(folder)
    sys.dont_write_bytecode = False


def _share_the_cores(workers: int) -> None:
    """Threads of all workers together are not more than cores.

    Two OpenMP pools of two threads on two cores wait for each other in loops that keep the cores busy.
    What the caller has set stays.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, str(max(1, cores // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _make_temporary_files_in(folder: Path, *, except_pytests: Path) -> None:
    """Processes that are killed leave temporary files; these go with the run's folder."""
    folder.mkdir()
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(except_pytests))
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # found anew, from the environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what exports, and put the longest files first, so that no worker waits for them at the end."""
    for item in items:
        if "exported" in getattr(item, "fixturenames", ()):
            item.add_marker("export")
    items.sort(key=lambda item: _LONGEST.get(item.path.name, len(_LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Where tests that export are left out, one that does so without saying it fails."""
    module = sys.modules.get("torch.export")
    if module is None or "not export" not in item.config.option.markexpr:
        return (yield)
    export = module.export
    module.export = _refuse
    try:
        return (yield)
    finally:
        module.export = export


def _refuse(*_: object, **__: object) -> None:
    pytest.fail("It exports a model; say so: @pytest.mark.export.")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Put the environment back, and take away what the run left."""
    if hasattr(config, "workerinput"):
        return
    os.environ.clear()
    os.environ.update(config.stash[_before])
    tempfile.tempdir = None
    config.stash[_held].release()
    shutil.rmtree(config.stash[_folder], ignore_errors=True)
