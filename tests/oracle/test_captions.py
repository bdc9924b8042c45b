"""Cleaned captions beside Diffusers': the same text, the same pictures, the same without libraries."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from tests.oracle.pairs import Pair, make_gentle

from perfuse.tasks.prompts import cleaning
from perfuse.tasks.prompts.cleaning import clean, without_cleaners

needs_libraries = pytest.mark.skipif(
    without_cleaners() != "", reason=f"missing: {without_cleaners()}"
)

CAPTIONS = (
    "A red circle on the white background",
    "  Two spaces   and\ta tab\nand a line  ",
    "",
    "a dog https://example.com/dog.html on grass",
    "a dog http://a%20b and www:/here",
    "see www.shop.co/a_b-c/ and my-site.org!",
    "write to me@home.net or to @bob and @Éva_9",
    "A <person> with an umbrella",
    "<p class='x'>A <b>bold</b> cat<br/>on <i>a mat</i></p>",
    "<script>alert(1)</script>a cat < a dog > a mouse",
    "black &amp; white &quot;photo&quot; &lt;b&gt; &#65;&#x42; &copy;",
    "black &amp white &quot photo &amp;amp; more",
    "caf%C3%A9+on+a+street%2C+100%25",
    "100% cotton + 5",
    "一只猫 a cat 猫 on ㈱ a ㍿ mat ䷀ ㇰ",
    "カタカナ and ひらがな and 한국어 stay",
    "em—dash en–dash minus−and〜wave ‑ ー",
    "`quoted` «so» “and” ´so´ ‘too’ it’s ¨",
    "at 192.168.0.1 and 10.0.0.255:8080",
    "published at 9:59   ",
    r"first line\nsecond line",
    "picture #1 of #123, #1234 and #12345 #hashtag",
    "article 123456 and 12345 and 1234567a",
    "holiday.jpg of /home/me/photo.PNG and a.b.webp in a.mp4x",
    'he said ""hello"" \'\'there\'\' """AUSVERKAUFT"""',
    "and so on... or.. or . or",
    "***SALE*** [new] {now} (50% off) ~cheap~ | ©2020 ® ™ • · ½",
    r"back\slash and for/ward",
    "this-is-my-cute-cat-picture",
    "this_is my-cat_only",
    "the â€œtreeâ€\x9d in a schÃ¶n cafÃ©",
    "an ﬁne ﬂower, ﬀ, ＦＵＬＬ width ５",
    "jc6640 JC6640VC 6640vc231 j2d1a2a ab12 abcd1234 a1b",
    "worldwide free shipping, free shipping and shipping",
    "free download free of a download",
    "click for more or click on this; clicking on",
    "png images and jpg image or a webp, eps pdf",
    "page 3 of the book, homepage 3",
    "1920x1080 or 3.5×4 or 5х6 and 10X12 wallpaper",
    "title : subtitle ; more :more",
    "no space,after.commas/or dots 1,000.5",
    "'quoted whole'",
    '"a cat"',
    "-: a dash before and after -",
    "_under_",
    ".hidden",
    "a smile 😀 a family 👨‍👩‍👧 a flag 🇩🇪 ❤️",
    "zero\u200bwidth no\xa0break ideographic\u3000space",
    "İstanbul ſtraße K ß ٣٤٥٦٧٨ ０１２３４５",
    "&lt;a href=&quot;http://x.com/y.png&quot;&gt;link&lt;/a&gt;",
    "%3Cb%3Ebold%3C%2Fb%3E+and+%26amp%3B",
    "www.a.com",
    "a" * 300 + " 1" * 100,
)


@needs_libraries
@pytest.mark.parametrize("caption", CAPTIONS, ids=range(len(CAPTIONS)))
def test_the_text_is_that_of_diffusers(caption: str) -> None:
    pipe = object.__new__(diffusers.PixArtAlphaPipeline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bs4, that a caption looks like a file's name
        theirs = pipe._text_preprocessing(caption, clean_caption=True)
    assert [clean(caption)] == theirs


@needs_libraries
def test_most_captions_are_changed() -> None:
    assert sum(clean(caption) != caption.lower().strip() for caption in CAPTIONS) >= 40


@needs_libraries
@pytest.mark.parametrize(
    ("kind", "name", "given"),
    [
        ("pixart", "PixArtAlphaPipeline", {}),
        ("pixart-sigma", "PixArtSigmaPipeline", {}),
        (
            "sana",
            "SanaPipeline",
            {"clean_caption": True, "complex_human_instruction": ["Say more of it: "]},
        ),
    ],
)
def test_pictures_of_cleaned_captions(
    kind: str,
    name: str,
    given: dict[str, object],
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(checkpoint(kind), tmp_path / kind))
    pair = Pair.open(make_gentle(folder, part="transformer", layer="proj_out", factor=0.3), name)
    call = {
        "prompt": "A <b>red</b> circle, 1920x1080, from www.example.com @bob",
        "negative_prompt": "a_blue_square_on_the_mat.png (green)",
        "height": 32,
        "width": 32,
        "max_sequence_length": 24,
        "use_resolution_binning": False,
        "num_inference_steps": 2,
        **given,
    }
    cleaned = pair.check(**call)
    as_written = pair.check(**{**call, "clean_caption": False})
    assert np.abs(cleaned - as_written).max() > 1e-3


def test_without_the_libraries_prompts_are_in_lower_case(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfuse import DiffusionPipeline

    monkeypatch.setattr(cleaning, "find_spec", lambda name: None)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("pixart"))
    stream = pipe.stream("A <b>red</b> Circle", max_sequence_length=24, height=32, width=32)
    with pytest.warns(UserWarning, match="Run: pip install beautifulsoup4 ftfy, or give clean_cap"):
        read = next(event.state for event in stream if event.step == "read_prompts")
    assert read["prompts"] == ["a <b>red</b> circle"]
