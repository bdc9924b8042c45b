"""Chat templates of language models: what stands before and after a prompt.

A template is a program in Jinja's language that a checkpoint brings. It is rendered once, in
Jinja's sandbox and a process of its own, around a mark; what an export records is the text before and
after the mark.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perfuse.errors import CheckpointError
from perfuse.sources.files import read_text
from perfuse.sources.tokenizer_files import CONFIG, TEMPLATE, TokenizerFiles

__all__ = ["chat_template"]

#: Stands for the prompt; with space around it, which a template could take away.
_MARK = " \nprompt-of-perfuse\n "
#: The longest text of a template, and the most that is shown of what Jinja says, in characters.
_LONGEST, _SAID = 100_000, 300
#: Seconds that it may take.
_SECONDS = 20


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
        return read_text(file, remedy="Download it again."), file
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
    if find_spec("jinja2") is None:
        raise CheckpointError(
            f"{where} holds a chat template, which needs Jinja to be read. Install it: pip install "
            "jinja2. An export of the checkpoint needs none."
        )
    named = {role: token["content"] for role, token in files.named.items()}
    told = {**named, "tools": None, "documents": None, "add_generation_prompt": True, **settings}
    request = {"source": source, "prompt": _MARK, "told": told, "longest": _LONGEST}
    found = _render(json.dumps(request))
    if "text" not in found:
        raise CheckpointError(
            f"The chat template in {where} was to be rendered around a prompt; that failed: "
            f"{found['fault'][:_SAID]}. Download it again, or do not use this checkpoint."
        )
    return found["text"]


@cache
def _render(request: str) -> dict[str, str]:
    """What ``perfuse.sources.rendering`` answers, within some seconds and some memory."""
    import subprocess

    command = [sys.executable, "-P", str(Path(__file__).with_name("rendering.py"))]
    try:
        done = subprocess.run(
            command,
            check=False,
            input=request,
            capture_output=True,
            encoding="utf-8",
            timeout=_SECONDS,
        )
        found: dict[str, str] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"fault": f"it takes longer than {_SECONDS} s"}
    except OSError as exc:
        return {"fault": f"no process could be started for it: {exc.strerror or exc}"}
    except ValueError:
        return {"fault": "it takes too much memory"}
    return found
