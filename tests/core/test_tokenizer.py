"""The CLIP tokenizer on a vocabulary small enough to check by hand, and what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

from perfuse.errors import CheckpointError, InputError
from perfuse.sources.tokenizer import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ["r e", "re d</w>", "c a", "ca t</w>", "i n", "in g</w>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz!',.0123456789Ġ"
TOKENS = [
    "!",
    "!</w>",
    *(c for c in LETTERS if c != "!"),
    *(c + "</w>" for c in LETTERS if c != "!"),
    *(merge.replace(" ", "") for merge in MERGES),
    START,
    END,
]
IDS = {token: i for i, token in enumerate(TOKENS)}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tokenizer"
    path.mkdir()
    (path / "vocab.json").write_text(json.dumps(IDS))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    config = {"model_max_length": 8, "tokenizer_class": "CLIPTokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def change(folder, name="tokenizer_config.json", **entries):
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **entries}))
    return folder


def ids(*tokens):
    return [IDS[token] for token in tokens]


def test_words_are_merged_and_wrapped_and_filled_up(folder):
    tok = Tokenizer.from_folder(folder)
    batch = tok(["Red  CAT!", ""])
    end = IDS[END]
    assert batch.input_ids.tolist() == [
        [IDS[START], *ids("red</w>", "cat</w>", "!</w>"), end, end, end, end],
        [IDS[START], end, end, end, end, end, end, end],
    ]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch.truncated == (None, None)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64


def test_a_prompt_may_be_given_alone(folder):
    tok = Tokenizer.from_folder(folder)
    assert np.array_equal(tok("red cat").input_ids, tok(["red cat"]).input_ids)


def test_a_long_prompt_keeps_its_end_token_and_tells_what_was_cut(folder):
    tok = Tokenizer.from_folder(folder)
    batch = tok(["red cat red cat red cat, a caring cat", "red"])
    assert batch.input_ids[0].tolist() == [
        IDS[START],
        *ids("red</w>", "cat</w>", "red</w>", "cat</w>", "red</w>", "cat</w>"),
        IDS[END],
    ]
    assert batch.truncated == (", a caring cat", None)
    exact = tok(["red cat red cat red cat"])
    assert exact.truncated == (None,)
    assert exact.attention_mask.sum() == 8


def test_lengths(folder):
    tok = Tokenizer.from_folder(folder)
    assert tok(["red", "red cat"], max_length=20).input_ids.shape == (2, 20)
    assert tok(["red", "red cat"], padding=False).input_ids.shape == (2, 4)
    shortest = tok(["red cat"], max_length=2)
    assert shortest.input_ids.tolist() == [[IDS[START], IDS[END]]]
    assert shortest.truncated == ("red cat",)


def test_attributes(folder):
    tok = Tokenizer.from_folder(folder)
    assert tok.model_max_length == 8
    assert tok.vocab_size == len(tok) == len(TOKENS)
    assert (tok.bos_token_id, tok.eos_token_id, tok.pad_token_id) == (
        IDS[START],
        IDS[END],
        IDS[END],
    )


@pytest.mark.parametrize("stated", [int(1e30), 1e30, None])
def test_the_sentinel_for_no_limit_means_77(folder, stated):
    assert Tokenizer.from_folder(change(folder, model_max_length=stated)).model_max_length == 77


def test_without_a_config_a_clip_vocabulary_is_enough(folder):
    (folder / "tokenizer_config.json").unlink()
    tok = Tokenizer.from_folder(folder)
    assert tok.model_max_length == 77
    assert tok(["red"]).input_ids[0, :3].tolist() == [IDS[START], IDS["red</w>"], IDS[END]]


def test_sd2_fills_up_with_exclamation_marks(folder):
    change(folder, "special_tokens_map.json", pad_token="!")
    tok = Tokenizer.from_folder(folder)
    assert tok.pad_token_id == IDS["!"] == 0
    assert tok(["red"]).input_ids[0].tolist() == [
        IDS[START],
        IDS["red</w>"],
        IDS[END],
        0,
        0,
        0,
        0,
        0,
    ]


def test_a_special_token_of_no_character_is_none(folder):
    change(folder, "special_tokens_map.json", bos_token="")
    with pytest.raises(CheckpointError, match="has '' as its bos_token"):
        Tokenizer.from_folder(folder)


def test_added_tokens_are_matched_whole(folder):
    change(folder, "added_tokens.json", **{"<cat-toy>": len(TOKENS)})
    tok = Tokenizer.from_folder(folder)
    assert tok(["red <cat-toy>ing"]).input_ids[0, 1:4].tolist() == [
        IDS["red</w>"],
        len(TOKENS),
        IDS["ing</w>"],
    ]
    assert (tok.vocab_size, len(tok)) == (len(TOKENS), len(TOKENS) + 1)


def test_filling_and_cutting_on_the_left(folder):
    tok = Tokenizer.from_folder(change(folder, padding_side="left", truncation_side="left"))
    assert tok(["red"], max_length=4).attention_mask.tolist() == [[0, 1, 1, 1]]
    batch = tok(["cat red cat"], max_length=4)
    assert batch.input_ids.tolist() == [[IDS[START], *ids("red</w>", "cat</w>"), IDS[END]]]
    assert batch.truncated == ("cat",)


def test_saving_copies_the_files_unchanged(folder, tmp_path):
    change(folder, "special_tokens_map.json", pad_token="!")
    (folder / "weights.bin").write_bytes(b"not the tokenizer's")
    tok = Tokenizer.from_folder(folder)
    saved = tmp_path / "deep" / "saved"
    tok.save(saved)
    names = {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert {p.name for p in saved.iterdir()} == names
    for name in names:
        assert (saved / name).read_bytes() == (folder / name).read_bytes()
    again = Tokenizer.from_folder(saved)
    text = ["red cats, 42 ferrets"]
    assert np.array_equal(tok(text).input_ids, again(text).input_ids)
    tok.save(folder)  # where it was read: nothing is lost
    assert Tokenizer.from_folder(folder).pad_token_id == 0


def test_saving_where_a_file_is_says_so(folder, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be saved to .*taken"):
        Tokenizer.from_folder(folder).save(tmp_path / "taken")


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "No prompt"),
        ([3], "Prompt 0 is not text but a int"),
        (["a", None], "Prompt 1 is not text but a NoneType"),
        ([b"red"], "bytes"),
        (["ok \ud800"], r"lone surrogate '\\ud800' at position 3"),
    ],
)
def test_what_is_not_text_is_refused(folder, texts, message):
    with pytest.raises(InputError, match=message):
        Tokenizer.from_folder(folder)(texts)


@pytest.mark.parametrize("length", [1, 0, -5])
def test_a_length_without_room_is_refused(folder, length):
    with pytest.raises(InputError, match=f"max_length={length} leaves no room.*2 special"):
        Tokenizer.from_folder(folder)(["red"], max_length=length)


def refused(folder, message, **more):
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(folder, **more)


def test_a_missing_folder_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist")


def test_missing_files_are_named(folder):
    (folder / "merges.txt").unlink()
    refused(folder, "lacks merges.txt.*no tokenizer.json instead")
    (folder / "vocab.json").unlink()
    refused(folder, "lacks vocab.json and merges.txt")
    (folder / "tokenizer_config.json").unlink()
    refused(folder, "class that no file names")


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b'{"a": ', b"", b"\xff\xfe\x00", b"[1, 2]", b"[" * 100_000])
def test_damaged_json_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    refused(folder, f"{name}.*(JSON|object|UTF-8)")


def test_damaged_merges_are_named(folder):
    path = folder / "merges.txt"
    path.write_text("#version: 0.2\nr e\nonly-one\n")
    refused(folder, "Merge 2 in .*merges.txt is not a pair")
    path.write_bytes(b"r e\n\xff\xff e\n")
    refused(folder, "merges.txt is not UTF-8")


def test_merges_of_another_vocabulary_are_refused(folder):
    (folder / "merges.txt").write_text("#version: 0.2\nz z\n")
    refused(folder, "vocab.json and merges.txt do not belong together")


@pytest.mark.parametrize("bad", [{"a</w>": "0"}, {"a</w>": 1.5}, {"a</w>": -1}, {"a</w>": None}])
def test_a_vocabulary_without_ids_is_refused(folder, bad):
    (folder / "vocab.json").write_text(json.dumps(bad))
    refused(folder, "does not map tokens to ids")


def test_a_vocabulary_of_another_kind_is_refused(folder):
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    refused(folder, "is not CLIP's")


@pytest.mark.parametrize("name", ["T5Tokenizer", "GemmaTokenizerFast"])
def test_a_class_to_come_is_named(folder, name):
    refused(change(folder, tokenizer_class=name), name.removesuffix("Fast") + ".*CLIPTokenizer")
    (folder / "tokenizer_config.json").unlink()
    refused(folder, name.removesuffix("Fast"), tokenizer_class=name)


@pytest.mark.parametrize(
    "entries",
    [
        {"bos_token": 5},
        {"bos_token": {"content": 7}},
        {"bos_token": {}},
        {"added_tokens_decoder": [1]},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"extra_special_tokens": [3]},
    ],
)
def test_special_tokens_in_no_known_form_are_refused(folder, entries):
    refused(change(folder, **entries), "special tokens of .*tokenizer_config.json")


def test_a_tokenizer_json_that_is_none_is_refused(folder):
    change(folder, tokenizer_class="T5Tokenizer")
    change(folder, "tokenizer.json", hello="world")
    refused(folder, "tokenizer.json does not describe a tokenizer")
    change(folder, tokenizer_class="CLIPTokenizer")
    refused(folder, "tokenizer.json does not map tokens to ids")


def test_a_tokenizer_without_a_stated_length_asks_for_one(folder):
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    change(folder, tokenizer_class="SomeTokenizer", model_max_length=None)
    Library(models.WordLevel({"red": 0, "?": 1}, unk_token="?")).save(
        str(folder / "tokenizer.json")
    )
    tok = Tokenizer.from_folder(folder)
    with pytest.raises(CheckpointError, match="no model_max_length. Pass max_length="):
        tok(["red"])
    assert tok(["red"], max_length=1).input_ids.tolist() == [[0]]
    with pytest.raises(CheckpointError, match="no pad_token"):
        tok(["red"], max_length=3)


def test_no_torch_is_needed(folder):
    code = (
        "import sys; import perfuse.sources.tokenizer as t; early = 'tokenizers' in sys.modules;"
        "t.Tokenizer.from_folder(sys.argv[1])(['red']);"
        "print(early, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False []"
