"""The cache of exports: complete or absent, made once, whatever kills the writer."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from perfuse.errors import ExportError, InputError
from perfuse.sources.store import (
    ArtifactStore,
    atomic_folder,
    cache_folder,
    locked,
)

#: Makes an entry of two files; dies at the moment named on the command line.
WRITER = """
import os, signal, sys, time
from pathlib import Path
from perfuse.sources.store import ArtifactStore, atomic_folder
root, how, moment = sys.argv[1:4]

renames = 0
def watch(event, arguments):
    global renames
    if event == "os.rename" and ".partial-" in str(arguments[0]) + str(arguments[1]):
        renames += 1
        die(f"rename {renames}")
    if event == "shutil.rmtree" and ".partial-" in str(arguments[0]) and renames:
        die("rmtree")
def die(now):
    if now == moment:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)

def make(folder):
    with open(root + "-made", "a") as log:
        log.write("made ")
    die("begin")
    (folder / "a").write_text(f"{os.getpid()}")
    die("half")
    time.sleep(0.2 if moment == "slow" else 0)
    (folder / "b").write_text(f"{os.getpid()}")
    die("end")

if how == "store":
    ArtifactStore(Path(root)).get_or_make("unet-onnx", {"a": 1}, make)
else:
    with atomic_folder(Path(root) / "out", replaces=lambda folder: True) as partial:
        make(partial)
"""


def writer(root: Path, how: str, moment: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(root), how, moment])


def whole(folder: Path) -> bool:
    return (folder / "a").read_text() == (folder / "b").read_text() != ""


def fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_bytes(b"12345")


def test_made_once_and_found_again(tmp_path: Path) -> None:
    store, calls = ArtifactStore(tmp_path / "root"), []

    def make(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        calls.append(folder)
        fill(folder)

    first = store.get_or_make("unet", {"a": 1, "b": [1, 2]}, make)
    assert store.get_or_make("unet", {"b": [1, 2], "a": 1}, make) == first
    assert len(calls) == 1
    assert calls[0] != first
    assert (first / "sub" / "file").read_bytes() == b"12345"
    assert store.entries() == [(first, 5)]


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"a": 1, "b": None}, {}])
def test_another_key_is_another_folder(tmp_path: Path, other: dict[str, object]) -> None:
    store = ArtifactStore(tmp_path)
    assert store.folder("unet", {"a": 1}) != store.folder("unet", other)
    assert store.folder("unet", {"a": 1}) != store.folder("vae", {"a": 1})


def test_nothing_is_left_where_making_fails(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "root")

    def fail(folder: Path) -> None:
        fill(folder)
        raise InputError("no")

    with pytest.raises(InputError, match="^no$"):
        store.get_or_make("unet", {}, fail)
    assert store.entries() == []
    assert [path for path in store.root.iterdir() if path.is_dir()] == []
    assert store.get_or_make("unet", {}, fill).is_dir()


def test_the_system_s_errors_become_ours(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "root")

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ExportError, match="No space left on device.*PERFUSE_CACHE") as caught:
        store.get_or_make("unet", {}, full)
    assert isinstance(caught.value.__cause__, OSError)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="file"):
        ArtifactStore(tmp_path / "file" / "root").get_or_make("unet", {}, fill)


@pytest.mark.parametrize("moment", ["begin", "half", "end", "rename 1"])
def test_killed_while_making(tmp_path: Path, moment: str) -> None:
    """Nothing is taken for complete; the next one makes it anew and cleans up."""
    root = tmp_path / "root"
    assert writer(root, "store", moment).wait(30) == -signal.SIGKILL
    store = ArtifactStore(root)
    assert store.entries() == []
    assert any(path.name.startswith(".partial-unet-onnx") for path in root.iterdir())
    assert writer(root, "store").wait(30) == 0
    ((folder, _),) = store.entries()
    assert whole(folder)
    assert [path for path in root.iterdir() if path.is_dir()] == [folder]


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    both = [writer(root, "store", "slow") for _ in range(3)]
    assert [process.wait(60) for process in both] == [0, 0, 0]
    assert (tmp_path / "root-made").read_text() == "made "
    ((folder, _),) = ArtifactStore(root).entries()
    assert whole(folder)


@pytest.mark.parametrize("moment", ["begin", "half", "end", "rename 1", "rename 2", "rmtree"])
def test_killed_while_replacing(tmp_path: Path, moment: str) -> None:
    """What is there is never a part: the earlier folder, the new one, or for a moment none."""
    out = tmp_path / "out"
    out.mkdir()
    for name in "ab":
        (out / name).write_text("earlier")
    assert writer(tmp_path, "folder", moment).wait(30) == -signal.SIGKILL
    if moment == "rename 2":
        assert not out.exists()
    else:
        assert whole(out)
        assert ((out / "a").read_text() == "earlier") == (moment != "rmtree")
    assert writer(tmp_path, "folder").wait(30) == 0
    assert whole(out)
    assert (out / "a").read_text() != "earlier"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"out"}


def test_failure_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("earlier")
    with pytest.raises(InputError, match="^no$"), atomic_folder(out, replaces=bool) as partial:
        (partial / "a").write_text("half")
        raise InputError("no")
    assert (out / "a").read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


def test_a_writer_of_another_folder_is_left_alone(tmp_path: Path) -> None:
    """``sd-fp16`` is no leftover of ``sd``."""
    with atomic_folder(tmp_path / "sd-fp16") as slow:
        (slow / "a").write_text("slow")
        with atomic_folder(tmp_path / "sd") as quick:
            (quick / "a").write_text("quick")
    assert (tmp_path / "sd-fp16" / "a").read_text() == "slow"
    assert (tmp_path / "sd" / "a").read_text() == "quick"


def test_a_folder_that_cannot_be_replaced_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("earlier")
    with pytest.raises(ExportError), atomic_folder(out, replaces=bool) as partial:
        partial.rmdir()  # the last rename fails
    assert (out / "a").read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_of_somebody_else_s_is_replaced(tmp_path: Path) -> None:
    """A file of the user's, a folder with something in it, a link to either; an empty one may be."""
    (tmp_path / "f.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "at" / "all")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in ("f.txt", "folder", "link", "pipe"):
        with (
            pytest.raises(InputError, match=f"{tmp_path}.* was to be written; it is .* already"),
            atomic_folder(tmp_path / name, replaces=lambda folder: (folder / "ours").exists()),
        ):
            raise AssertionError("the work was begun")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "f.txt").read_text() == (tmp_path / "folder" / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as partial:
        fill(partial)
    assert (tmp_path / "empty" / "sub" / "file").exists()


def test_who_comes_in_between_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file"), atomic_folder(tmp_path / "out") as partial:
        fill(partial)
        (tmp_path / "out").write_text("mine")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "mine"


def test_a_link_to_one_of_ours_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "disk" / "out" / "ours").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    with atomic_folder(tmp_path / "link", replaces=lambda folder: True) as partial:
        fill(partial)
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk" / "out").iterdir()] == ["sub"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\udcff"])
def test_a_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    try:
        with atomic_folder(tmp_path / name) as partial:
            fill(partial)
    except ExportError as exc:
        assert "was to be written" in str(exc)
        assert str(exc).isprintable()
    else:
        assert name == "\udcff"  # a byte that is no character is a name on this system


