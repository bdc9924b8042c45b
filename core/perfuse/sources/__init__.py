"""Where pipelines come from: checkpoints, exported folders, other tools' folders; and the cache."""

from typing import TYPE_CHECKING

from perfuse._lazy import lazy

if TYPE_CHECKING:
    from perfuse.sources.artifact import Artifact as Artifact
    from perfuse.sources.checkpoint import Checkpoint as Checkpoint
    from perfuse.sources.files import open_file as open_file
    from perfuse.sources.files import read_json as read_json
    from perfuse.sources.files import read_text as read_text
    from perfuse.sources.files import read_toml as read_toml
    from perfuse.sources.files import replacing as replacing
    from perfuse.sources.files import write_file as write_file
    from perfuse.sources.files import write_json as write_json
    from perfuse.sources.manifest import MANIFEST as MANIFEST
    from perfuse.sources.manifest import ExportedComponent as ExportedComponent
    from perfuse.sources.manifest import Manifest as Manifest
    from perfuse.sources.manifest import inside as inside
    from perfuse.sources.manifest import sha256 as sha256
    from perfuse.sources.manifest import tool_versions as tool_versions
    from perfuse.sources.model_index import INDEX as INDEX
    from perfuse.sources.model_index import entries_of as entries_of
    from perfuse.sources.model_index import kind_of as kind_of
    from perfuse.sources.opening import open_model as open_model
    from perfuse.sources.plain import from_plain as from_plain
    from perfuse.sources.plain import to_plain as to_plain
    from perfuse.sources.readers import scheduler_config as scheduler_config
    from perfuse.sources.readers import with_scheduler as with_scheduler
    from perfuse.sources.store import ArtifactStore as ArtifactStore
    from perfuse.sources.store import atomic_folder as atomic_folder
    from perfuse.sources.store import locked as locked
    from perfuse.sources.tokenizer import Tokenizer as Tokenizer
    from perfuse.sources.unfinished import scratch_folder as scratch_folder
    from perfuse.sources.unfinished import undone as undone
    from perfuse.sources.weight_maps import changed_constants as changed_constants
    from perfuse.sources.weight_maps import exported_weights as exported_weights
    from perfuse.sources.weight_maps import read_map as read_map
    from perfuse.sources.weight_maps import write_map as write_map
    from perfuse.sources.weights import Weights as Weights
    from perfuse.sources.weights import check_inside as check_inside

__getattr__, __dir__ = lazy(
    __name__,
    {
        "artifact": ("Artifact",),
        "checkpoint": ("Checkpoint",),
        "manifest": (
            "MANIFEST",
            "ExportedComponent",
            "Manifest",
            "inside",
            "sha256",
            "tool_versions",
        ),
        "model_index": (
            "INDEX",
            "entries_of",
            "kind_of",
        ),
        "files": (
            "open_file",
            "read_json",
            "read_text",
            "read_toml",
            "replacing",
            "write_file",
            "write_json",
        ),
        "opening": ("open_model",),
        "plain": (
            "from_plain",
            "to_plain",
        ),
        "readers": (
            "scheduler_config",
            "with_scheduler",
        ),
        "store": (
            "ArtifactStore",
            "atomic_folder",
            "locked",
        ),
        "tokenizer": ("Tokenizer",),
        "unfinished": (
            "scratch_folder",
            "undone",
        ),
        "weight_maps": (
            "changed_constants",
            "exported_weights",
            "read_map",
            "write_map",
        ),
        "weights": (
            "Weights",
            "check_inside",
        ),
    },
)
