"""``perfuse.toml``: where it is looked for, what it may hold."""

from pathlib import Path

import pytest

from perfuse.cli.settings import read_settings
from perfuse.errors import ConfigError

KNOWN = {"backend": str, "steps": int, "guidance": float, "offline": bool}


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "perfuse.toml").write_text(text, encoding="utf-8")
    return folder


def test_all_types(tmp_path: Path) -> None:
    text = '[pipeline]\nbackend = "openvino:CPU"\nsteps = 5\nguidance = 7\noffline = true\n'
    found = read_settings(write(tmp_path, text), lambda: KNOWN)
    assert found == {"backend": "openvino:CPU", "steps": 5, "guidance": 7, "offline": True}


def test_the_nearest_file_alone_is_read(tmp_path: Path) -> None:
    write(tmp_path, '[pipeline]\nbackend = "a"\nsteps = 1\n')
    near = write(tmp_path / "x", '[pipeline]\nbackend = "b"\n')
    deeper = near / "y" / "z"
    deeper.mkdir(parents=True)
    assert read_settings(deeper, lambda: KNOWN) == {"backend": "b"}
    assert read_settings(tmp_path, lambda: KNOWN) == {"backend": "a", "steps": 1}


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    assert read_settings(tmp_path, lambda: KNOWN) == {}
    assert read_settings(write(tmp_path, ""), lambda: KNOWN) == {}
    assert read_settings(write(tmp_path, "[pipeline]\n"), lambda: KNOWN) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pipeline\n", "line 1"),
        ("[pipeline]\nbackend = torch\n", "line 2"),
        ("[pipline]\nsteps = 1\n", r"pipline.*\[pipeline\]"),
        ("pipeline = 3\n", r"pipeline.*3.*table"),
        ("backend = 'torch'\n", "backend"),
        ("[pipeline]\nbackends = 'torch'\n", "'backends'.*backend, guidance, offline, steps"),
        ("[pipeline]\nsteps = 5.5\n", "steps to 5.5.*whole number"),
        ("[pipeline]\nsteps = true\n", "steps to True"),
        ("[pipeline]\nsteps = '5'\n", "steps to '5'"),
        ("[pipeline]\nguidance = 'high'\n", "guidance to 'high'.*number"),
        ("[pipeline]\noffline = 1\n", "offline to 1.*true or false"),
        ("[pipeline]\nbackend = 1\n", "backend to 1.*text"),
        ("\x00", "perfuse.toml"),
    ],
)
def test_what_it_may_not_hold(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_settings(write(tmp_path, text), lambda: KNOWN)
    assert str(tmp_path / "perfuse.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "perfuse.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"perfuse\.toml"):
        read_settings(tmp_path, lambda: KNOWN)


def test_what_a_plugin_s_task_takes_is_asked_for_only_where_it_is_needed(tmp_path: Path) -> None:
    asked: list[str] = []

    def more() -> dict[str, type]:
        asked.append("plugins")
        return {"strength": float}

    write(tmp_path, "[pipeline]\nsteps = 1\n")
    assert read_settings(tmp_path, lambda: KNOWN, more=more) == {"steps": 1}
    assert asked == []
    write(tmp_path, "[pipeline]\nstrength = 0.5\n")
    assert read_settings(tmp_path, lambda: KNOWN, more=more) == {"strength": 0.5}
    write(tmp_path, "[pipeline]\nstrengths = 0.5\n")
    with pytest.raises(ConfigError, match="'strengths'.*guidance, offline, steps, strength"):
        read_settings(tmp_path, lambda: KNOWN, more=more)
