"""Borders of files: what is opened is a file, what is written is whole."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from perfuse.errors import ArtifactError, CheckpointError, ConfigError, InputError
from perfuse.sources.files import (
    open_file,
    read_json,
    read_text,
    replacing,
    shown,
    write_file,
    write_json,
)


def make_odd(folder: Path, kind: str) -> Path:
    """Something under a name that is no file, or a name that nothing has."""
    path = folder / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            os.chdir(folder)  # a socket's path is short
            bound.bind("odd")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "nul":
        path = folder / "a\0b"
    elif kind == "surrogate":
        path = folder / "\ud800"
    elif kind == "long":
        path = folder / ("x" * 300)
    return path


ODD = {
    "pipe": "it is a pipe",
    "folder": "it is a folder",
    "socket": "it is a socket",
    "loop": "symbolic links",
    "device": "it is a device",
    "nul": "null",
    "surrogate": "surrogates not allowed",
    "long": "name too long",
    "missing": "it is missing",
}


@pytest.mark.parametrize("kind", ODD)
def test_only_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_odd(tmp_path, kind)
    with pytest.raises(ArtifactError, match="cannot be read.*Do this") as caught:
        open_file(path, error=ArtifactError, remedy="Do this.")
    assert ODD[kind] in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "missing"])
def test_only_a_file_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make_odd(tmp_path, kind)
    before = list(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_file(path, "new")
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_without_the_right_to_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{}")
    (tmp_path / "a").chmod(0)
    with pytest.raises(CheckpointError, match="Give this user the right to read it"):
        read_json(tmp_path / "a")


WRONG = {
    "nothing": (b"", "line 1, column 1, is not JSON: Expecting value"),
    "half": (b'{\n "a": 1,\n', "line 3, column 1, is not JSON"),
    "comma": (b'{\n "a": 1,,\n}', "line 2, column 9, is not JSON"),
    "list": (b"[1]", "holds a JSON list; an object was expected"),
    "text": (b'"a"', "holds a JSON str; an object was expected"),
    "latin": (b'{"a": "\xe9"}', "is not UTF-8 text: byte 7 is 0xe9"),
    "utf-16": ("{}".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
    "deep": (b'{"a":' + b"[" * 100_000, "nested too deep"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    "binary": (bytes(range(200)), "is not UTF-8 text"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_json_that_is_none(tmp_path: Path, kind: str) -> None:
    content, words = WRONG[kind]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_json(tmp_path / "a.json", error=ConfigError, remedy="Get it again.")
    assert words in str(caught.value)
    assert str(tmp_path / "a.json") in str(caught.value)
    assert str(caught.value).endswith("Get it again.")


def test_json_that_is_too_large(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # takes no room
    with pytest.raises(CheckpointError, match="1099511627776 bytes"):
        read_json(tmp_path / "a.json")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, "é\n"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, "é\n"]}
    write_file(tmp_path / "a.txt", "a\r\né\n")
    assert read_text(tmp_path / "a.txt") == "a\r\né\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.txt"}


def test_rights_are_those_of_the_umask_or_of_what_was_there(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "new", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o600)
    write_file(tmp_path / "new", b"2")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "file").read_text() == "new"


def test_failing_half_way_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("earlier")
    with pytest.raises(KeyError), replacing(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyError
    with pytest.raises(InputError, match="No space left"), replacing(tmp_path / "a") as partial:
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a").read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file.*Choose a file in a folder that is there"):
        write_file(tmp_path / "no" / "a", "x")


def test_paths_in_messages() -> None:
    assert shown(Path("a") / "bé") == "a/bé"
    assert shown("a\x1b[31m\n") == "'a\\x1b[31m\\n'"
    assert shown("\udcff") == "'\\udcff'"
    assert len(shown("x" * 4000)) < 200
    assert json.dumps(shown("é" * 200))


def test_a_library_that_renames_into_place_keeps_the_permissions(tmp_path: Path) -> None:
    write_file(tmp_path / "plain", "x")
    with replacing(tmp_path / "renamed") as partial:
        other = tmp_path / "other"
        other.touch(mode=0o600)
        other.replace(partial)
    assert (tmp_path / "renamed").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text('{"constants": {"a": 1, "a": 2}}')
    assert read_json(path) == {"constants": {"a": 2}}
    with pytest.raises(ArtifactError, match="names a twice"):
        read_json(path, error=ArtifactError, once=True)
