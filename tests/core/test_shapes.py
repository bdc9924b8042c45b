"""The bundled models: their language, their judge, their files, their pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from perfuse.shapes import BUNDLED, CHECKPOINT, FLOW, bundled_name, grammar
from perfuse.shapes.checker import check
from perfuse.shapes.evaluate import judge
from perfuse.shapes.grammar import Object, Scene
from perfuse.shapes.tokenizer import (
    language_vocabulary,
    vocabulary,
    write_language_tokenizer,
    write_tokenizer,
)

ATTRIBUTES = {
    "size": grammar.RADII,
    "colour": grammar.COLOURS,
    "shape": grammar.SHAPES,
    "place": grammar.PLACES,
}


def scenes(count: int, *, seed: int, pairs: float = 0.3) -> list[tuple[Scene, np.ndarray]]:
    """Training scenes with their pictures."""
    rng = np.random.default_rng(seed)
    drawn = (grammar.sample(rng, pairs=pairs) for _ in range(count))
    return [(scene, grammar.draw(scene, rng)) for scene in drawn]


def test_captions_round_trip():
    captions = list(grammar.captions())
    assert len(set(captions)) == len(captions) == 2880
    assert all(grammar.parse(caption).caption() == caption for caption in captions)
    rng = np.random.default_rng(0)
    for _ in range(500):
        told = grammar.tell(grammar.sample(rng, pairs=0.5), rng)
        assert grammar.parse(told.caption()) == told


def test_caption_words():
    scene = Scene(
        objects=(Object(size="small", colour="red", shape="circle", place="top left"),),
        background="white",
    )
    assert scene.caption() == "a small red circle at the top left on a white background"
    assert grammar.parse("an  Orange shape").objects == (Object(colour="orange"),)
    with pytest.raises(ValueError, match="a small red circle at the top left"):
        grammar.parse("a photograph of an astronaut")


def test_drawing_is_a_function_of_scene_and_seed():
    scene = grammar.parse("a circle")
    one, same, other = (grammar.draw(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_training_never_sees_what_is_held_out():
    held = grammar.held_out()
    assert len(set(held)) == grammar.HELD_OUT >= 100
    for name, values in ATTRIBUTES.items():
        assert {getattr(scene.objects[0], name) for scene in held} == set(values)
    captions = {scene.caption() for scene in held}
    rng = np.random.default_rng(3)
    for _ in range(20_000):
        scene = grammar.sample(rng, pairs=0.15)
        assert scene not in held
        assert grammar.tell(scene, rng).caption() not in captions


def test_checker_passes_what_is_right():
    for scene, picture in scenes(150, seed=1):
        assert not check(picture, scene).faults, scene.caption()


def test_checker_sees_every_changed_word():
    for scene, picture in scenes(60, seed=2):
        for index, item in enumerate(scene.objects):
            for name, values in ATTRIBUTES.items():
                if getattr(item, name) is None:
                    continue
                value = next(value for value in values if value != getattr(item, name))
                objects = list(scene.objects)
                objects[index] = replace(item, **{name: value})
                wrong = replace(scene, objects=tuple(objects))
                assert not check(picture, wrong).right, f"{scene.caption()} | {wrong.caption()}"
        for background in grammar.BACKGROUNDS.keys() - {scene.background}:
            assert not check(picture, replace(scene, background=background)).right
        if scene.relation is not None:
            for relation in grammar.RELATIONS.keys() - {scene.relation}:
                assert not check(picture, replace(scene, relation=relation)).right


def test_checker_rejects_what_is_no_picture_of_the_language():
    scene = grammar.parse("a shape")
    rng = np.random.default_rng(0)
    for picture in (
        np.full((64, 64, 3), 245, np.uint8),
        rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        np.tile(np.array([220, 35, 40], np.uint8), (64, 64, 1)),
    ):
        assert not check(picture, scene).right
    with pytest.raises(ValueError, match=r"uint8 \[64, 64, 3\]"):
        check(np.zeros((32, 32, 3), np.uint8), scene)


@pytest.mark.parametrize(("known", "form"), [(vocabulary, "{}</w>"), (language_vocabulary, "Ġ{}")])
def test_every_word_is_one_token(known, form):
    ids, merges = known()
    assert sorted(ids.values()) == list(range(len(ids)))
    assert all(form.format(word) in ids for word in grammar.WORDS)
    assert all("".join(pair) in ids for pair in merges)


def test_words_are_read_as_they_were_in_training():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from perfuse.shapes.train_flow import tokenize
    from perfuse.sources.chat_template import chat_template
    from perfuse.sources.tokenizer import Tokenizer

    read = Tokenizer.from_folder(FLOW / "tokenizer")
    before, after = chat_template(FLOW / "tokenizer", {"enable_thinking": True})
    captions = ["", "A red shape", *(scene.caption() for scene in grammar.held_out()[:20])]
    tokens = read([f"{before}{caption}{after}" for caption in captions], max_length=32)
    for caption, ids, mask in zip(captions, tokens.input_ids, tokens.attention_mask, strict=True):
        trained = tokenize(caption)
        assert list(ids[mask != 0]) == trained[: mask.sum()], caption
        assert len(set(trained[mask.sum() :])) == 1


@pytest.mark.parametrize(
    ("folder", "write"), [(CHECKPOINT, write_tokenizer), (FLOW, write_language_tokenizer)]
)
def test_tokenizer_files_are_what_the_script_writes(folder, write, tmp_path):
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (folder / "tokenizer").iterdir()
    }
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / "tokenizer" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("folder", "class_name", "most"),
    [(CHECKPOINT, "StableDiffusionPipeline", 10_000_000), (FLOW, "ZImagePipeline", 6_000_000)],
)
def test_checkpoint_is_complete_and_small(folder, class_name, most):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == class_name
    for name, value in index.items():
        if isinstance(value, list) and value[0] is not None:
            assert (folder / name).is_dir(), name
    weights = list(folder.rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= most
    assert (folder / "README.md").is_file()


def test_names(tmp_path, monkeypatch):
    from perfuse.sources.opening import open_model

    assert bundled_name(None) == "shapes"
    for name, one in BUNDLED.items():
        assert bundled_name(name) == bundled_name(one.folder) == name
        assert open_model(name).model == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes-flow").mkdir()
    assert bundled_name("shapes-flow") is None  # the user's own


def verdicts(name, backend, count):
    """Whether a bundled model draws the held-out captions, as it is judged with."""
    from perfuse import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(name, backend=backend)

    def paint(captions, seed):
        return pipe(captions, **BUNDLED[name].call(), seed=seed).images

    return [verdict for _, _, verdict in judge(paint, grammar.held_out()[:count])]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_draws_captions_it_never_saw(name):
    pytest.importorskip("torch")
    judged = verdicts(name, "torch:cpu", 12)
    faults = [verdict.faults for verdict in judged if not verdict.right]
    assert len(judged) == 12 and len(faults) <= 1, faults


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_draw_as_many_captions(backend):
    pytest.importorskip("torch")
    pytest.importorskip(backend)
    reference, other = (verdicts("shapes-flow", one, 100) for one in ("torch:cpu", backend))
    assert sum(one.right for one in reference) >= 95
    assert sum(a.right != b.right for a, b in zip(reference, other, strict=True)) <= 2
