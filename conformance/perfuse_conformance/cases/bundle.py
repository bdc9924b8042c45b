"""Golden bundles: the reference's inputs and results, to compare another backend with.

A folder with ``bundle.json`` and safetensors files. Whoever has one can judge a backend without
PyTorch and without the device that the reference ran on.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from perfuse.errors import PerfuseError
from perfuse.sources import from_plain, inside, read_json, sha256
from perfuse.spec import PipelineSpec

__all__ = ["FORMAT", "Bundle", "BundleError", "hash_of", "write_bundle"]

FORMAT = "perfuse-bundle"
#: Of the layout below.
VERSION = 2
_INDEX = "bundle.json"
_MANIFEST_KEYS = {"format", "version", "suite", "model", "seed", "reference", "spec", "files"}

Arrays = dict[str, Any]


class BundleError(PerfuseError):
    """A golden bundle cannot be read, or is of another model."""


def hash_of(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of named arrays: names, dtypes, shapes and bytes."""
    import numpy as np

    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on this machine. Open one with ``Bundle.open``.

    ``index`` holds, by probe and by draw, what is not an array:

    - ``probes[id]``: ``calls``, ``dims``, ``sha256`` of the inputs, and ``errors``: precision to
      output to the RMSE of the reference in that precision, a call.
    - ``draws[id]``: ``steps``; ``errors``: precision to the RMSE of the latents, a step; and
      ``pictures``: precision to the measures of the worst picture. Both are the worst of several
      runs whose first noise differs in its last bits.
    """

    path: Path
    index: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the index and check every file against its hash.

        Raises:
            BundleError: it is no bundle, is damaged, or of a newer version.
        """
        path = folder / _INDEX
        index = read_json(
            path, error=BundleError, remedy="Make one with: perfuse conformance record"
        )
        if index.get("format") != FORMAT:
            raise BundleError(f"{path} is not a golden bundle. Name the folder of one.")
        if not _MANIFEST_KEYS <= index.keys() or not isinstance(index["version"], int):
            raise BundleError(f"{path} lacks fields of a bundle. Record it again.")
        if index["version"] != VERSION:
            remedy = "Update perfuse" if index["version"] > VERSION else "Record the bundle again"
            raise BundleError(
                f"{path} has version {index['version']}; this suite reads {VERSION}. {remedy}."
            )
        for name, expected in index["files"].items():
            file = inside(folder, name)
            if not file.is_file() or sha256(file) != expected:
                raise BundleError(
                    f"{file} is missing or not the one that was recorded. Record the bundle again."
                )
        return cls(path=folder, index=index)

    @property
    def spec(self) -> PipelineSpec:
        return from_plain(PipelineSpec, self.index["spec"])

    @property
    def seed(self) -> int:
        return int(self.index["seed"])

    @property
    def reference(self) -> Mapping[str, str]:
        """``target``, ``engine``, ``device``, ``utc`` and ``host`` of the reference."""
        reference: Mapping[str, str] = self.index["reference"]
        return reference

    def check_model(self, spec: PipelineSpec) -> None:
        """Raise ``BundleError`` where a model is not the one that the bundle was recorded with."""
        for name, component in self.spec.components.items():
            other = spec.components.get(name)
            if other is None or dict(other.config) != dict(component.config):
                raise BundleError(
                    f"{self.path} was recorded with another model than the one asked for: {name} "
                    "differs. Record a bundle of this model, or name the one it was made with."
                )

    def inputs(self, probe: str, call: int) -> Arrays:
        """What a call of a probe is given."""
        return self._tensors(f"{probe}/{call}/in/")

    def truth(self, probe: str, call: int) -> Arrays:
        """What it should give, in float64."""
        return self._tensors(f"{probe}/{call}/out/")

    def drawn(self, draw: str) -> Arrays:
        """``latents`` [steps, B, C, h, w] and ``images`` [B, H, W, C] in [0, 1] of a draw."""
        return self._tensors(f"draw/{draw}/")

    @cached_property
    def _keys(self) -> Mapping[str, str]:
        """Tensor name to the file that holds it."""
        from safetensors import safe_open

        keys: dict[str, str] = {}
        for name in self.index["files"]:
            with safe_open(self.path / name, framework="numpy") as file:
                keys.update(dict.fromkeys(file.keys(), name))
        return keys

    def _tensors(self, prefix: str) -> Arrays:
        from safetensors import safe_open

        wanted = [key for key in self._keys if key.startswith(prefix)]
        if not wanted:
            raise BundleError(
                f"{self.path} holds nothing of {prefix.rstrip('/')}. Record it again, with the "
                "level and the precisions that are to be judged."
            )
        with safe_open(self.path / self._keys[wanted[0]], framework="numpy") as file:
            return {key.removeprefix(prefix): file.get_tensor(key) for key in wanted}


def write_bundle(
    folder: Path, index: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write a bundle into an existing, empty folder.

    Args:
        folder: Where.
        index: Everything but ``files``.
        tensors: File stem to named arrays.
    """
    import numpy as np
    from safetensors.numpy import save

    files = {}
    for stem, arrays in tensors.items():
        name = f"{stem}.safetensors"
        # safetensors writes raw memory and ignores strides, so make arrays contiguous.
        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        (folder / name).write_bytes(save(whole))
        files[name] = sha256(folder / name)
    described = {"format": FORMAT, "version": VERSION, **index, "files": files}
    (folder / _INDEX).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
