"""The ``model_index.json`` that is written for exports whose users look for one."""

import json
from collections.abc import Callable
from pathlib import Path

from perfuse.sources.checkpoint import Checkpoint
from perfuse.sources.model_index import entries_of, write_index


def test_the_index_names_what_the_checkpoint_names(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Checkpoint.open(checkpoint("words"))
    for name in source.spec.tokenizers:
        (tmp_path / name).mkdir()
        config = source.path / name / "tokenizer_config.json"
        (tmp_path / name / config.name).write_bytes(config.read_bytes())
    write_index(source.spec, tmp_path)
    written = json.loads((tmp_path / "model_index.json").read_text("utf-8"))
    assert entries_of(written, tmp_path) == entries_of(source.index, source.path)
    assert written["_class_name"] == source.spec.class_name
    assert {name: written[name] for name in source.spec.options} == dict(source.spec.options)
