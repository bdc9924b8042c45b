"""What opening a pipeline does about its safety checker."""

import warnings
from collections.abc import Mapping
from typing import Any

from perfuse.contract.spec import PipelineSpec, Role
from perfuse.errors import InputError
from perfuse.sources.model_index import kind_of

__all__ = ["FEATURE_EXTRACTOR", "check_parts", "is_processor", "processor_config"]

FEATURE_EXTRACTOR = "feature_extractor"
#: The setting of ``model_index.json`` that says whether to warn where there is no checker.
REQUIRES = "requires_safety_checker"


def is_processor(value: Any) -> bool:
    """Whether it is an image processor: perfuse's, or one of Transformers'."""
    return hasattr(value, "to_dict") and kind_of("", type(value).__name__) == "processor"


def check_parts(before: PipelineSpec, spec: PipelineSpec) -> None:
    """Check that a safety checker can run, and warn if the caller switched it off.

    Args:
        before: The source's spec.
        spec: The spec with the components that the caller replaced or took out.

    Raises:
        InputError: there is a checker without the image processor that it needs.
    """
    if spec.having(Role.SAFETY_CHECKER):
        if FEATURE_EXTRACTOR not in spec.processors:
            raise InputError(
                f"{spec.class_name} has a safety checker and no {FEATURE_EXTRACTOR} to prepare "
                "pictures for it. Open a model that has both, or pass safety_checker=None."
            )
    elif before.having(Role.SAFETY_CHECKER) and spec.options.get(REQUIRES, True):
        warnings.warn(
            "The model's safety checker is switched off: pictures that it would blacken come out. "
            "Keep it on where strangers see the pictures; requires_safety_checker=False switches "
            "off this warning.",
            stacklevel=3,
        )


def processor_config(value: Any) -> Mapping[str, Any]:
    """The settings of an image processor that a caller set: of Transformers, or its config.

    Raises:
        InputError: it is neither.
    """
    config = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(config, Mapping):
        raise InputError(
            f"An image processor was set to {value!r}; give Transformers' CLIPImageProcessor, or the "
            "content of a preprocessor_config.json."
        )
    return {name: _plain(one) for name, one in config.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
