"""Prompts put as the captions of a training were: without addresses, markup, numbers of articles.

PixArt and Sana were trained with captions from web pages that went through the rules of DeepFloyd
IF. The rules apply in this order, and all of them twice; `Diffusers' pipelines
<https://huggingface.co/docs/diffusers/api/pipelines/pixart>`_ do it where ``clean_caption`` is set.
"""

import html
import re
import warnings
from importlib.util import find_spec
from urllib.parse import unquote_plus

__all__ = ["clean", "without_cleaners"]

#: What is replaced by what, one after the other.
_Rules = tuple[tuple[re.Pattern[str], str], ...]

#: What removes markup, what repairs characters that were decoded wrongly; module to package.
_LIBRARIES = {"bs4": "beautifulsoup4", "ftfy": "ftfy"}

_SITES = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    r"\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    r"\ufe31\ufe32\ufe58\ufe63\uff0d"
)


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), instead) for pattern, instead in pairs)


_ADDRESSES = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_SITES})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_SITES})", ""),
)
_SIGNS = _rules(
    (r"@\w+", ""),  # names of users
    (r"[\u31c0-\u9fff]+", ""),  # strokes, Katakana's extensions, enclosed letters, ideographs
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # addresses of computers
    (r"\d:\d\d\s+$", ""),  # the end of a time
    (r"\\n", " "),  # a line's end, written out
    (r"#(?:\d{1,3}|\d{5,})\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILES})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
#: Between the words of a name such as this-is-my-cute-cat, if there are more than three.
_JOINTS = re.compile("[-_]")
_MOST_JOINTS = 3
_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second x is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    ("^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def without_cleaners() -> str:
    """What has to be installed for ``clean``, with spaces between; empty where all is there."""
    return " ".join(name for module, name in _LIBRARIES.items() if find_spec(module) is None)


def clean(caption: str) -> str:
    """The caption as a training would have had it, in lower case; needs both libraries."""
    return _cleaned(_cleaned(caption))


def _cleaned(caption: str) -> str:
    import bs4
    import ftfy

    caption = _replaced(unquote_plus(caption).strip().lower(), _ADDRESSES)
    with warnings.catch_warnings():
        # That a caption looks like the name of a file is nothing to tell of.
        warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
        caption = bs4.BeautifulSoup(caption, features="html.parser").text
    caption = _replaced(caption, _SIGNS)
    if len(_JOINTS.findall(caption)) > _MOST_JOINTS:
        caption = _JOINTS.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return _replaced(caption, _WORDS).strip()


def _replaced(text: str, rules: _Rules) -> str:
    for pattern, instead in rules:
        text = pattern.sub(instead, text)
    return text
