"""What compel and AUTOMATIC1111's web UI make of prompts: a table of numbers, and how it is recorded.

    python -m tests.oracle.recorded_prompts --compel FOLDER --webui FOLDER

``FOLDER`` is where compel 2.5 was installed (``pip install --target FOLDER --no-deps compel
pyparsing``), and a checkout of the web UI, version 1.10. Neither is needed to run the tests. The
prompts are the keys of the table; a prompt that a reference fails at has no numbers for that model.
"""

import argparse
import json
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TABLE = Path(__file__).with_name("recorded_prompts.json")
CLASSES = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}

Probe = list[float]
Reference = Callable[[str], tuple[Any, Any]]


def probe(states: NDArray[Any], pooled: NDArray[Any] | None = None) -> Probe:
    """Six numbers in which every state has a part, and the number of tokens before them."""
    parts = [states.ravel()] + ([] if pooled is None else [pooled.ravel()])
    flat = np.concatenate(parts).astype(np.float64)
    waves = np.cos(np.outer(np.arange(1, 7) * 0.37, np.arange(flat.size)))
    numbers = waves @ flat / flat.size**0.5
    return [states.shape[1], *(round(float(number), 6) for number in numbers)]


def record(references: Mapping[str, Callable[[Any, str], Reference]]) -> None:
    """Ask references anew for all prompts of the table."""
    import diffusers
    import torch

    from perfuse_conformance.checkpoints import make_checkpoint

    table = json.loads(TABLE.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for kind, class_name in CLASSES.items():
            make_checkpoint(Path(folder) / kind, kind)
            pipe = getattr(diffusers, class_name).from_pretrained(Path(folder) / kind)
            for syntax, make in references.items():
                reference = make(pipe, kind)
                for prompt, numbers in table[syntax].items():
                    numbers.pop(kind, None)
                    try:
                        with torch.no_grad():
                            states, pooled = reference(prompt)
                    except (AttributeError, IndexError) as exc:  # a defect of the reference
                        print(f"{syntax}, {kind}: {prompt!r} raised {exc!r}")
                        continue
                    numbers[kind] = probe(
                        states.numpy(), None if pooled is None else pooled.numpy()
                    )
    TABLE.write_text(_written(table), "utf-8")


def _written(table: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as JSON, a prompt a line."""
    each = {
        syntax: ",\n".join(f"  {json.dumps(p)}: {json.dumps(n)}" for p, n in prompts.items())
        for syntax, prompts in table.items()
    }
    parts = ",\n".join(f' "{syntax}": {{\n{lines}\n }}' for syntax, lines in each.items())
    return f"{{\n{parts}\n}}\n"


def _compel(pipe: Any, kind: str) -> Reference:
    from compel import convenience_wrappers as wrappers

    ask = getattr(wrappers, {"sd1": "CompelForSD", "sdxl": "CompelForSDXL"}[kind])(pipe)

    def read(prompt: str) -> tuple[Any, Any]:
        found = ask(prompt)
        return found.embeds, found.pooled_embeds

    return read


def _webui(pipe: Any, kind: str) -> Reference:
    """The web UI's embedders, with its other modules stood in for by their settings."""
    import torch

    options = types.SimpleNamespace(
        emphasis="Original",
        comma_padding_backtrack=20,
        use_old_emphasis_implementation=False,
        textual_inversion_add_hashes_to_infotext=False,
    )
    devices = {"device": "cpu", "torch_npu_set_device": lambda: None}
    stood_in = {"devices": devices, "shared": {"opts": options}, "sd_hijack": {}}
    for name, contents in {"lark": {"Lark": lambda *_: None}, **stood_in}.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        sys.modules[name if name == "lark" else f"modules.{name}"] = module
        if name != "lark":
            import modules

            setattr(modules, name, module)
    stood = vars(sys.modules["modules.sd_hijack"])
    stood["StableDiffusionModelHijack"] = object
    from modules import sd_hijack_clip

    class Embedder(sd_hijack_clip.FrozenCLIPEmbedderWithCustomWords):  # type: ignore[misc]
        """The text encoder of a Diffusers pipeline."""

        def encode_with_transformers(self, tokens: Any) -> Any:
            output = self.wrapped.transformer(input_ids=tokens, output_hidden_states=True)
            states = output.last_hidden_state if kind == "sd1" else output.hidden_states[-2]
            self.pooled.append(getattr(output, "text_embeds", None))
            return states

    def embedder(tokenizer: Any, model: Any) -> Any:
        database = types.SimpleNamespace(find_embedding_at_position=lambda *_: (None, None))
        hijack = types.SimpleNamespace(
            embedding_db=database, extra_generation_params={}, fixes=None
        )
        wrapped = types.SimpleNamespace(tokenizer=tokenizer, transformer=model)
        made = Embedder(wrapped, hijack)
        made.id_pad = tokenizer.pad_token_id
        return made

    each = [embedder(pipe.tokenizer, pipe.text_encoder)]
    if kind == "sdxl":
        each.append(embedder(pipe.tokenizer_2, pipe.text_encoder_2))

    def read(prompt: str) -> tuple[Any, Any]:
        for one in each:
            one.pooled = []
        states = torch.cat([one([prompt]) for one in each], dim=-1)
        return states, each[-1].pooled[0] if kind == "sdxl" else None

    return read


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compel")
    parser.add_argument("--webui")
    given = parser.parse_args()
    sys.path += [folder for folder in (given.compel, given.webui) if folder]
    references = {"compel": _compel, "a1111": _webui}
    asked = {"compel": given.compel, "a1111": given.webui}
    record({name: references[name] for name, folder in asked.items() if folder})


if __name__ == "__main__":
    main()
