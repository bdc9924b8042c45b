"""Chat templates of language models: what stands before and after a prompt.

A template is a program in Jinja's language that a checkpoint brings. It is rendered once, in
Jinja's sandbox, around a mark; what an export records is the text before and after the mark.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfuse.errors import CheckpointError
from perfuse.sources.tokenizer_files import CONFIG, TEMPLATE, TokenizerFiles

__all__ = ["chat_template"]

#: Stands for the prompt; with space around it, which a template could take away.
_MARK = " \nprompt-of-perfuse\n "
_LONGEST = 100_000


def chat_template(folder: Path, settings: Mapping[str, Any]) -> tuple[str, str]:
    """The text before and after a user's prompt, up to where the model's answer would begin.

    Args:
        folder: The tokenizer's.
        settings: What the template is told besides: ``{"enable_thinking": False}``.

    Raises:
        CheckpointError: there is no template, it cannot be rendered, or it changes the prompt.
    """
    source, where = _source(folder)
    rendered = _rendered(source, where, TokenizerFiles.read(folder, None), settings)
    parts = rendered.split(_MARK)
    if len(parts) != 2:
        raise CheckpointError(
            f"The chat template in {where} was rendered with a prompt; its result does not hold "
            "that prompt once, as it is. Use a checkpoint whose template repeats the user's words."
        )
    return parts[0], parts[1]


def _source(folder: Path) -> tuple[str, Path]:
    """The template, and the file that holds it."""
    file = folder / TEMPLATE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8"), file
        except (OSError, ValueError) as exc:
            raise CheckpointError(f"{file} cannot be read: {exc}. Download it again.") from exc
    found = TokenizerFiles.read(folder, None).config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise CheckpointError(
            f"The tokenizer in {folder} has no chat template, which this pipeline wraps prompts "
            f"in: neither {TEMPLATE} nor chat_template in {CONFIG}. Download the checkpoint again."
        )
    return found, folder / CONFIG


def _rendered(source: str, where: Path, files: TokenizerFiles, settings: Mapping[str, Any]) -> str:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as exc:
        raise CheckpointError(
            f"{where} holds a chat template, which needs Jinja to be read. Install it: pip install "
            "jinja2. An export of the checkpoint needs none."
        ) from exc

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    sandbox.globals["raise_exception"] = raise_exception
    named = {role: token["content"] for role, token in files.named.items()}
    told = {**named, "tools": None, "documents": None, "add_generation_prompt": True, **settings}
    try:
        template = sandbox.from_string(source)
        text = template.render(messages=[{"role": "user", "content": _MARK}], **told)
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as e:
        raise CheckpointError(
            f"The chat template in {where} was to be rendered; Jinja said: {e}. Download it again."
        ) from e
    if len(text) > _LONGEST:
        raise CheckpointError(
            f"The chat template in {where} makes {len(text)} characters of a prompt; at most "
            f"{_LONGEST} are taken. Do not use this checkpoint."
        )
    return text
