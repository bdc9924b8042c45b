"""CLIP tokenizers against transformers', over thousands of generated strings and a list of odd ones."""

import io
import itertools
import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from perfuse.errors import CheckpointError, InputError
from perfuse.sources.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CORPUS = """
a small red circle at the top left on a white background, a large blue square in the middle,
a photograph of an astronaut riding a horse on mars, highly detailed, 8k, trending on artstation,
it's the painter's café: they're we've I'm she'll he'd don't; déjà vu, naïve façade, über straße
портрет девушки, картина маслом 水彩画 富士山 صورة قطة γάτα в саду 2024 1234567890 ... !!! ??? -- ---
"""

ODD = [
    "",
    " ",
    "\n\t  \r\n",
    "a",
    "A PHOTO of A Red CIRCLE",
    "  leading and   inner    and trailing  ",
    "tabs\tand\nnew\r\nlines\x0b\x0c",
    "no\u00a0break\u2003em\u3000ideographic\u2028line\u2029paragraph\u1680ogham\u205fmath",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffbom\u2060word",
    "it's they're we've I'm she'll he'd don't 'tis 'S 'RE O'Neill's '' ''' 's's",
    "it’s they’re ‘quoted’ “double”",
    "1234567890 1,234.56 3.14e-10 0x1F ½ ² ٣ ७ Ⅷ ①",
    "!!! ??? ... ---- ((nested [brackets]{})) #hash @at $5 50% a&b c*d e_f g~h",
    "<b>html</b> &amp; &lt;tag&gt; &#39;quoted&#39; <br/>",
    "http://example.com/a?b=c&d=e#f user@example.org",
    "emoji 😀😃 👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇫🇷 ❤️ ☺",
    "水彩画の富士山、夕暮れ。高品质 照片，一只猫 한국어 그림",
    "صورة قطة حمراء مَدْرَسَة \u200frtl\u200f עברית",
    "e\u0301 vs é, n\u0303 vs ñ, a\u030a\u0323, \u0301alone, q\u0307\u0323",
    "İstanbul ıI ſ ß ẞ ŉ ǰ ΐ ΣΑΣ Σ ﬁ ﬀ Å Å ㎏ ①",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝒮𝒸𝓇𝒾𝓅𝓉 𠮷 𐍈",
    "control \x00\x01\x02\x07\x08\x1b[0m\x7f\x80\x85\x9f end",
    "<|startoftext|>",
    "<|endoftext|>",
    "a <|endoftext|> b",
    "a<|endoftext|>b<|startoftext|>c",
    "<|STARTOFTEXT|> <|EndOfText|>",
    "<|startoftext|><|startoftext|><|endoftext|><|endoftext|>",
    "<|start oftext|> <|endoftext| > <|endoftext",
    "typed</w>mark </w> </w>",
    "!",
    "a! b !c !!",
    "(red:1.5) [blue] ((green)) a AND b BREAK c",
    "<cat-toy> a <cat-toy>s <CAT-TOY> x<cat-toy>y",
    "<special-one>  <special-one>a",
    "sks dog, v1-5",
    "ｆｕｌｌ　ｗｉｄｔｈ １２３",
    "\ufffd replacement \ufffe \uffff noncharacters",
    "Zalgo: Z̸̢̛͓̲a̷̡͔l̵̨̛g̴̙͝o",
    "word" * 50,
    "a" * 600,
    "circle " * 200,
    "é" * 300,
    "😀" * 120,
    "." * 500,
    "a, " * 80 + "the end",
    "x " * 75,
    "x " * 74,
    "x " * 76,
]


def generated(count, seed=20240):
    """Make strings of every kind of character, with words of the corpus in between."""
    rng = random.Random(seed)
    ranges = [
        (0x20, 0x7E), (0x00, 0x20), (0x7F, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x52F),
        (0x590, 0x6FF), (0x900, 0x97F), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x2BFF),
        (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xAD00), (0xFB00, 0xFFEF), (0x1D400, 0x1D7FF),
        (0x1F300, 0x1FAFF), (0xE0000, 0xE01EF), (0, 0x10FFFF),
    ]  # fmt: skip
    words = CORPUS.split() + ["'s", "<|endoftext|>", "<cat-toy>", "</w>", "!", " ", "  "]

    def character():
        while True:
            point = rng.randint(*rng.choice(ranges))
            if not 0xD800 <= point <= 0xDFFF:  # surrogates are tested on their own
                return chr(point)

    def piece():
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(words)
        if kind < 0.5:
            return rng.choice(words).upper()
        return "".join(character() for _ in range(rng.randint(1, 6)))

    for _ in range(count):
        yield rng.choice(["", " "]).join(piece() for _ in range(rng.randint(1, 40)))


