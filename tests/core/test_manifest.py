"""``perfuse.json``: written and read back, and every way in which it can be wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perfuse import Checkpoint
from perfuse.errors import ArtifactError
from perfuse.sources.manifest import (
    MANIFEST,
    ExportedComponent,
    Manifest,
    inside,
    is_artifact,
    sha256,
    tool_versions,
)

Make = Callable[[str], Path]


@pytest.fixture
def folder(checkpoint: Make, tmp_path: Path) -> Path:
    """An artifact as far as its manifest goes: the UNet's file holds four bytes."""
    folder = tmp_path / "exported"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.bin").write_bytes(b"unet")
    spec = Checkpoint.open(checkpoint("ddpm")).spec
    component = ExportedComponent(
        format="numbers",
        file="unet/model.bin",
        precision="float16",
        signature=spec.components["unet"].signature.resolve({"batch": 2}),
        static={"batch": 2},
    )
    Manifest(
        spec=spec,
        components={"unet": component},
        source={"model": "somewhere", "revision": None},
        files={"unet/model.bin": {"size": 4, "sha256": sha256(folder / "unet" / "model.bin")}},
        tools={"perfuse": "0.1"},
    ).write(folder)
    return folder


def change(folder: Path, *keys: str, value: Any) -> None:
    """Set an entry of the manifest; ``...`` takes it out."""
    path = folder / MANIFEST
    data = json.loads(path.read_text("utf-8"))
    place = data
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(data), "utf-8")


def test_read_back(folder: Path, checkpoint: Make) -> None:
    manifest = Manifest.read(folder)
    spec = Checkpoint.open(checkpoint("ddpm")).spec
    assert manifest.spec == spec
    component = manifest.components["unet"]
    assert (component.format, component.file) == ("numbers", "unet/model.bin")
    assert (component.precision, component.static) == ("float16", {"batch": 2})
    assert component.signature.inputs[0].shape[0] == 2
    assert manifest.source == {"model": "somewhere", "revision": None}
    assert manifest.tools == {"perfuse": "0.1"}
    manifest.verify(folder)


def test_is_artifact(folder: Path, tmp_path: Path) -> None:
    assert is_artifact(folder)
    assert not is_artifact(tmp_path)
    assert not is_artifact(tmp_path / "no")
    assert not is_artifact(folder / MANIFEST)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Export the model again"),
        ("{", "line 1"),
        ("[]", "object"),
        ("{}", "version"),
        ("\xff", "perfuse.json"),
        ("3", "object"),
        ('{"version": 2}', "pipeline"),
        ("[" * 100_000, "Export the model again"),
    ],
)
def test_what_is_no_manifest(folder: Path, text: str, words: str) -> None:
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=words) as caught:
        Manifest.read(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [1, 3, 0, "1", None, 1.5])
def test_another_version(folder: Path, version: Any) -> None:
    change(folder, "version", value=version)
    with pytest.raises(ArtifactError, match="version.*this perfuse reads 2.*Update perfuse"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("pipeline",), ...),
        (("pipeline", "tasks"), ...),
        (("pipeline", "class_name"), ...),
        (("pipeline", "components"), []),
        (("pipeline", "components", "unet", "signature"), 3),
        (("components",), ...),
        (("components",), []),
        (("components",), {}),
        (("components", "unet", "file"), ...),
        (("components", "unet", "file"), 3),
        (("components", "unet", "signature"), {"inputs": []}),
        (("files",), ...),
        (("files",), ["unet/model.bin"]),
        (("files", "unet/model.bin"), {}),
        (("files", "unet/model.bin", "size"), "large"),
        (("files", "unet/model.bin", "sha256"), ...),
        (("source",), ...),
        (("source",), 3),
        (("tools",), ...),
    ],
)
def test_missing_and_malformed_fields(folder: Path, keys: tuple[str, ...], value: Any) -> None:
    change(folder, *keys, value=value)
    with pytest.raises(ArtifactError, match=r"[Ee]xport") as caught:
        Manifest.read(folder).verify(folder)
    assert "\n" not in str(caught.value)


OUTSIDE = [
    "/etc/passwd",
    "../other/model.bin",
    "unet/../../other/model.bin",
    "..",
    "unet\\model.bin",
    "..\\other",
    "C:\\model.bin",
    "C:/model.bin",
    "",
    ".",
    "a\0b",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_leave_the_folder(folder: Path, path: str) -> None:
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "model.bin").write_bytes(b"unet")
    with pytest.raises(ArtifactError):
        inside(folder, path)
    change(folder, "components", "unet", "file", value=path)
    with pytest.raises(ArtifactError):
        Manifest.read(folder)
    change(folder, "components", "unet", "file", value="unet/model.bin")
    Manifest.read(folder)
    change(folder, "files", path, value={"size": 4, "sha256": ""})
    with pytest.raises(ArtifactError):
        Manifest.read(folder)


def test_links_out_of_the_folder(folder: Path) -> None:
    outside = folder.parent / "outside"
    shutil.move(folder / "unet", outside)
    (folder / "unet").symlink_to(outside)
    with pytest.raises(ArtifactError, match="outside the folder"):
        Manifest.read(folder)


def test_a_link_in_the_folder_and_a_link_to_it(folder: Path) -> None:
    os.rename(folder / "unet", folder / "real")
    (folder / "unet").symlink_to("real")
    (folder.parent / "link").symlink_to(folder)
    Manifest.read(folder).verify(folder)
    Manifest.read(folder.parent / "link").verify(folder.parent / "link")


def test_inside() -> None:
    folder = Path("somewhere")
    assert inside(folder, "a/b.bin") == folder / "a" / "b.bin"
    assert inside(folder, "a..b") == folder / "a..b"


def test_a_file_that_the_component_needs_and_the_list_has_not(folder: Path) -> None:
    change(folder, "files", value={})
    with pytest.raises(ArtifactError, match=r"unet/model\.bin"):
        Manifest.read(folder)


def test_files_that_are_missing_or_have_another_size(folder: Path) -> None:
    file = folder / "unet" / "model.bin"
    file.write_bytes(b"unets")
    with pytest.raises(ArtifactError, match="should hold 4 bytes; it holds 5"):
        Manifest.read(folder)
    file.unlink()
    with pytest.raises(ArtifactError, match="should hold 4 bytes; it is missing"):
        Manifest.read(folder)
    file.mkdir()
    with pytest.raises(ArtifactError, match="should hold 4 bytes"):
        Manifest.read(folder)


def test_verify_finds_another_content_of_the_same_size(folder: Path) -> None:
    (folder / "unet" / "model.bin").write_bytes(b"tenu")
    manifest = Manifest.read(folder)
    with pytest.raises(ArtifactError, match=r"unet/model\.bin is not the file.*SHA-256"):
        manifest.verify(folder)


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-4, the example of one block
    assert sha256(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


def test_tool_versions() -> None:
    found = tool_versions(("perfuse", "there-is-no-such-thing"))
    assert found["there-is-no-such-thing"] == "not installed"
    assert found["perfuse"][0].isdigit()
