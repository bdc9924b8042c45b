"""The bundled model: its language, its judge, its files, its pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from perfuse.shapes import CHECKPOINT, grammar
from perfuse.shapes.checker import check
from perfuse.shapes.evaluate import judge
from perfuse.shapes.grammar import Object, Scene
from perfuse.shapes.tokenizer import vocabulary, write_tokenizer

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


def test_every_word_is_one_token():
    ids, merges = vocabulary()
    assert sorted(ids.values()) == list(range(len(ids)))
    assert all(word + "</w>" in ids for word in grammar.WORDS)
    assert all("".join(pair) in ids for pair in merges)


def test_tokenizer_files_are_what_the_script_writes(tmp_path):
    write_tokenizer(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (CHECKPOINT / "tokenizer" / path.name).read_bytes(), path.name


def test_checkpoint_is_complete_and_small():
    index = json.loads((CHECKPOINT / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    for name, value in index.items():
        if isinstance(value, list) and value[0] is not None:
            assert (CHECKPOINT / name).is_dir(), name
    weights = list(CHECKPOINT.rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(path.stat().st_size for path in weights) <= 10_000_000
    assert (CHECKPOINT / "README.md").is_file()


@pytest.mark.slow
def test_draws_captions_it_never_saw():
    pytest.importorskip("torch")
    from perfuse import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(CHECKPOINT), backend="torch:cpu")

    def paint(captions, seed):
        return pipe(captions, num_inference_steps=20, guidance_scale=3.0, seed=seed).images

    judged = list(judge(paint, grammar.held_out()[:12]))
    faults = [
        f"{scene.caption()}: {verdict.faults}" for scene, _, verdict in judged if not verdict.right
    ]
    assert len(judged) == 12 and len(faults) <= 1, faults
