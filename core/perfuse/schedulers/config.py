"""The config of a scheduler: read-only, with the keys of other classes kept aside.

Swapping one scheduler for another follows Diffusers: a setting that was left at its default is not
carried over, a setting that the new class does not know is kept for the class after it.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

import numpy as np

from perfuse.errors import CheckpointError, InputError
from perfuse.sources.files import read_json, write_file

__all__ = [
    "CONFIG_NAME",
    "Config",
    "Configured",
    "merge_config",
    "read_config",
    "split_config",
    "to_json",
    "write_config",
]

CONFIG_NAME = "scheduler_config.json"
_DEFAULTED = "_use_default_values"
_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "local_dir")
_UNUSED = ("proxies", "mirror", "user_agent", "local_dir_use_symlinks", "output_loading_info")


class Config(dict[str, Any]):
    """A dictionary whose keys can be read as attributes and that cannot be changed."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"This config has no {key!r}.") from None

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(
            f"A config cannot be changed (asked: {key} = {value!r}). "
            f"Make a scheduler with X.from_config(scheduler.config, {key}=...)."
        )

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "A config cannot be changed. Make a scheduler with "
            "X.from_config(scheduler.config, key=...)."
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type[Config], tuple[dict[str, Any]]]:
        return Config, (dict(self),)

    def __repr__(self) -> str:
        return f"Config({dict(self)!r})"