def byte_characters():
    """The printable stand-ins of the 256 bytes, from the tokenizers library itself."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_clip(folder, *, alphabet=None, config=None, special=None, added=None):
    """Train a small CLIP vocabulary and write it as a checkpoint keeps it."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    trained = Library(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=1400, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator([CORPUS] * 3, trainer)
    learned = json.loads(trained.to_str())["model"]["merges"]
    alphabet = byte_characters() if alphabet is None else alphabet
    tokens = [*alphabet, *(c + "</w>" for c in alphabet)]
    merges = []
    for left, right in learned:
        if left in tokens and right in tokens:
            merges.append((left, right))
            tokens.append(left + right)
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    assert len(merges) > 100
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in {
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
        "added_tokens.json": added,
    }.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def flagged(content, *, normalized=True, **more):
    """Write a special token as tokenizer_config.json and special_tokens_map.json do."""
    token = {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False}
    return {**token, "single_word": False, **more}


START, END = "<|startoftext|>", "<|endoftext|>"

# As the checkpoints that people use have them.
SD1 = {
    "config": {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **flagged(START)},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **flagged(END)},
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **flagged(END)},
    },
    "special": {
        "bos_token": flagged(START),
        "eos_token": flagged(END),
        "pad_token": END,
        "unk_token": flagged(END),
    },
}
SD2 = {
    "config": {**SD1["config"], "pad_token": END},
    "special": {**SD1["special"], "pad_token": "!"},
}
XL2 = {  # SDXL's second tokenizer, saved by a later transformers
    "config": {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            "0": flagged("!", normalized=False, special=True),
            "NEXT": flagged(START, special=True),
            "LAST": flagged(END, special=True),
        },
        "bos_token": START,
        "clean_up_tokenization_spaces": True,
        "eos_token": END,
        "model_max_length": 77,
        "pad_token": "!",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": END,
    },
    "special": {"bos_token": flagged(START), "eos_token": flagged(END), "pad_token": "!"},
}
TEXTUAL_INVERSION = {
    "config": {**SD1["config"], "additional_special_tokens": ["<special-one>"]},
    "special": SD1["special"],
    "added": {"<cat-toy>": 9001, "Mixed-Case": 9000},
}
STRIPPING = {
    "config": {
        **XL2["config"],
        "added_tokens_decoder": {
            "9000": flagged("<cat-toy>", lstrip=True, rstrip=True, special=False),
            "9001": flagged("cat", normalized=True, single_word=True, special=False),
        },
    },
}
SENTINEL = {"config": {"model_max_length": int(1e30), "tokenizer_class": "CLIPTokenizer"}}
CUSTOM = {"config": {"tokenizer_class": "CLIPTokenizer", "image_token": "<special-one>"}}
UNKNOWN_BYTES = {"alphabet": [chr(c) for c in range(0x21, 0x7F)], **SD1}
NOTHING = {}

FOLDERS = {
    "sd1": SD1,
    "sd2": SD2,
    "xl2": XL2,
    "textual-inversion": TEXTUAL_INVERSION,
    "stripping": STRIPPING,
    "sentinel": SENTINEL,
    "custom": CUSTOM,
    "unknown-bytes": UNKNOWN_BYTES,
    "vocab-and-merges-only": NOTHING,
}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory):
    path = write_clip(tmp_path_factory.mktemp(request.param), **FOLDERS[request.param])
    config = path / "tokenizer_config.json"
    if config.exists():  # ids that depend on the size of the vocabulary
        size = len(json.loads((path / "vocab.json").read_text()))
        text = config.read_text().replace("NEXT", str(size - 2)).replace("LAST", str(size - 1))
        config.write_text(text)
    return path


@pytest.fixture(scope="module", params=["vocab+merges", "tokenizer.json", "both, older config"])
def pair(request, folder, tmp_path_factory):
    """Ours and transformers', read from the same folder."""
    if request.param != "vocab+merges":
        saved = tmp_path_factory.mktemp("saved")
        transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(saved)
        assert (saved / "tokenizer.json").exists()
        if request.param == "both, older config":
            for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
                if (folder / name).exists():
                    (saved / name).write_bytes((folder / name).read_bytes())
        folder = saved
    return Tokenizer.from_folder(folder), transformers.CLIPTokenizer.from_pretrained(folder)


def compare(ours, theirs, texts, length, padding):
    got = ours(texts, max_length=length, padding=padding)
    want = theirs(
        texts,
        padding="max_length" if padding else "longest",
        max_length=length,
        truncation=True,
        return_tensors="np",
    )
    for i, text in enumerate(texts):
        assert got.input_ids[i].tolist() == want.input_ids[i].tolist(), repr(text)
        assert got.attention_mask[i].tolist() == want.attention_mask[i].tolist(), repr(text)
    return got


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [150, pytest.param(1100, marks=pytest.mark.exhaustive)], ids=lambda count: str(count)
)
def test_the_ids_are_transformers(pair, count, request):
    """Each pair is given strings of its own."""
    ours, theirs = pair
    texts = ODD + list(generated(count, seed=zlib.crc32(request.node.callspec.id.encode())))
    got = compare(ours, theirs, texts, 77, True)
    assert got.input_ids.dtype == got.attention_mask.dtype == np.int64
    assert got.input_ids.shape == (len(texts), 77)
    assert len(np.unique(got.input_ids)) > 150  # the strings do exercise the vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("length", [2, 3, 16, 400])
