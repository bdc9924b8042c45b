"""LoRA loaded into an accelerated pipeline by peft: each change is seen at the next draw."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import perfuse
from perfuse import ArtifactStore

pytestmark = [pytest.mark.export, pytest.mark.exhaustive]

CHANGES: dict[str, Callable[[Any], object]] = {
    "weighted": lambda pipe: pipe.set_adapters(["style"], adapter_weights=[0.4]),
    "disabled": lambda pipe: pipe.disable_lora(),
    "enabled": lambda pipe: pipe.enable_lora(),
    "fused": lambda pipe: pipe.fuse_lora(lora_scale=0.7),
    "unfused": lambda pipe: pipe.unfuse_lora(),
    "deleted": lambda pipe: pipe.delete_adapters(["style"]),
}


def adapter(pipe: Any, folder: Path) -> Path:
    """A random LoRA for the attention of a pipeline's UNet, as Diffusers writes one."""
    layers = {
        name: layer
        for name, layer in pipe.unet.named_modules()
        if name.endswith(("to_q", "to_v", "to_out.0"))
    }
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, layer in layers.items():
        rows, columns = layer.weight.shape
        weights[f"unet.{name}.lora_A.weight"] = torch.randn(4, columns, generator=generator) / 4
        weights[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 4
    assert weights
    from safetensors.torch import save_file

    save_file(weights, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def draw(pipe: Any) -> Any:
    given = {"num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16}
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle", generator=generator, **given).images.numpy()


@pytest.mark.parametrize(
    "engine", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.exhaustive)]
)
def test_every_change_of_a_lora_is_seen(
    engine: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip(engine)

    def opened() -> Any:
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("sd1"))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    eager, pipe = opened(), opened()
    perfuse.accelerate(pipe, f"unet={engine}", store=ArtifactStore(tmp_path), strict=True)
    before = draw(pipe)
    assert np.abs(before - draw(eager)).max() < 1e-4
    file = adapter(eager, tmp_path)
    for one in (eager, pipe):
        one.load_lora_weights(file, adapter_name="style")
    last = draw(pipe)
    assert np.abs(last - draw(eager)).max() < 1e-3 and np.abs(last - before).max() > 1e-2
    for name, change in CHANGES.items():
        for one in (eager, pipe):
            change(one)
        now = draw(pipe)
        assert np.abs(now - draw(eager)).max() < 1e-3, name
        # What was fused is as it was before in effect: the scale stays with the adapter.
        assert np.abs(now - last).max() > 1e-3 or name in ("unfused", "deleted"), name
        last = now
    assert np.abs(last - before).max() < 1e-3
    (row,) = pipe.perfuse.report()
    assert row.torch_calls == 0


def test_the_command_line_loads_it(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from perfuse.cli.main import main

    model = checkpoint("sd1")
    eager = diffusers.StableDiffusionPipeline.from_pretrained(model)
    file = adapter(eager, tmp_path)
    eager.load_lora_weights(file, adapter_name="style")
    eager.set_adapters(["style"], [0.4])
    size = {"num_inference_steps": 2, "height": 16, "width": 16}
    picture = eager("a red circle", generator=torch.Generator().manual_seed(3), **size).images[0]
    asked = ["generate", "a red circle", "--bridged", "--model", str(model), "--seed", "3"]
    asked += ["--steps", "2", "--height", "16", "--width", "16", "--quiet"]
    output = tmp_path / "a.png"
    done = CliRunner().invoke(main, [*asked, "--lora", f"{file}:0.4", "--output", str(output)])
    assert done.exit_code == 0, done.output
    from PIL import Image

    apart = np.asarray(Image.open(output)).astype(int) - np.asarray(picture).astype(int)
    assert np.abs(apart).max() <= 1
    pickled = file.with_suffix(".bin")
    pickled.write_bytes(b"")
    done = CliRunner().invoke(main, [*asked, "--lora", str(pickled), "--output", str(output)])
    assert done.exit_code == 2
    assert "only .safetensors" in f"{done.output} {done.exception}"
