"""``perfuse bench``: what is measured, and against what."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from perfuse.cli import main
from perfuse.cli.usual import usual_prompts
from perfuse.run.bench import wilson
from perfuse.shapes.grammar import held_out
from perfuse.sources.opening import open_model

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("flip_evaluator")

Make = Callable[[str], Path]


def bench(model: Path | None, *arguments: object) -> Result:
    opened = () if model is None else ("--model", model)
    given = ("bench", *opened, "--backend", "torch:cpu", "--quiet", *arguments)
    return CliRunner().invoke(main, [str(one) for one in given])


def test_each_way_and_its_rival(checkpoint: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ways = ("steps:compute=0+1+2+3", "deepcache:every=4 guidance-interval", "easycache:threshold=9")
    asked = [part for way in ways for part in ("--transform", way)]
    plot = tmp_path / "plot.svg"
    given = ("--steps", 8, "--pictures", 2, "--prompt", "red", "--plot", plot, "--json")
    done = bench(checkpoint("words"), *given, *asked)
    assert done.exit_code == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    plain = rows["plain, 8 steps"]
    assert plain["predictions"] == {"unet": 16}
    assert (plain["psnr"], plain["ssim"], plain["flip"]) == (100, 1, 0)
    assert plain["speed"] == 1
    assert rows[ways[0]]["predictions"] == {"unet": 8}
    assert rows[ways[1]]["predictions"] == {"unet": 3, "unet_shallow_1": 9}
    assert rows[ways[1]]["transforms"] == ways[1].split()
    for way in ways:
        row, rival = rows[way], rows[rows[way]["rival"]]
        assert rival["transforms"] == []
        assert 1 <= rival["steps"] <= 8
        assert 0 < row["psnr"] < 100
        assert row["flip"] > 0
        assert row["seconds"] > 0
        assert row["memory"] is None
        assert row["right"] is None
    assert plot.read_text().startswith("<?xml")


@pytest.mark.exhaustive
def test_memory_is_that_of_a_process_of_its_own(checkpoint: Make) -> None:
    given = ("--steps", 2, "--pictures", 1, "--memory", "--json")
    done = bench(checkpoint("words"), *given)
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert 50e6 < row["memory"] < 5e9


def test_what_is_drawn_where_nothing_was_said(checkpoint: Make) -> None:
    known = {scene.caption() for scene in held_out()}
    assert known.issuperset(usual_prompts(open_model("shapes-flow")))
    assert len(usual_prompts(open_model(checkpoint("words")))) == 4
    done = bench(checkpoint("ddpm"), "--steps", 2, "--pictures", 1, "--json")  # takes no prompt
    assert [row["name"] for row in json.loads(done.stdout)["rows"]] == ["plain, 2 steps"]


def test_captions_of_the_bundled_model() -> None:
    given = ("--steps", 4, "--guidance", 1, "--captions", 2, "--transform", "taylorseer:warmup=1")
    done = bench(None, *given)
    assert done.exit_code == 0, done.stderr
    titles, plain, *_ = done.stdout.splitlines()
    assert "right" in titles
    assert "of 2" in plain
    assert plain.endswith(" 4 unet")  # one prediction a step


def test_quality_is_that_of_the_judge() -> None:
    """The metrics that conformance uses, at its settings."""
    from perfuse.run.bench import _quality
    from perfuse_conformance.judge import metrics

    rng = np.random.default_rng(0)
    a = rng.uniform(size=(32, 32, 3)).astype(np.float32)
    b = np.clip(a + 0.1 * rng.normal(size=a.shape), 0, 1).astype(np.float32)
    expected = (metrics.psnr_db(b, a), metrics.ssim(b, a), metrics.flip(b, a)[0])
    assert _quality(b, a) == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def clip(checkpoint: Make, tmp_path: Path) -> Path:
    """A small random CLIP model with its processor."""
    import torch
    import transformers

    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(checkpoint("words") / "tokenizer")
    layers = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 20,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = transformers.CLIPConfig(
        text_config={**layers, **text, "num_hidden_layers": 2},
        vision_config={**layers, "image_size": 32, "patch_size": 8, "num_hidden_layers": 2},
        projection_dim=16,
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    images = transformers.CLIPImageProcessor(**sizes)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clip_score_is_that_of_transformers(clip: Path) -> None:
    import torch
    import transformers
    from PIL import Image

    from perfuse.run.clip_score import ClipScore

    rng = np.random.default_rng(0)
    score, found = ClipScore(str(clip)), []
    model = transformers.CLIPModel.from_pretrained(clip)
    processor = transformers.CLIPProcessor.from_pretrained(clip)
    for prompt in ("a red square", "a blue circle " * 20):
        pixels = rng.integers(256, size=(48, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        given = {"text": [prompt], "images": picture, "return_tensors": "pt"}
        with torch.no_grad():
            out = model(**processor(**given, truncation=True, max_length=20))
        cosine = (out.logits_per_image / model.logit_scale.exp()).item()
        found.append(cosine)
        assert score(pixels.astype(np.float32) / 255, prompt) == pytest.approx(
            100 * max(cosine, 0), abs=1e-3
        )
    assert any(found)
    assert found[0] != found[1]


def test_clip_scores_each_way(checkpoint: Make, clip: Path) -> None:
    given = ("--steps", 4, "--pictures", 2, "--prompt", "red", "--clip", clip, "--json")
    done = bench(checkpoint("words"), *given, "--transform", "steps:compute=0+1")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert all(0 <= row["clip"] <= 100 for row in rows)
    assert len({row["clip"] for row in rows}) > 1


def test_clip_scores_only_what_has_a_prompt(checkpoint: Make, clip: Path) -> None:
    done = bench(checkpoint("ddpm"), "--steps", 2, "--pictures", 1, "--clip", clip)
    assert done.exit_code == 2
    assert "CLIP scores pictures that were drawn from a prompt" in done.stderr


def test_what_is_no_clip_model(checkpoint: Make, clip: Path, tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "nowhere", "cannot be read"),
        (checkpoint("words") / "text_encoder", "model of type clip_text_model, not clip"),
        (clip, "cannot be read"),
    ):
        (clip / "model.safetensors").write_bytes(b"\x08")
        done = bench(checkpoint("words"), "--offline", "--clip", folder)
        assert done.exit_code == 2, done.output
        assert message in done.stderr


def test_the_interval_of_a_share() -> None:
    assert wilson(98, 100) == pytest.approx((0.9300, 0.9945), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--transform", "deepcash"), "'deepcash' was asked for; installed"),
        (("--transform", "easycache:threshold=nan"), "threshold=nan was given"),
        (("--transform", "taylorseer easycache"), "Two transforms were asked for"),
        (("--captions", 2), "they are of the bundled models"),
        (("--plot", "plot.pdf"), "name a .png or a .svg"),
        (("--plot", "nowhere/plot.png"), "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_measured(
    checkpoint: Make, arguments: tuple[str, ...], message: str
) -> None:
    done = bench(checkpoint("words"), *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_more_pictures_than_there_is_room_to_measure(checkpoint: Make) -> None:
    done = bench(checkpoint("tiny"), "--steps", 1, "--pictures", 10**12)
    assert done.exit_code == 2
    assert "--pictures 1000000000000 was asked for; that needs at least" in done.stderr