def test_other_lengths_are_transformers(pair, length):
    compare(*pair, ODD, length, True)
    compare(*pair, ODD, length, False)


def test_the_attributes_are_transformers(pair):
    ours, theirs = pair
    assert ours.vocab_size == theirs.vocab_size
    assert len(ours) == len(theirs)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.model_max_length == min(theirs.model_max_length, 77)


def test_what_was_cut_is_what_diffusers_says_was(pair):
    """As StableDiffusionPipeline.encode_prompt finds it, one prompt at a time."""
    ours, theirs = pair
    cut = 0
    for text in ODD + list(generated(100, seed=1)):
        untruncated = theirs(text, padding="longest", return_tensors="np").input_ids
        (got,) = ours([text]).truncated
        if untruncated.shape[-1] <= 77:
            assert got is None, repr(text)
        else:
            cut += 1
            assert [got] == theirs.batch_decode(untruncated[:, 76:-1]), repr(text)
    assert cut > 20


def test_decoding_is_transformers(pair):
    ours, theirs = pair
    for text in ODD:
        ids = theirs(text).input_ids
        assert ours.decode(ids) == theirs.decode(ids), repr(text)


def test_a_lone_surrogate_is_refused_by_both(pair):
    ours, theirs = pair
    with pytest.raises(Exception, match="surrogate|TextInputSequence|str"):
        theirs("half \ud83d")
    with pytest.raises(InputError, match="lone surrogate.*position 5"):
        ours(["half \ud83d"])


def test_another_class_is_read_from_its_tokenizer_json(tmp_path):
    """A tokenizer of T5's kind: Unigram, no token before the prompt, its own post-processor."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, processors, trainers

    library = Library(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator([CORPUS], trainer)
    library.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (None, 1, 0)
    compare(ours, theirs, ODD + list(generated(100)), 32, True)


def test_a_sentencepiece_model_alone(tmp_path: Path) -> None:
    """T5's tokenizer from ``spiece.model``, as PixArt's repositories have it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    colours, shapes = ("red", "green", "blue", "white"), ("circle", "square", "triangle")
    pairs = itertools.product(colours, shapes, colours)
    lines = [f"a {one} {shape} on the {other} background" for one, shape, other in pairs]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, "an über-große Fläche, ½ ﬁne!"] * 3),
        model_writer=written,
        vocab_size=41,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.model").write_bytes(written.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 10}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_folder(tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    texts = ["a red circle on the blue background", "  ﬁne   Fläche, ½ 紅 ", "", "triangle</s> red"]
    for text in texts:
        found = ours(text, max_length=40).input_ids[0].tolist()
        padded = theirs(text, padding="max_length", max_length=40).input_ids
        assert found == padded, text
    for text in texts[:3]:
        assert ours.ids(text) == [*model.encode(text), 1], text


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": True},
        {"do_lower_case": False, "tokenize_chinese_chars": False},
        {"do_lower_case": True, "strip_accents": False},
    ],
    ids=str,
)
def test_a_list_of_words_alone(tmp_path, settings):
    """BERT's tokenizer from ``vocab.txt``, as Hunyuan-DiT's repositories have it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({*CORPUS.split(), *CORPUS.lower().split(), *CORPUS.replace("\n", "")} - {" "})
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyzäüßéñ士"]
    (tmp_path / "vocab.txt").write_text("\n".join(special + words) + "\n", "utf-8")
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 77, **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.pad_token_id, ours.vocab_size) == (0, len(special) + len(words))
    texts = [*ODD, "a [SEP] b", "[cls] [MASK]ed 一个宇航员在骑马", *generated(100)]
    compare(ours, theirs, texts, 77, True)
    again = tmp_path / "again"
    theirs.save_pretrained(again)  # as tokenizer.json
    compare(Tokenizer.from_folder(again), theirs, texts, 77, True)


def test_a_list_of_words_that_is_damaged(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    for content in (b"", b"[PAD]\n[UNK]\n[CLS]\nred\n"):
        (tmp_path / "vocab.txt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"lacks .*\[SEP\]"):
            Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe red")
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        Tokenizer.from_folder(tmp_path)


def test_a_sentencepiece_model_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    for content in (b"\xff" * 40, b"\x0a\x7f", b""):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(CheckpointError, match="is no SentencePiece model"):
            Tokenizer.from_folder(tmp_path)
