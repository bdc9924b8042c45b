"""Exporting components one at a time: into the cache, or into a folder."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType

from perfuse.contract.component import Component
from perfuse.contract.spec import PipelineSpec
from perfuse.errors import ExportError, InputError
from perfuse.plugins.host import host
from perfuse.progress import say, working
from perfuse.run.graphs import filled
from perfuse.run.lowering import lowered, settings, tools
from perfuse.sources.files import read_json
from perfuse.sources.manifest import (
    ExportedComponent,
    Manifest,
    is_artifact,
    sha256,
)
from perfuse.sources.model_index import write_index
from perfuse.sources.plain import to_plain
from perfuse.sources.store import ArtifactStore, atomic_folder, locked

__all__ = ["component_options", "export_pipeline", "exported"]

_MAIN = "main-file.json"


def exported(
    component: Component, format: str, store: ArtifactStore, *, apart: bool = False
) -> Path:
    """The main file of a component in a format: from its artifact, or exported into the cache.

    Args:
        component: What to export.
        format: To what.
        store: The cache.
        apart: Whether to make it of the component's graph, where there is one apart from weights:
            that is kept, and the next checkpoint of the config is written without a conversion.

    Raises:
        ExportError: there is no exporter for the format, or the export failed.
    """
    if format in component.files:
        return component.files[format]

    def make(folder: Path) -> None:
        main = None
        if component.storage or apart:  # integers: where a graph is known, without torch
            main = filled(component, format, store, folder, done=0, total=None)
        if main is None:
            main = _export(component, format, folder)
        record = {"main": main.relative_to(folder).as_posix()}
        (folder / _MAIN).write_text(json.dumps(record), encoding="utf-8")

    return _main_file(store.get_or_make(_label(component, format), _key(component, format), make))


def _label(component: Component, format: str) -> str:
    return f"{component.name}-{format}-{component.precision}"


def _key(component: Component, format: str) -> dict[str, object]:
    """All that an export depends on."""
    fingerprint = component.fingerprint
    return {
        "component": to_plain(component.spec),
        "fingerprint": _fingerprint(component) if fingerprint is None else fingerprint,
        **settings(component, format),
        "tools": tools(format),
    }


def _main_file(folder: Path) -> Path:
    """The main file of an export in the cache."""
    try:
        main = folder / str(read_json(folder / _MAIN, error=ExportError)["main"])
        main.stat()
    except (ExportError, OSError, ValueError, KeyError) as exc:
        raise ExportError(
            f"{folder} in the cache is damaged: {exc}. Run: perfuse cache clear"
        ) from exc
    return main


def _kept(component: Component, format: str, store: ArtifactStore) -> Path | None:
    """The folder of a component's export in the cache, if it is there."""
    if component.fingerprint is None:  # it would cost a reading of all weights to find out
        return None
    folder = store.folder(_label(component, format), _key(component, format))
    return folder if folder.is_dir() else None


def _copied(kept: Path, folder: Path) -> Path:
    """Copy an export from the cache; returns its main file."""
    shutil.copytree(kept, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_MAIN))
    return folder / _main_file(kept).relative_to(kept)


def _export(
    component: Component,
    format: str,
    folder: Path,
    *,
    kept: Path | None = None,
    done: int = 0,
    total: int | None = None,
) -> Path:
    message = f"Exporting {component.name} to {format} ({component.precision})"
    if kept is not None:
        message = f"Copying {component.name} from the cache"
    with working("export", message, subject=component.name, done=done, total=total):
        if kept is not None:
            return _copied(kept, folder)
        return lowered(component, format, lambda exporter: exporter.export(component, folder))


def _fingerprint(component: Component) -> str:
    """A fingerprint of a module that the user set: of its layers, code, configs and weights."""
    import hashlib

    if component.build is None:
        raise ExportError(
            f"{component.name} was to be exported; it comes from an artifact, which has no module. "
            "Export the checkpoint."
        )
    module = component.build()
    configs = [getattr(part, "config", None) for part in module.modules()]
    digest = hashlib.sha256(f"{module} {configs}".encode())
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        digest.update(f"{kind.__module__}.{kind.__qualname__} {_code(kind.forward)}".encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def export_pipeline(
    spec: PipelineSpec,
    component: Callable[[str], Component],
    folder: Path,
    *,
    to: str,
    source: Mapping[str, str | None],
    copy: Callable[[Path], None],
    store: ArtifactStore,
) -> Path:
    """Write a whole pipeline as an artifact. If the export fails, nothing is left in ``folder``.

    A component that is in the cache already, because it ran on an engine, is copied from there.

    Args:
        spec: The pipeline.
        component: Returns a component by name; called for one at a time to save memory.
        folder: Where to write; absent, an empty folder, or an artifact, which is replaced.
        to: The format.
        source: Where the pipeline came from, for the manifest.
        copy: Writes tokenizer and scheduler files into the folder it is given.
        store: The cache: of exports, which are only read, and of graphs.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds other files.
        ExportError: a component could not be exported, or the folder could not be written.
    """
    exporter = host().exporter(to)  # fails early if it is not installed
    folder = folder.resolve()
    with locked(folder), atomic_folder(folder, replaces=is_artifact) as partial:
        components: dict[str, Component] = {}
        files: Mapping[str, Path] = {}
        total = len(spec.components)
        for done, name in enumerate(spec.components):
            part = partial / name
            part.mkdir()
            one = component(name)
            kept = _kept(one, to, store)
            main = None
            if kept is None:
                main = filled(one, to, store, part, done=done, total=total)
            if main is None:
                main = _export(one, to, part, kept=kept, done=done, total=total)
            files = {**files, name: main}
            components[name] = dataclasses.replace(one, build=None)
            del one
        copy(partial)
        if exporter.indexed:
            write_index(spec, partial)
        files = exporter.arrange(partial, components, files, model=str(source["model"]))
        say("Writing the manifest")
        Manifest(
            spec=spec,
            components={
                name: ExportedComponent(
                    format=to,
                    file=files[name].relative_to(partial).as_posix(),
                    precision=one.precision,
                    signature=one.signature,
                    static=one.static,
                    sizes=one.sizes,
                    options=one.options,
                    storage=one.storage,
                    calibration=one.calibration,
                )
                for name, one in components.items()
            },
            source=source,
            files={
                path.relative_to(partial).as_posix(): {
                    "size": path.stat().st_size,
                    "sha256": sha256(path),
                }
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            },
            tools=tools(to),
        ).write(partial)
    return folder


def _code(function: Callable[..., object]) -> str:
    """A function's bytecode and constants, the same in every process; without what it calls."""
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    plain = [const for const in code.co_consts if not isinstance(const, CodeType)]
    return f"{code.co_code.hex()} {code.co_names} {plain}"


def component_options(
    options: Mapping[str, str], components: Sequence[str]
) -> dict[str, dict[str, str]]:
    """An exporter's options by component: those for all, and the component's: ``unet.palettize``.

    Raises:
        InputError: an option names an unknown component.
    """
    switches: dict[str, dict[str, str]] = {name: {} for name in components}
    for name, value in sorted(options.items(), key=lambda pair: "." in pair[0]):  # own ones last
        component, dot, switch = name.rpartition(".")
        if dot and component not in switches:
            raise InputError(
                f"The option {name} was given; this pipeline has the components "
                f"{', '.join(components)}. Write COMPONENT.OPTION with one of them."
            )
        for one in [component] if dot else components:
            switches[one][switch] = value
    return switches
