"""The grammar of compel's prompts (version 2.5), as a parser that looks ahead and goes back.

Rules return what they read and where it ends, or ``None`` where they do not fit, and the next rule
is tried. So a mark that belongs to nothing is text.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from perfuse.errors import InputError

__all__ = ["Blend", "Fragment", "Prompt", "parse"]

_PLUS, _MINUS = 1.1, 0.9
_MARKS = '()",.+-='
_NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)|-?\d+")
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_KEYWORD = re.compile(r"[A-Za-z0-9_-]+")
_UNDONE = re.compile(r"(useLora|withLora)\s*\(|\s*(\.swap)\s*\(")


@dataclass(frozen=True)
class Fragment:
    """Text with a weight."""

    text: str
    weight: float = 1.0


#: The fragments of one prompt, in order.
Prompt: TypeAlias = tuple[Fragment, ...]


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Prompts whose states are added up by their weights."""

    prompts: tuple[Prompt, ...]
    weights: tuple[float, ...]
    normalised: bool


@dataclass(frozen=True, kw_only=True)
class _Weighed:
    """Parts that share a weight; they may hold such parts again."""

    weight: float
    parts: tuple["_Part", ...]


_Part: TypeAlias = Fragment | _Weighed
_Parts: TypeAlias = tuple[_Part, ...]
_Read: TypeAlias = tuple[_Parts, int] | None
_T = TypeVar("_T")


def parse(text: str) -> list[tuple[Prompt | Blend, float]]:
    """The parts of a prompt, whose states follow each other, each with its weight.

    Raises:
        InputError: an operator is incomplete, or is one that perfuse does not run.
    """
    text = re.sub(r",(\S)", r", \1", text)
    if not text.strip():
        return [((Fragment(""),), 1.0)]
    parser = _Parser(text)
    found = parser.operator((".and", ".add"))
    if found is not None:
        prompts, weights, _ = found
        return [(one, weight) for one, weight in zip(prompts, weights, strict=True) if one]
    found = parser.operator((".blend",))
    if found is not None:
        prompts, weights, normalised = found
        return [(Blend(prompts=prompts, weights=weights, normalised=normalised), 1.0)]
    return [(_flat(parser.prompt(0)[0]) or (Fragment(""),), 1.0)]


def _flat(parts: _Parts) -> Prompt:
    """The fragments of parts in order; neighbours of the same weight are one."""
    found: list[Fragment] = []

    def walk(inner: _Parts, scale: float) -> None:
        for part in inner:
            if isinstance(part, _Weighed):
                walk(part.parts, scale * part.weight)
            elif found and found[-1].weight == part.weight * scale:
                found[-1] = Fragment(f"{found[-1].text} {part.text}", found[-1].weight)
            else:
                found.append(Fragment(part.text, part.weight * scale))

    walk(parts, 1.0)
    return tuple(found)


def _text(text: str) -> Fragment:
    for mark in '()"':
        text = text.replace(f"\\{mark}", mark)
    return Fragment(text)


