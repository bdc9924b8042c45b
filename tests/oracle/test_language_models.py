"""Language models as text encoders, and their tokenizers, against Transformers'."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from perfuse import Role, Signature
from perfuse.errors import CheckpointError
from perfuse.models.language_model.network import LanguageModel, build, wrap
from perfuse.models.registry import describe, fitted, host_inputs
from perfuse.sources.chat_template import chat_template
from perfuse.sources.tokenizer import Tokenizer
from perfuse.sources.weights import Weights
from perfuse.spec import ComponentSpec
from perfuse.tasks.prompts.language import causal_bias
from perfuse_conformance.cases.checkpoint_parts import edit_json, randomise
from perfuse_conformance.cases.language_parts import write_language_tokenizer

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TURNED = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}


def config_of(class_name: str) -> Any:
    if class_name.startswith("Qwen3VL"):
        text = {**SMALL, "head_dim": 16, "rope_parameters": {**TURNED, "mrope_interleaved": True}}
        eyes = {**VISION, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}
        return transformers.Qwen3VLConfig(text_config=text, vision_config=eyes)
    if class_name.startswith("Qwen3"):
        return transformers.Qwen3Config(**SMALL, head_dim=16)
    if class_name.startswith("Glm"):
        return transformers.GlmConfig(**SMALL, head_dim=16, pad_token_id=0)
    if class_name.startswith("Gemma2"):
        # a cap and a scale at which both can be seen
        more = {"query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0}
        return transformers.Gemma2Config(**SMALL, head_dim=16, **more)
    text = {**SMALL, "rope_parameters": TURNED}
    vision = {**VISION, "out_hidden_size": 32}
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    return transformers.Qwen2_5_VLConfig(text_config={**text, **ids}, vision_config=vision)


CLASSES = (
    "Qwen3ForCausalLM",
    "Qwen3Model",
    "Gemma2Model",
    "GlmModel",
    "Qwen3VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)


def made(class_name: str) -> Any:
    return randomise(getattr(transformers, class_name)(config_of(class_name)), 1)


def described(class_name: str, config: dict[str, Any], layers: tuple[int, ...]) -> ComponentSpec:
    """The text encoder beside a denoiser that reads these hidden states."""
    (text,) = describe(class_name, "text_encoder", "text_encoder", config)
    denoiser = ComponentSpec(
        name="transformer",
        role=Role.DENOISER,
        class_name="Made up",
        folder="transformer",
        config={},
        signature=Signature(inputs=(), outputs=()),
        reads_layers=layers,
    )
    return fitted({"transformer": denoiser, "text_encoder": text})["text_encoder"]


def states_of(module: Any, spec: ComponentSpec, ids: Any, mask: Any) -> list[Any]:
    table = host_inputs(spec, {"batch": len(ids), "sequence": ids.shape[1]})["rotary"]
    with torch.no_grad():
        return module(torch.tensor(ids), torch.tensor(causal_bias(mask)), torch.tensor(table))


@pytest.mark.parametrize("class_name", CLASSES)
def test_hidden_states(class_name: str, tmp_path: Path) -> None:
    model = made(class_name)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    ids = np.random.default_rng(0).integers(0, 99, (2, 9))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            output_hidden_states=True,
        ).hidden_states
    for layers, depth in (((-2,), 3), ((1, 2), 2), ((0, -1), 4)):
        spec = described(class_name, config, layers)
        module = build(spec, Weights.open(tmp_path), torch.float32)
        assert isinstance(module, LanguageModel)
        assert len(module.layers) == depth  # those above are neither built nor loaded
        for ours in (module, wrap(spec, model)):
            for layer, found in zip(layers, states_of(ours, spec, ids, mask), strict=True):
                difference = (found - theirs[layer]).abs().max()
                assert difference <= 1e-6 * max(1.0, float(theirs[layer].abs().max()))


def test_older_configs(tmp_path: Path) -> None:
    """Transformers 4 has the rotation's base beside, and a model with eyes has no text_config."""
    text = {**SMALL, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}
    flat = {"architectures": [CLASSES[-1]], "vision_config": VISION, **text}
    nested = json.loads(json.dumps(config_of(CLASSES[-1]).to_dict()))
    tables = [
        host_inputs(described(CLASSES[-1], config, (-1,)), {"sequence": 5})["rotary"]
        for config in (flat, nested)
    ]
    assert np.array_equal(*tables)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ({"hidden_act": "relu"}, "relu"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_attention_heads": "four"}, "four"),
    ],
)
def test_other_variants_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        describe("Qwen3Model", "text_encoder", "text_encoder", {**SMALL, **change})