def split_config(
    config: Mapping[str, Any], known: set[str], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings for a class that knows ``known``, and the rest, to be kept aside."""
    marks = config.get(_DEFAULTED, ())
    if not isinstance(marks, list | tuple | set | frozenset):
        raise InputError(
            f"{_DEFAULTED} of a scheduler's config is {marks!r}; it is a list of names."
        )
    defaulted = {*config.get(_DEFAULTED, ()), _DEFAULTED}
    given = {key: value for key, value in config.items() if key not in defaulted}
    settings = {key: value for key, value in {**given, **overrides}.items() if key in known}
    return settings, {key: value for key, value in given.items() if key not in settings}


def merge_config(
    class_name: str, settings: Mapping[str, Any], given: set[str], aside: Mapping[str, Any]
) -> Config:
    """The config to show: every setting, which of them are defaults, and what is kept aside."""
    defaulted = [key for key in settings if key not in given]
    marks = {_DEFAULTED: defaulted} if defaulted else {}
    return Config({**settings, **marks, **aside, "_class_name": class_name})


def read_config(
    source: str | os.PathLike[str], subfolder: str | None = None, **hub: Any
) -> dict[str, Any]:
    """The parsed ``scheduler_config.json`` of a folder, a file or a Hub repository.

    ``hub`` is what ``huggingface_hub.hf_hub_download`` takes: ``revision``, ``token`` ...

    Raises:
        CheckpointError: there is no such file, or it is not a JSON object.
    """
    path = _config_file(source, subfolder, hub)
    return read_json(
        path,
        remedy=f"Name the folder that holds a whole {CONFIG_NAME}; in a pipeline's folder that is "
        "subfolder='scheduler'.",
    )


def _config_file(
    source: str | os.PathLike[str], subfolder: str | None, hub: Mapping[str, Any]
) -> Path:
    from perfuse.sources.hub import is_hub_id

    base = Path(source)
    if os.path.isfile(base):
        return base
    if not os.path.exists(base) and is_hub_id(str(source)):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(str(source), CONFIG_NAME, subfolder=subfolder, **hub))
        except Exception as exc:  # requests, httpx, the system's own: the library has no one root
            raise CheckpointError(
                f"The scheduler of {source} was asked for; there is no such folder, and the Hub "
                f"gave no {CONFIG_NAME} of it: {type(exc).__name__}. Name a folder, or a "
                "repository that has one."
            ) from exc
    return (base if subfolder is None else base / subfolder) / CONFIG_NAME


def write_config(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> Path:
    """Write ``scheduler_config.json``, whole or not at all."""
    target = Path(folder) / CONFIG_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, to_json(config))
    return target


def to_json(config: Mapping[str, Any]) -> str:
    """The text of the file: every setting, and not which of them are defaults."""
    shown = {key: value for key, value in config.items() if key != _DEFAULTED}
    return json.dumps(shown, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if hasattr(value, "tolist"):  # a torch tensor
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


class Configured:
    """The methods of Diffusers' ``ConfigMixin``: a class that is made from a config and shows it."""

    config_name = CONFIG_NAME
    has_compatibles = True
    ignore_for_config: ClassVar[list[str]] = []
    _deprecated_kwargs: ClassVar[list[str]] = []

    _internal_dict: Config

    @classmethod
    def _known(cls) -> set[str]:
        """The names of this class's settings."""
        raise NotImplementedError

    @property
    def config(self) -> Config:
        """Every setting, with what other classes left there; cannot be changed."""
        return self._internal_dict

    def register_to_config(self, **settings: Any) -> None:
        """Put these into ``config``; the scheduler goes on with what it was made from."""
        shown = self.__dict__.get("_internal_dict", {})
        self.__dict__["_internal_dict"] = Config({**shown, **settings})

    def __getattr__(self, name: str) -> Any:
        shown = self.__dict__.get("_internal_dict", {})
        if name not in shown:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(
            f"Reading {name} from the scheduler itself is deprecated, as it is in Diffusers. Use "
            f"scheduler.config.{name}.",
            FutureWarning,
            stacklevel=2,
        )
        return shown[name]

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The parsed file of a folder or Hub repository, and the arguments that are not for it.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        hub = {key: value for key, value in kwargs.items() if key in _HUB}
        config = read_config(pretrained_model_name_or_path, subfolder, **hub)
        rest = {key: value for key, value in kwargs.items() if key not in (*_HUB, *_UNUSED)}
        more = [rest] * return_unused_kwargs + [None] * return_commit_hash
        return (config, *more) if more else config

    @overload
    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        return_unused_kwargs: Literal[False] = False,
        **overrides: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | os.PathLike[str] | None,
        return_unused_kwargs: Literal[True],
        **overrides: Any,
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        return_unused_kwargs: bool = False,
        **overrides: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """The same settings in this class, from a parsed file or another scheduler's ``config``.

        What it does not know is kept aside in ``config``, what was a default is not carried over.
        With ``return_unused_kwargs`` the second result is all that was given and is no setting. A folder
        or a Hub id is opened by ``from_pretrained``, as Diffusers does.

        Raises:
            InputError: ``config`` is no mapping, or a setting in it cannot be used.
            CheckpointError: there is no such folder.
        """
        if isinstance(config, str | os.PathLike):
            asked = {**overrides, "return_unused_kwargs": return_unused_kwargs}
            opened: Self | tuple[Self, dict[str, Any]] = cls.from_pretrained(config, **asked)
            return opened
        if not isinstance(config, Mapping):
            raise InputError(
                f"from_config takes a config, a mapping of settings; got {config!r}. For a folder "
                f"use {cls.__name__}.from_pretrained(folder)."
            )
        known = {*cls._known(), *cls._deprecated_kwargs}
        unused = {key: value for key, value in overrides.items() if key not in known}
        settings, aside = split_config(config, known, overrides)
        scheduler = cls(**settings)
        scheduler.register_to_config(**{**aside, "_class_name": cls.__name__})
        if return_unused_kwargs:
            return scheduler, {**unused, **aside}
        if unused:
            warnings.warn(
                f"{cls.__name__} has no setting {', '.join(unused)}; nothing was done with it.",
                stacklevel=2,
            )
        return scheduler

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: Literal[False] = False,
        **kwargs: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        *,
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Read ``scheduler_config.json`` from a folder, a file or a Hub repository.

        ``kwargs`` are settings to change, and what the Hub is asked with (``revision``, ``token``,
        ``cache_dir``, ``local_files_only`` ...).

        Raises:
            CheckpointError: it is missing or damaged.
        """
        config, rest = cls.load_config(
            pretrained_model_name_or_path, return_unused_kwargs=True, subfolder=subfolder, **kwargs
        )
        if return_unused_kwargs:
            both: tuple[Self, dict[str, Any]] = cls.from_config(config, True, **rest)
            return both
        made: Self = cls.from_config(config, **rest)
        return made

    def save_config(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write ``scheduler_config.json`` into a folder, which is made if need be.

        Raises:
            InputError: the folder is a file, or ``push_to_hub`` was asked for.
        """
        if push_to_hub:
            raise InputError("push_to_hub is not done here. Upload the folder with `hf upload`.")
        if os.path.isfile(save_directory):
            raise InputError(f"{save_directory} is a file. Name a folder to write into.")
        write_config(save_directory, self.config)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """The same as ``save_config``."""
        self.save_config(save_directory, push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The text that ``save_config`` writes."""
        return to_json(self.config)

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write that text to this file."""
        write_file(json_file_path, self.to_json_string())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"
