"""Whether a ``model.neuron`` may be loaded: it is TorchScript, and loading that can run code.

torch-neuronx has no other format. A file is loaded if the manifest of the folder that it is in has
its SHA-256, or if the user names it. Neither says that its maker means well: the first says that the
file is the one that was exported with this manifest; the second, that the user vouches for it. What this
machine compiled itself is loaded from its cache as it is.
"""

from collections.abc import Collection
from pathlib import Path

from perfuse.errors import ArtifactError
from perfuse.sources import MANIFEST, Manifest, sha256

__all__ = ["check_trust"]


def check_trust(path: Path, trusted: Collection[str]) -> None:
    """Refuse a file that is not trusted, before anything in it is read.

    Args:
        path: ``{folder}/{component}/model.neuron``.
        trusted: SHA-256 sums that the user named, in hexadecimal.

    Raises:
        ArtifactError: it is none of these, and no manifest beside it has its sum.
    """
    found = sha256(path)
    if found in trusted:
        return
    folder = path.parent.parent
    name = path.relative_to(folder).as_posix()
    if not (folder / MANIFEST).is_file():
        reason = f"{folder} has no {MANIFEST} that vouches for it"
    else:
        written = Manifest.read(folder).files.get(name, {}).get("sha256")
        if written == found:
            return
        reason = (
            f"{folder / MANIFEST} does not list it"
            if written is None
            else f"its SHA-256 is not the one in {folder / MANIFEST}"
        )
    raise ArtifactError(
        f"{path} was to be loaded; it is TorchScript, which can run code, and {reason}. Export the "
        "model yourself, or, if you have the file's SHA-256 from someone you trust and it is "
        f"{found}, give --option trust={found}."
    )