def test_windows_bound_the_length() -> None:
    window = {"use_sliding_window": True, "sliding_window": 16, "layer_types": ["full_attention"]}
    (spec,) = describe("Qwen3Model", "text_encoder", "text_encoder", {**SMALL, **window})
    assert spec.dim("sequence").maximum == 16


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="27"):
        described("Qwen3Model", dict(SMALL), (9, 18, 27))


TEXTS = (
    "a red circle",
    "",
    "  Two  spaces,\n\na line; it's 2026 — naïve ünïcode 图像 \U0001f600",
    "<|im_start|>user\nwords<|im_end|>\n",
)


class TestTokenizer:
    def test_ids(self, tmp_path: Path) -> None:
        write_language_tokenizer(tmp_path)
        ours = Tokenizer.from_folder(tmp_path, "Qwen2Tokenizer")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            assert ours.ids(text) == theirs(text).input_ids
        assert ours.pad_token_id == theirs.pad_token_id

    def test_whole_file(self, tmp_path: Path) -> None:
        write_language_tokenizer(tmp_path / "parts")
        parts = Tokenizer.from_folder(tmp_path / "parts", "Qwen2Tokenizer")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "parts")
        theirs.save_pretrained(tmp_path / "whole")
        assert (tmp_path / "whole" / "tokenizer.json").is_file()
        whole = Tokenizer.from_folder(tmp_path / "whole", "Qwen2Tokenizer")
        assert all(whole.ids(text) == parts.ids(text) for text in TEXTS)


class TestChatTemplate:
    @pytest.mark.parametrize("thinks", [True, False])
    def test_like_transformers(self, thinks: bool, tmp_path: Path) -> None:
        write_language_tokenizer(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        before, after = chat_template(tmp_path, {"enable_thinking": thinks})
        for text in TEXTS:
            messages = [{"role": "user", "content": text}]
            rendered = theirs.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinks
            )
            assert before + text + after == rendered

    def test_a_file_of_its_own(self, tmp_path: Path) -> None:
        write_language_tokenizer(tmp_path)
        (tmp_path / "chat_template.jinja").write_text("<{{ messages[0].content }}>", "utf-8")
        assert chat_template(tmp_path, {}) == ("<", ">")

    @pytest.mark.parametrize(
        ("template", "said"),
        [
            (..., "no chat template"),
            ("{{ messages[0].content | trim }}", "as it is"),
            ("{% for", "was to be rendered"),
            ("{{ raise_exception('not like this') }}", "not like this"),
            ("{{ ''.__class__.__mro__ }}", "was to be rendered"),
            ("{{ messages[0].content * 100000 }}", "characters"),
            ("{{ 'a' * 10**11 }}", "MemoryError"),
        ],
    )
    def test_bad_ones_are_refused(self, template: Any, said: str, tmp_path: Path) -> None:
        write_language_tokenizer(tmp_path)
        edit_json(tmp_path / "tokenizer_config.json", chat_template=template)
        with pytest.raises(CheckpointError, match=said):
            chat_template(tmp_path, {})


def test_a_wrapped_model_that_does_not_fit() -> None:
    model = made("Qwen3Model")
    spec = described("Qwen3Model", dict(SMALL), (-1,))
    other = dataclasses.replace(spec, config={**spec.config, "hidden_size": 16, "head_dim": 16})
    with pytest.raises(CheckpointError, match="does not fit its config"):
        wrap(other, model)
