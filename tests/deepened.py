"""Checkpoints of small transformers with more blocks, so that there are first, middle and last ones."""

import json
import re
import shutil
from pathlib import Path

__all__ = ["deepened"]

_ROW = re.compile(r"(transformer_blocks|layers)\.1\.")


def deepened(model: Path, folder: Path) -> Path:
    """A copy of a checkpoint whose transformer has four layers if it had two: the last one thrice."""
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(model, folder))
    path = copy / "transformer" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    count = next(name for name in ("num_layers", "n_layers", "num_mmdit_layers") if name in config)
    if config[count] == 2 and "num_single_layers" not in config:
        path.write_text(json.dumps({**config, count: 4}), "utf-8")
        weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        for name in filter(_ROW.match, list(tensors)):
            tensors |= {name.replace(".1.", f".{i}.", 1): tensors[name] for i in (2, 3)}
        save_file(tensors, weights, metadata={"format": "pt"})
    return copy
