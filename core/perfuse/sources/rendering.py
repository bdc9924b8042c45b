"""Renders a chat template in Jinja's sandbox: run as a program of its own, which may be ended.

A template can loop without end or fill all memory, which no sandbox inside a process prevents. On
standard input is JSON, the arguments of ``render``; on standard output
``text`` or ``fault``. It imports nothing of perfuse, so that it starts at once.
"""

import json
import sys
from typing import Any

__all__ = ["render"]

#: Bytes of memory that it may take.
_MEMORY = 2**30


def render(source: str, prompt: str, told: dict[str, Any], longest: int) -> dict[str, str]:
    """A template's text around a prompt, of at most ``longest`` characters, or what is wrong with it."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)
    sandbox.globals["raise_exception"] = raise_exception
    try:
        template = sandbox.from_string(source)
        text = template.render(messages=[{"role": "user", "content": prompt}], **told)
    except Exception as exc:  # noqa: BLE001 - a template is a program, and may raise anything
        return {"fault": str(exc) or type(exc).__name__}
    if len(text) > longest:
        return {"fault": f"it makes {len(text)} characters of it, and {longest} are the most"}
    return {"text": text}


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    _limit_memory()
    json.dump(render(**json.load(sys.stdin)), sys.stdout)
