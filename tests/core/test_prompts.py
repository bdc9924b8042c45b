"""Prompt syntaxes, learned tokens and what each refuses; and all of it from an export, without torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tests.conftest import needs_exporter
from tests.test_torch_free import BLOCKED, run

from perfuse import DiffusionPipeline
from perfuse.errors import InputError
from perfuse.sources.embeddings import read_embedding
from perfuse.tasks.prompts.a1111 import parsed
from perfuse.tasks.prompts.compel_grammar import Blend, Fragment, parse

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Make = Callable[[str], Path]

#: As that program documents them.
BRACKETS = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    "\\(literal\\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
    "red BREAK (blue BREAK green)": [
        ("red", 1.0),
        (None, 1.0),
        ("", 1.0),
        ("blue", 1.1),
        (None, 1.0),
        ("green", 1.1),
    ],
}


@pytest.mark.parametrize("prompt", BRACKETS)
def test_brackets(prompt: str) -> None:
    found = parsed(prompt)
    assert [text for text, _ in found] == [text for text, _ in BRACKETS[prompt]]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in BRACKETS[prompt]])


def test_pluses_and_operators() -> None:
    assert parse("a red++ ball") == [
        ((Fragment("a"), Fragment("red", 1.1**2), Fragment("ball")), 1.0)
    ]
    assert parse("(a (red)1.5 ball)-, 5 well-known") == [
        (
            (
                Fragment("a", 0.9),
                Fragment("red", 0.9 * 1.5),
                Fragment("ball", 0.9),
                Fragment(", 5 well-known"),
            ),
            1.0,
        )
    ]
    ((blend, weight),) = parse('("a ball", "a box").blend(1, -0.5, no_normalize)')
    prompts = ((Fragment("a ball"),), (Fragment("a box"),))
    assert blend == Blend(prompts=prompts, weights=(1.0, -0.5), normalised=False)
    assert weight == 1
    assert parse('("a ball", "a box").and(1, 0.5)') == [(prompts[0], 1.0), (prompts[1], 0.5)]


@pytest.mark.parametrize(
    ("syntax", "prompt", "said"),
    [
        ("a1111", "(red:1.2.3)", "1.2.3"),
        ("compel", '("red", "blue").blend(1)', "2 prompts"),
        ("compel", '("red", "blue").blend(1, x)', "2 prompts"),
        ("compel", '("red", "blue").and() green', "green"),
        ("compel", "a cat.swap(dog)", ".swap()"),
        ("compel", "a cat withLora(dog, 1)", "withLora()"),
        ("brackets", "red", "a1111, compel, plain"),
    ],
)
def test_what_cannot_be_read_is_said(checkpoint: Make, syntax: str, prompt: str, said: str) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    with pytest.raises(InputError) as raised:
        pipe(prompt, prompt_syntax=syntax, num_inference_steps=1)
    assert said in str(raised.value)
    assert not pipe.transforms


def test_a_long_prompt_in_chunks(checkpoint: Make) -> None:
    """Without marks, every 75 tokens are encoded alone; shorter prompts are filled up."""
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    given: dict[str, Any] = {"num_inference_steps": 1, "seed": 0, "output_type": "latent"}
    ids = pipe.prompt_tokenizer("tokenizer").ids("q " * 100, special=False)
    assert len(ids) == 100
    program = pipe.program("text_encoder")

    def states(text: str) -> Any:
        tokens = pipe.prompt_tokenizer("tokenizer")(text).input_ids
        return program(input_ids=tokens)["last_hidden_state"]

    whole = np.concatenate([states("q " * 75), states("q " * 25)], axis=1)
    empty = np.concatenate([states(""), states("")], axis=1)
    wanted = pipe(prompt_embeds=whole, negative_prompt_embeds=empty, **given).images
    found = pipe("q " * 100, prompt_syntax="plain", **given).images
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for syntax in ("plain", "a1111", "compel"):  # a short prompt without marks is what it was
        short = pipe(["red", "blue"], prompt_syntax=syntax, **given).images
        np.testing.assert_allclose(short, pipe(["red", "blue"], **given).images, atol=1e-5)


VECTOR = np.linspace(-2, 2, 32, dtype=np.float32)


def _files(folder: Path) -> dict[str, Path]:
    wide = {"<w>": np.zeros(40, np.float32)}
    layouts = {
        "wide": wide,
        "two": {"a": VECTOR, "b": VECTOR},
        "unnamed": {"emb_params": VECTOR[None]},
        "second": {"clip_g": VECTOR},
    }
    for name, tensors in layouts.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    (folder / "old.pt").write_bytes(b"PK")
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wide", "40 wide"),
        ("two", "no known layout"),
        ("second", "text_encoder_2"),
        ("cut", "safetensors"),
        ("old", "never does"),
        ("nothing", "no file"),
    ],
)
def test_an_embedding_that_does_not_fit_is_refused(
    checkpoint: Make, tmp_path: Path, name: str, said: str
) -> None:
    files = _files(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    with pytest.raises(InputError) as raised:
        pipe.load_textual_inversion(files.get(name, tmp_path / "nothing.safetensors"))
    assert said in str(raised.value)
    assert pipe.learned_tokens == ()
    assert not pipe.transforms


def test_names_of_learned_tokens(checkpoint: Make, tmp_path: Path) -> None:
    files = _files(tmp_path)
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    pipe.load_textual_inversion([files["unnamed"], {"<cat>": VECTOR}], token=[None, "<dog>"])
    pipe.load_textual_inversion({"name": "old", "string_to_param": {"*": VECTOR[None]}})
    assert pipe.learned_tokens == ("unnamed", "<dog>", "old")
    assert pipe.replaced == pipe.learned_tokens
    assert len(pipe.prompt_tokenizer("tokenizer").ids("unnamed <dog> old", special=False)) == 3
    for token, said in (("red</w>", "has it already"), ("<dog>", "loaded already"), (None, "word")):
        with pytest.raises(InputError, match=said):
            pipe.load_textual_inversion(VECTOR, token=token)
    with pytest.raises(InputError, match="one for each"):
        pipe.load_textual_inversion([VECTOR, VECTOR], token="<a>")
    with pytest.raises(InputError, match="text_encoder"):
        pipe.load_textual_inversion(VECTOR, token="<a>", text_encoder="text_encoder_9")
    with pytest.raises(InputError, match="<cat>"):
        pipe.unload_textual_inversion("<cat>")
    assert pipe.learned_tokens == ("unnamed", "<dog>", "old")


def test_half_precision_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch

    tensor = torch.tensor([[1.5, -2.25, 1e-3], [0.0, 7.0, 3e4]])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        path = tmp_path / "style.safetensors"
        save_torch({"emb_params": tensor.to(dtype)}, path)
        found = read_embedding(path)
        assert found.token == "style"
        assert (found.vectors["emb_params"] == tensor.to(dtype).float().numpy()).all()


def test_freeu_says_what_it_does_not_fit(checkpoint: Make) -> None:
    pipe = DiffusionPipeline.from_pretrained(checkpoint("words"), backend="torch:cpu")
    with pytest.raises(InputError, match="b2=0"):
        pipe.enable_freeu(0.9, 0.2, 1.2, 0)
    with pytest.raises(InputError, match="CLIP"):
        DiffusionPipeline.from_pretrained(checkpoint("tiny")).add_transform("prompts")
    pipe.disable_freeu()
    assert pipe.transforms == ()


def test_an_export_made_without_it_says_how_to_make_another(exported: Any, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(exported("words", "onnx"))
    with pytest.raises(InputError, match="Export the checkpoint again with --transform prompts"):
        pipe.load_textual_inversion(VECTOR, token="<cat>")
    assert pipe.learned_tokens == ()
    with pytest.raises(InputError, match="--transform prompts"):
        pipe("red", clip_skip=1)


@pytest.mark.export
@pytest.mark.exhaustive
def test_an_export_reads_all_of_it_without_torch(checkpoint: Make, tmp_path: Path) -> None:
    needs_exporter("onnx")
    pytest.importorskip("onnxruntime")
    pipe = DiffusionPipeline.from_pretrained(
        checkpoint("words"), backend="torch:cpu", transforms=["freeu", "prompts"]
    )
    folder = pipe.export(tmp_path / "export", to="onnx")
    save_file({"emb_params": np.stack([VECTOR, VECTOR[::-1]])}, tmp_path / "cat.safetensors")
    prompt, output = "a <cat>++ (red)0.5 circle", tmp_path / "picture.png"
    given = ("--model", folder, "--embedding", f"{tmp_path / 'cat.safetensors'}:<cat>")
    given = (*given, "--prompt-syntax", "compel", "--clip-skip", 1, "--steps", 2, "--seed", 5)
    done = run(BLOCKED, "generate", prompt, *given, "--output", output, "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["components"]) >= {"text_encoder", "unet"}

    pipe.load_textual_inversion(tmp_path / "cat.safetensors", token="<cat>")
    inputs: dict[str, Any] = {"prompt_syntax": "compel", "num_inference_steps": 2, "seed": 5}
    wanted = np.asarray(pipe(prompt, clip_skip=1, **inputs).images[0]).astype(int)
    found = np.asarray(Image.open(output)).astype(int)
    assert np.abs(found - wanted).max() <= 2
    other = np.asarray(pipe(prompt, **inputs).images[0]).astype(int)
    assert np.abs(found - other).max() > 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize(("backend", "to"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_every_engine_reads_all_of_it(
    checkpoint: Make, made_once: Callable[..., Path], backend: str, to: str, exported: bool
) -> None:
    pytest.importorskip(backend)
    needs_exporter(to)
    folder = checkpoint("words")
    torch_pipe = DiffusionPipeline.from_pretrained(
        folder, backend="torch:cpu", transforms=["prompts"]
    )
    if exported:
        folder = made_once(
            "exports", f"words-prompts-{to}", lambda new: torch_pipe.export(new, to=to)
        )
    other = DiffusionPipeline.from_pretrained(folder, backend=backend)
    calls: list[dict[str, Any]] = [
        {"prompt": "a <cat> circle"},
        {"prompt": "red", "negative_prompt": "<cat>", "clip_skip": 1},
        {"prompt": "a (red:1.4) [circle]" + " on a blue background" * 30, "prompt_syntax": "a1111"},
        {"prompt": '("a red++ <cat>", "blue").blend(1, 0.5)', "prompt_syntax": "compel"},
    ]
    drawn = []
    for pipe in (torch_pipe, other):
        pipe.load_textual_inversion({"<cat>": np.stack([VECTOR, VECTOR[::-1]])})
        given: dict[str, Any] = {"num_inference_steps": 2, "seed": 5, "output_type": "np"}
        drawn.append([np.asarray(pipe(**one, **given).images) * 255 for one in calls])
    for wanted, found in zip(*drawn, strict=True):
        assert np.abs(wanted - found).max() <= 2
    assert len({array.tobytes() for array in drawn[1]}) == len(calls)
