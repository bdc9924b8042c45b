"""What the tests share: an export cache of their own, and small checkpoints made once."""

import importlib
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Make = Callable[[str], Path]
Export = Callable[[str, str], Path]

# What a script starts in the background ignores Ctrl-C, and so would the commands that are interrupted here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_tiny(folder: Path) -> Path:
    """DDPM with one block, exported in a second or two."""
    import perfuse.models
    from perfuse_conformance.checkpoints import ddpm_config, make_checkpoint, randomise

    make_checkpoint(folder, "ddpm")
    config = ddpm_config(
        sample_size=8,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"],
        norm_num_groups=4,
        add_attention=False,
    )
    randomise(perfuse.models.UNet2DModel(**config)).save_pretrained(folder / "unet")
    return folder


def make_words(folder: Path) -> Path:
    """Stable Diffusion with one block in its UNet, exported in some seconds."""
    import perfuse.models
    from perfuse_conformance.checkpoints import make_checkpoint, randomise, unet_config

    make_checkpoint(folder, "sd1")
    config = unet_config(
        block_out_channels=[16],
        down_block_types=["CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D"],
        mid_block_type=None,
    )
    randomise(perfuse.models.UNet2DConditionModel(**config)).save_pretrained(folder / "unet")
    return folder


def make_followed(folder: Path) -> Path:
    """``words`` with a ControlNet of one block."""
    import perfuse.models
    from perfuse_conformance.checkpoints import controlnet_config, edit_json, randomise, unet_config

    make_words(folder)
    config = unet_config(
        block_out_channels=[8, 16],
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        mid_block_type="UNetMidBlock2D",
    )
    randomise(perfuse.models.UNet2DConditionModel(**config)).save_pretrained(folder / "unet")
    net = perfuse.models.ControlNetModel(**controlnet_config(config))
    randomise(net, 1).save_pretrained(folder / "controlnet")
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionControlNetPipeline",
        controlnet=["diffusers", "ControlNetModel"],
    )
    return folder


_SMALLER = {
    "tiny": make_tiny,
    "words": make_words,
    "followed": make_followed,
}


@pytest.fixture(scope="session")
def made_once() -> Callable[..., Path]:
    """``made_once("exports", "sd1-onnx", make)``: a folder that all workers of a run share.

    The first that asks for it has it made by ``make(new_folder)``; others wait. An export is known by
    its checkpoint's files, so those have to be the same files for everyone.
    """
    import filelock

    from perfuse.sources.store import atomic_folder

    shared = Path(os.environ["PERFUSE_TEST_CACHE"])

    def made(kind: str, name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / kind / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{name}.lock"):
            if not folder.exists():
                with atomic_folder(folder) as partial:
                    make(partial / name)
        return folder / name

    return made


@pytest.fixture(scope="session")
def checkpoint(made_once: Callable[..., Path]) -> Make:
    """``checkpoint("sd1")``: a small random checkpoint, made once; not to be written to.

    The kinds are those of ``perfuse_conformance.checkpoints``, and the smaller ``tiny`` and ``words``.
    """

    def make(kind: str) -> Path:
        def write(folder: Path) -> None:
            from perfuse_conformance.checkpoints import make_checkpoint

            _SMALLER[kind](folder) if kind in _SMALLER else make_checkpoint(folder, kind)

        return made_once("checkpoints", kind, write)

    return make


#: What PyTorch's generator starts from in a process of its own.
_TORCH_SEED = 67280421310721


@pytest.fixture(autouse=True)
def unseeded() -> None:
    """No test finds the seed that another one set by ``torch.manual_seed``."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(_TORCH_SEED)


@pytest.fixture
def copy_of(checkpoint: Make, tmp_path: Path) -> Make:
    """``copy_of("sd1")``: a copy of a small checkpoint that the test may damage."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(checkpoint(kind), tmp_path / "copies" / kind))

    return copy


@pytest.fixture(scope="session")
def exported(checkpoint: Make, made_once: Callable[..., Path]) -> Export:
    """``exported("sd1", "onnx")``: a small checkpoint in a format; not to be written to.

    A test that uses it is marked ``export``.
    """

    def export(kind: str, format: str) -> Path:
        needs_exporter(format)

        def write(folder: Path) -> None:
            from perfuse import DiffusionPipeline

            pipe = DiffusionPipeline.from_pretrained(checkpoint(kind), backend="torch:cpu")
            pipe.export(folder, to=format)

        return made_once("exports", f"{kind}-{format}", write)

    return export


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Install a distribution with one entry point; the host of the process is asked anew."""
    from tests.distributions import write_distribution

    from perfuse.plugins import host

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def install(name: str, code: str, **settings: str) -> Path:
        write_distribution(site, name, code, **settings)
        importlib.invalidate_caches()
        host.cache_clear()
        return site

    yield install
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == site:
            del sys.modules[name]
    host.cache_clear()


def needs_exporter(format: str) -> None:
    """Skip the test where the exporter's tools are not installed."""
    from perfuse.plugins import host

    for module in host().exporters()[format].requires:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
