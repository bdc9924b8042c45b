"""XLA as a backend: its devices, what it refuses, what it keeps, and what it draws."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from perfuse import ArtifactStore, Component, DiffusionPipeline, Program, Request, SupportLevel
from perfuse.errors import BackendError, DeviceNotFoundError, InputError, UnsupportedError
from perfuse_exporters.stablehlo.engine import import_jax

from perfuse_xla import backend
from perfuse_xla.backend import Xla

Prepare = Callable[..., Program]


def request(component: Component, **changes: object) -> Request:
    asked = Request(component=component.spec, precision="float32", static=component.static)
    return dataclasses.replace(asked, **changes)


def test_devices() -> None:
    names = [device.name for device in Xla().devices()]
    assert "cpu" in names
    assert len(names) == len(import_jax().local_devices())


class Elsewhere:
    """A device that is not here, as JAX would describe it."""

    def __init__(self, platform: str, number: int, version: str = "") -> None:
        self.platform, self.id, self.device_kind = platform, number, "some kind"
        self.client = type("Client", (), {"platform_version": version})


def test_names_are_jaxs(unet: Component, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where nobody has run a program, ``supports`` does not say that it runs."""
    for device, name in (
        (Elsewhere("gpu", 1, "PJRT C API\ncuda 12090"), "cuda:1"),
        (Elsewhere("gpu", 0, "rocm 60400"), "rocm:0"),
        (Elsewhere("tpu", 3), "tpu:3"),
    ):
        found = {backend._name(device): device}
        monkeypatch.setattr(backend, "_devices", lambda found=found: found)
        assert [one.name for one in Xla().devices()] == [name]
        assert Xla().supports(request(unet)).level is SupportLevel.CONDITIONAL
        assert Xla().supports(request(unet, device=name.upper())).works


def test_a_client_that_does_not_start() -> None:
    code = """
from perfuse.errors import BackendError
from perfuse_xla.backend import Xla
try:
    Xla().devices()
except BackendError as exc:
    print(exc)
"""
    environment = {"JAX_PLATFORMS": "tpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "Check JAX_PLATFORMS" in done.stdout


def test_what_it_refuses(unet: Component, prepare: Prepare) -> None:
    for device in ("tpu", "cuda:0", "cpu:99"):
        with pytest.raises(DeviceNotFoundError, match=f"xla:{device} was asked for; JAX lists cpu"):
            prepare(unet, device=device)
    with pytest.raises(InputError, match="it has cache, optimization"):
        prepare(unet, threads="1")
    with pytest.raises(UnsupportedError, match="not float7"):
        prepare(dataclasses.replace(unet, precision="float7"))
    with pytest.raises(UnsupportedError, match="needs that of batch, width"):
        prepare(dataclasses.replace(unet, static={"height": 8}))
    assert not Xla().supports(request(unet, static={})).works
    assert issubclass(DeviceNotFoundError, BackendError)


def test_what_is_compiled_is_kept(
    unet: Component, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the store, where a damaged file is put away; JAX's own setting is as it was."""
    monkeypatch.setenv("PERFUSE_CACHE", str(tmp_path))
    given = {"sample": np.ones((2, 3, 8, 6), np.float32), "timestep": np.ones(2, np.float32)}
    folder = ArtifactStore.default().root / "xla-compiled"

    def draw(**options: str) -> np.ndarray:
        program = prepare(unet, device="CPU:0", optimization="0", **options)
        assert program.report().device == "cpu"
        return program(**given)["out_sample"]

    wanted = draw(cache="false")
    assert not folder.exists()
    assert (draw() == wanted).all()
    kept = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(kept) == 1
    assert (draw() == wanted).all()
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == kept
    (file,) = kept
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    assert (draw() == wanted).all()
    assert file.read_bytes()[:2] == whole[:2]
    assert import_jax().config.jax_compilation_cache_dir is None


def test_draws_what_torch_draws_without_torch(checkpoint: Path, tmp_path: Path) -> None:
    drawing = {"num_inference_steps": 3, "seed": 0, "output_type": "np"}
    pipe = DiffusionPipeline.from_pretrained(checkpoint, backend="torch:cpu")
    wanted = pipe(**drawing).images
    folder = pipe.export(tmp_path / "tiny", to="stablehlo")
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from perfuse import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, backend="xla", options={{"optimization": "0"}})
np.save({str(tmp_path / "picture.npy")!r}, pipe(**{drawing!r}).images)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert np.abs(np.load(tmp_path / "picture.npy") - wanted).max() < 1e-4


@pytest.mark.exhaustive
def test_a_lora_goes_into_the_program_that_is_loaded(checkpoint: Path) -> None:
    """Into those of all sizes; without it, the picture is the first to the last bit."""
    from perfuse_conformance.reference.loras import OwnLora

    drawing = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    options = {"optimization": "0"}
    torch = DiffusionPipeline.from_pretrained(checkpoint, backend="torch:cpu")
    xla = DiffusionPipeline.from_pretrained(checkpoint, backend="xla", options=options)
    first, program = xla(**drawing).images, xla.program("unet")
    wide = {**drawing, "batch_size": 2}
    xla(**wide)
    plain = torch.component("unet")
    own = OwnLora(component=plain.spec, shapes=torch.weight_shapes(plain))
    for pipe in (torch, xla):
        pipe.load_lora_weights(own.tensors(), adapter_name="own")
    for scale in (1.0, 0.5):
        for pipe in (torch, xla):
            pipe.set_adapters("own", scale)
        for call in (drawing, wide):
            wanted, found = torch(**call).images, xla(**call).images
            assert np.abs(found - wanted).max() < 1e-4
        assert np.abs(found[0] - first[0]).max() > 1e-3
        assert xla.program("unet") is program
    xla.disable_lora()
    assert (xla(**drawing).images == first).all()
    assert xla.program("unet") is program
