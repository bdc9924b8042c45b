"""Run every benchmark, each in a process of its own; write results.json and print a Markdown table.

python benchmarks/run.py [--only cold_start,overhead] [--quick] [--without-peers] [--work FOLDER]

With --only, the other benchmarks keep the results they have. The peers are other tools, in environments
that are made for them; one that cannot be made is left out, and --without-peers leaves out all but
Diffusers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from blocks import FAMILIES
from bridged import CASES
from peers import comparisons
from sidebyside import Row, add_options, describe, markdown, say

from perfuse_conformance.checkpoints import REAL

#: In this order: the exports that `export_memory` writes are what `overhead` and the rest run. What
#: follows a colon is the case of a benchmark that has several.
BENCHMARKS = (
    "cold_start",
    "listing",
    "export_memory",
    "second_checkpoint",
    "never_seen",
    "lora_switch",
    "residency",
    "coreml_export",
    "mil_interpreter",
    "overhead",
    "reference_speed",
    "latency",
    "tiling",
    "less_work",
    "fewer_bits",
    "gguf_blocks",
    "token_merging",
    "attention_broadcast",
    "masked_attention",
    *(f"blocks:{case}" for case in FAMILIES),
    *(f"real_graphs:{case}" for case in REAL),
    *(f"bridged:{case}" for case in CASES),
    *(f"peers:{case}:{peer}" for case, peer in comparisons()),
)
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--only", help="some, or what they begin with: cold_start,peers:sd15")
    parser.add_argument(
        "--threads", type=int, help="of each engine beside its peers; all by default"
    )
    parser.add_argument("--without-peers", action="store_true", help="make no environments")
    parser.add_argument(
        "--output", type=Path, help="instead of results.json beside this file; --quick writes none"
    )
    options = parser.parse_args()
    asked = options.only.split(",") if options.only else [""]
    for one in asked:
        if not any(_begins(name, one) for name in BENCHMARKS):
            parser.error(f"there is no {one}; there are {', '.join(BENCHMARKS)}")
    names = [name for name in BENCHMARKS if any(_begins(name, one) for one in asked)]
    if options.without_peers:
        names = [n for n in names if not n.startswith("peers:") or n.endswith(":Diffusers")]
    passed = [f"--work={options.work}", *(["--quick"] if options.quick else [])]
    passed += [f"--model={options.model}"] if options.model is not None else []
    passed += [f"--rounds={options.rounds}"] if options.rounds is not None else []
    output = options.output
    if output is None and not options.quick:
        output = HERE / "results.json"
    results: dict[str, Any] = {}
    for name in names:
        say(f"── {name}")
        file, *case = name.split(":")
        own = [f"--{name}={value}" for name, value in zip(("case", "peer"), case, strict=False)]
        own += [f"--threads={options.threads}"] if file == "peers" and options.threads else []
        done = subprocess.run(
            [sys.executable, HERE / f"{file}.py", "--json", *passed, *own],
            check=False,
            stdout=subprocess.PIPE,
        )
        if done.returncode:
            sys.exit(f"{name} failed")
        found = json.loads(done.stdout)
        if found["rows"]:  # none without the peer's environment
            # Read again: benchmarks may run beside each other.
            results = {**(_kept(output) if options.only else results), name: found}
            _write(output, results)
    ordered = [results[name] for name in BENCHMARKS if name in results]
    print(markdown([Row(**row) for result in ordered for row in result["rows"]]))
    print(f"\n{describe(ordered[-1]['machine'])} Made by `make bench`.")


def _begins(name: str, asked: str) -> bool:
    return name == asked or name.startswith(f"{asked}:") or not asked


def _kept(output: Path | None) -> dict[str, Any]:
    """The results that the file has."""
    if output is None or not output.is_file():
        return {}
    kept: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))["benchmarks"]
    return kept


def _write(output: Path | None, results: dict[str, Any]) -> None:
    if output is not None:
        text = json.dumps({"command": "make bench", "benchmarks": results}, indent=1)
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