class _Parser:
    """The rules, over one text."""

    def __init__(self, text: str) -> None:
        self.text = text

    # what all rules use

    def skip(self, at: int) -> int:
        while at < len(self.text) and self.text[at] in " \t\r\n":
            at += 1
        return at

    def literal(self, at: int, mark: str) -> int | None:
        """Where a mark ends that comes next, after space or none."""
        at = self.skip(at)
        return at + len(mark) if self.text.startswith(mark, at) else None

    def number(self, at: int) -> tuple[float, int] | None:
        found = _NUMBER.match(self.text, self.skip(at))
        return (float(found[0]), found.end()) if found else None

    # parts of a prompt

    def word(self, at: int) -> _Read:
        """A word without marks; a plus or a minus may stand inside it."""
        text, start = self.text, self.skip(at)
        at = start
        while at < len(text) and text[at] not in string.whitespace:
            after = text[at + 1 : at + 2]
            if text[at] == "\\" and after and after in _MARKS:
                at += 2
            elif text[at] not in _MARKS or (
                text[at] in "+-" and after and after not in string.whitespace + _MARKS
            ):
                at += 1
            else:
                break
        return ((_text(text[start:at]),), at) if at > start else None

    def parenthesised(self, at: int) -> _Read:
        opened = self.literal(at, "(")
        if opened is None:
            return None
        parts, end = self.parts(opened)
        closed = self.literal(end, ")")
        return (parts, closed) if closed is not None else None

    def quoted(self, at: int, rule: str = "parts") -> _Read:
        """Text in quotation marks, which a rule must fit as a whole."""
        found = _QUOTED.match(self.text, self.skip(at))
        if found is None:
            return None
        inner = found[1].replace('\\"', '"')
        if not inner.strip():
            return (Fragment(""),), found.end()
        within = _Parser(inner.replace('"', '\\"'))
        parts, end = getattr(within, rule)(0)
        return (parts, found.end()) if within.skip(end) == len(within.text) else None

    def target(self, at: int) -> _Read:
        """What an operator may follow."""
        return _first((self.quoted, self.parenthesised, self.word), at)

    def attention(self, at: int) -> _Read:
        """``(…)1.3``, ``"…"++``, ``word-`` or ``(…).attend(1.3)``."""
        explicit = self.target(at)
        called = self.literal(explicit[1], ".attend") if explicit is not None else None
        opened = self.literal(called, "(") if called is not None else None
        weight = self.weight(opened) if opened is not None else None
        closed = self.literal(weight[1], ")") if weight is not None else None
        if explicit is not None and weight is not None and closed is not None:
            return (_Weighed(weight=weight[0], parts=explicit[0]),), closed
        several = _first((self.quoted, self.parenthesised), at)
        found = several if several is not None else self.word(at)
        if found is None or self.text[found[1] : found[1] + 1] in (*string.whitespace, ""):
            return None
        weight = self.weight(found[1], numbers=several is not None)
        return ((_Weighed(weight=weight[0], parts=found[0]),), weight[1]) if weight else None

    def weight(self, at: int, *, numbers: bool = True) -> tuple[float, int] | None:
        at = self.skip(at)
        for mark, base in (("+", _PLUS), ("-", _MINUS)):
            count = len(self.text[at:]) - len(self.text[at:].lstrip(mark))
            if count:
                return pow(base, count), at + count
        return self.number(at) if numbers else None

    def undone(self, at: int) -> None:
        """Refuse compel's operators that are not about a prompt's states."""
        target = self.target(at)
        for place in (self.skip(at), *([target[1]] if target is not None else [])):
            if found := _UNDONE.match(self.text, place):
                raise InputError(
                    f"{found[1] or found[2]}() was given in the prompt {self.text!r}; perfuse reads "
                    "+, -, numbers, .blend() and .and() of compel's syntax. Leave it out."
                )

    def parts(self, at: int) -> tuple[_Parts, int]:
        """What may stand in brackets or quotation marks."""
        rules = (self.attention, self.parenthesised, self.quoted, self.word, self.stop)
        return self.many(rules, at)

    def stop(self, at: int) -> _Read:
        """A comma or a full stop."""
        at = self.skip(at)
        return (
            ((Fragment(self.text[at]),), at + 1) if self.text[at : at + 1] in (",", ".") else None
        )

    def prompt(self, at: int) -> tuple[_Parts, int]:
        """A whole prompt: every text is one."""
        return self.many(
            (self.attention, self.quoted, self.parenthesised, self.free, self.space), at
        )

    def free(self, at: int) -> _Read:
        """Anything up to the next space."""
        end = at
        while end < len(self.text) and self.text[end] not in string.whitespace:
            end += 1
        return ((_text(self.text[at:end]),), end) if end > at else None

    def space(self, at: int) -> _Read:
        end = self.skip(at)
        return ((), end) if end > at else None

    def many(self, rules: Sequence[Callable[[int], _Read]], at: int) -> tuple[_Parts, int]:
        parts: list[_Part] = []
        while True:
            self.undone(at)
            found = _first(rules, at)
            if found is None:
                return tuple(parts), at
            parts.extend(found[0])
            at = found[1]

    # several prompts

    def operator(
        self, names: Sequence[str]
    ) -> tuple[tuple[Prompt, ...], tuple[float, ...], bool] | None:
        """``("…", "…").blend(1, 0.5)``: the prompts, their weights, and whether to normalise these.

        Raises:
            InputError: the weights are not as many as the prompts, or text follows.
        """
        opened = self.literal(0, "(")
        listed = self.listed(self.entry, opened) if opened is not None else None
        closed = self.literal(listed[1], ")") if listed is not None else None
        if listed is None or closed is None:
            return None
        called = next((end for name in names if (end := self.literal(closed, name))), None)
        begun = self.literal(called, "(") if called is not None else None
        if begun is None:
            return None
        options = self.listed(self.option, begun)
        end = self.literal(options[1] if options is not None else begun, ")")
        if end is None:
            return None
        if self.skip(end) != len(self.text):
            raise InputError(
                f"{self.text[self.skip(end) :]!r} follows {names[0]}() in the prompt; nothing may. "
                "Put it into the quotation marks."
            )
        weights = [one for one in (options[0] if options is not None else ())]
        normalised = not (weights and weights[-1] == "no_normalize")
        return self._weighed(listed[0], weights if normalised else weights[:-1], normalised)

    def _weighed(
        self, prompts: Sequence[_Parts], given: Sequence[str], normalised: bool
    ) -> tuple[tuple[Prompt, ...], tuple[float, ...], bool]:
        try:
            weights = tuple(map(float, given)) or (1.0,) * len(prompts)
        except ValueError:
            weights = ()
        if len(weights) != len(prompts):
            raise InputError(
                f"{len(prompts)} prompts and the weights {', '.join(given)} were given in "
                f"{self.text!r}. Give one number for each prompt."
            )
        return tuple(_flat(parts) for parts in prompts), weights, normalised

    def entry(self, at: int) -> _Read:
        found = self.target(at)
        return found if found is not None else self.quoted(at, "prompt")

    def option(self, at: int) -> tuple[str, int] | None:
        number = _NUMBER.match(self.text, self.skip(at))
        found = number or _KEYWORD.match(self.text, self.skip(at))
        return (found[0], found.end()) if found else None

    def listed(
        self, rule: Callable[[int], tuple[_T, int] | None], at: int
    ) -> tuple[list[_T], int] | None:
        """One or more of what a rule reads, with commas between them."""
        found = rule(at)
        if found is None:
            return None
        items, at = [found[0]], found[1]
        while (comma := self.literal(at, ",")) is not None and (more := rule(comma)) is not None:
            items.append(more[0])
            at = more[1]
        return items, at


def _first(rules: Sequence[Callable[[int], _Read]], at: int) -> _Read:
    for rule in rules:
        found = rule(at)
        if found is not None:
            return found
    return None