def test_lock_is_between_processes(tmp_path: Path) -> None:
    """A second holder waits, and the lock of a dead process is free."""
    program = (
        "import sys, time; from pathlib import Path; from perfuse.sources.store import locked\n"
        "with locked(Path(sys.argv[1])):\n print('held', flush=True)\n time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "x")], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    entered = threading.Event()

    def wait() -> None:
        with locked(tmp_path / "x"):
            entered.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not entered.wait(0.3)
    holder.kill()
    holder.wait()
    assert entered.wait(30)
    thread.join()
    holder.stdout.close()


def test_clear(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "root")
    assert store.clear() == 0
    store.get_or_make("unet", {"a": 1}, fill)
    store.get_or_make("unet", {"a": 2}, fill)
    (store.root / ".partial-unet-1").mkdir()
    assert store.clear() == 2
    assert store.entries() == []
    assert not store.root.exists()


def test_clear_leaves_what_is_being_written(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "root")
    store.get_or_make("done", {}, fill)
    begun, go_on = threading.Event(), threading.Event()

    def make(folder: Path) -> None:
        fill(folder)
        begun.set()
        assert go_on.wait(30)

    thread = threading.Thread(target=store.get_or_make, args=("unet", {}, make))
    thread.start()
    assert begun.wait(30)
    assert store.clear() == 1
    go_on.set()
    thread.join()
    ((folder, _),) = store.entries()
    assert folder.name.startswith("unet-")
    assert (folder / "sub" / "file").read_bytes() == b"12345"
    assert store.clear() == 1
    assert not store.root.exists()


def test_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    assert ArtifactStore.default().root == tmp_path / "here" / "artifacts"
    monkeypatch.setenv("PERFUSE_CACHE", "~/there")
    assert cache_folder() == Path.home() / "there"
    monkeypatch.setenv("PERFUSE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().name == "perfuse"
    if os.uname().sysname == "Linux":
        assert cache_folder() == tmp_path / "perfuse"
