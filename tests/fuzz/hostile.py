"""Strategies: what a file or a command line may hold that nobody meant."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

__all__ = ["altered", "command_lines", "damaged", "templates", "toml_settings"]

_NUMBERS = [0, 1, -1, 3, 2**31, 10**9, 10**24, -(10**24), 0.5, -0.0, 1e-320, 1e300, float("inf")]
_NUMBERS += [float("-inf"), float("nan")]
_TEXTS = [
    "",
    "x",
    "../x",
    "/nowhere/passwd",
    "a/b",
    "[/red]",
    "\x1b[31m",
    "\x1b]0;t\x07",
    "\u202e",
    "\0",
]
_TEXTS += ["\ud800", "1e309", "nan", "-1", "a" * 300, "b" * 100_000, "CLIPTokenizer", "{{x}}"]

#: Any value of JSON, and what json.loads makes of no JSON.
values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, False, *_NUMBERS, *_TEXTS]) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(item, (*path, key))


@st.composite
def altered(draw: Any, original: Any) -> Any:
    """A parsed JSON file with one to three values replaced, removed or added."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        paths = list(_paths(value))
        path = draw(st.sampled_from(paths))
        if not path:
            value = draw(values) if draw(st.integers(0, 9)) == 0 else value
            continue
        at = value
        for key in path[:-1]:
            at = at[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "copy"]))
        if how == "remove":
            del at[path[-1]]
        elif how == "add" and isinstance(at, dict):
            at[draw(st.sampled_from(_TEXTS))] = draw(values)
        elif how == "copy":
            at[path[-1]] = copy.deepcopy(draw(st.sampled_from([at, value])))
        else:
            at[path[-1]] = draw(values)
    return value


@st.composite
def damaged(draw: Any, content: bytes, *, upto: int | None = None) -> bytes:
    """A file cut, lengthened, or with some bytes changed, most of them near its beginning."""
    data = bytearray(content)
    end = min(len(data), upto) if upto is not None else len(data)
    for _ in range(draw(st.integers(1, 4))):
        how = draw(st.sampled_from(["flip", "set", "cut", "insert"]))
        at = draw(st.integers(0, max(min(end, len(data)) - 1, 0)))
        if how == "cut" or not data:
            del data[at:]
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif how == "flip":
            data[at] ^= 1 << draw(st.integers(0, 7))
        else:
            data[at] = draw(st.sampled_from([0, 0xFF, 0x7F, ord('"'), ord("{")]))
    return bytes(data)


@st.composite
def toml_settings(draw: Any) -> str:
    """A perfuse.toml: mostly a table of settings, some of them known."""
    names = ["model", "backend", "steps", "seed", "height", "guidance", "offline", "image", "x"]
    names += ["precision", "memory", "scheduler", "max_sequence_length", "negative_prompt"]
    lines = [
        draw(st.sampled_from(["[pipeline]", "[pipeline]", "[other]", "[[pipeline]]", "pipeline=1"]))
    ]
    for _ in range(draw(st.integers(0, 3))):
        value = json.dumps(draw(values)).replace("NaN", "nan").replace("Infinity", "inf")
        lines.append(f"{draw(st.sampled_from(names))} = {value}")
    return "\n".join(lines)


_FLAGS = ["--steps", "--seed", "--height", "--width", "--num-images", "--backend", "--precision"]
_FLAGS += ["--scheduler", "--option", "--transform", "--lora", "--embedding", "--from", "--output"]
_FLAGS += ["--preview", "--image", "--revision", "--variant", "--scheduler-from", "--controlnet"]
_FLAGS += [
    "--ip-adapter",
    "--lora-folder",
    "--guidance",
    "--nothing",
    "--memory",
    "--mask",
    "--guider",
]
_FLAGS += ["--strength", "--arg", "--config", "--tokenizer-from", "--adapter", "--preview-vae"]
_FLAGS += ["--max-sequence-length", "--clip-skip", "--negative-prompt", "--fps", "--preview-every"]
#: Flags of other commands.
_OTHERS = {
    "export": ["--to", "--output", "--size", "--batch", "--height", "--dialect", "--option"],
    "inspect": ["--for", "--memory", "--batch", "--height", "--precision", "--adapter", "--config"],
    "bench": [
        "--steps",
        "--transform",
        "--pictures",
        "--captions",
        "--plot",
        "--prompt",
        "--option",
    ],
    "merge": ["--lora", "--output", "--precision", "--revision"],
    "graphs": ["--to", "--precision", "--variant", "--config"],
    "tune": ["--time", "--steps", "--prompt", "--quality", "--output", "--plot"],
    "calibrate": ["--precision", "--output", "--prompt", "--steps", "--guidance", "--limit"],
    "conformance": [
        "--level",
        "--seed",
        "--case",
        "--precision",
        "--timeout",
        "--expect",
        "--golden",
    ],
}
_SWITCHES = ["--fast", "--faster", "--fastest", "--vae-tiling", "--bridged", "--offline", "--json"]
#: No number above 9 that is a number of pictures, or of pixels, that fits into memory.
_WORDS = [text for text in _TEXTS if "\0" not in text and text not in ("\ud800", "CLIPTokenizer")]
_WORDS += [
    "0",
    "1",
    "2",
    "8",
    "9",
    str(10**12),
    str(-(10**30)),
    "1e400",
    "torch",
    "torch:",
    ":",
    "=",
    ",",
]
_WORDS += ["unet=torch", "torch:cpu", "--", "-", "/dev/zero", "/dev/null", ".", "..", "~", "~x/y"]


@st.composite
def command_lines(draw: Any, command: str = "generate") -> list[str]:
    """Options with values, some of them twice, and sometimes words."""
    line, flags = [], _OTHERS.get(command, _FLAGS)
    for _ in range(draw(st.integers(1, 3))):
        flag, word = draw(st.sampled_from(flags)), draw(st.sampled_from(_WORDS))
        line += [f"{flag}={word}"] if draw(st.booleans()) else [flag, word]
    if command == "generate":
        line += draw(st.lists(st.sampled_from(_SWITCHES), max_size=1))
    return line + draw(st.lists(st.sampled_from(_WORDS), max_size=1))


_LOOPS = ["range(10**9)", "range(99999)", "messages", "'x' * 10**10", "config", "(1,) * 10**10"]
_PIECES = ["'a' * 10**11", "10**10**9", "'%99999999999d' % 1", "'{:>99999999999}'.format(1)"]
_PIECES += ["lipsum(n=10**7)", "'a'|center(10**11)", "messages[0]['content']", "x.y.z", "1 // 0"]
_PIECES += ["''.__class__.__mro__", "raise_exception('no')", "self", "cycler", "namespace(a=1).a"]
_PIECES += [
    "messages|tojson",
    "'\\x1b[31m\\u202e'",
    "messages|map('upper')|list",
    "('a' * 9999)|indent",
]


@st.composite
def templates(draw: Any) -> str:
    """A chat template: a program that a checkpoint brings."""
    text = draw(st.sampled_from(["", "{{ messages[0].content }}", "{% for x in messages %}"]))
    for _ in range(draw(st.integers(1, 3))):
        piece = draw(st.sampled_from(_PIECES))
        for _ in range(draw(st.integers(0, 2))):
            text += "{% for i in " + draw(st.sampled_from(_LOOPS)) + " %}"
        text += draw(st.sampled_from(["{{ " + piece + " }}", "{% set x = " + piece + " %}", piece]))
        text += "{% endfor %}" * text.count("{% for") if draw(st.integers(0, 9)) else ""
    return text
