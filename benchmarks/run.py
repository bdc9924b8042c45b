"""Run every benchmark, each in a process of its own; write results.json and print a Markdown table.

python benchmarks/run.py [--only cold_start,overhead] [--quick] [--work FOLDER]

With --only, the other benchmarks keep the results they have.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sidebyside import Row, add_options, describe, markdown, say

#: In this order: the exports that `export_memory` writes are what `overhead` runs.
BENCHMARKS = (
    "cold_start",
    "listing",
    "export_memory",
    "coreml_export",
    "mil_interpreter",
    "overhead",
    "reference_speed",
    "latency",
)
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--only", help=f"some of {', '.join(BENCHMARKS)}, with commas between")
    parser.add_argument(
        "--output", type=Path, help="instead of results.json beside this file; --quick writes none"
    )
    options = parser.parse_args()
    names = options.only.split(",") if options.only else BENCHMARKS
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    passed = [f"--work={options.work}", *(["--quick"] if options.quick else [])]
    passed += [f"--model={options.model}"] if options.model is not None else []
    passed += [f"--rounds={options.rounds}"] if options.rounds is not None else []
    output = options.output
    if output is None and not options.quick:
        output = HERE / "results.json"
    results: dict[str, Any] = {}
    if options.only and output is not None and output.is_file():
        results = json.loads(output.read_text(encoding="utf-8"))["benchmarks"]
    for name in names:
        say(f"── {name}")
        done = subprocess.run(
            [sys.executable, HERE / f"{name}.py", "--json", *passed],
            check=False,
            stdout=subprocess.PIPE,
        )
        if done.returncode:
            sys.exit(f"{name} failed")
        results[name] = json.loads(done.stdout)
    if output is not None:
        text = json.dumps({"command": "make bench", "benchmarks": results}, indent=1)
        output.write_text(text + "\n", encoding="utf-8")
    ordered = [results[name] for name in BENCHMARKS if name in results]
    print(markdown([Row(**row) for result in ordered for row in result["rows"]]))
    print(f"\n{describe(ordered[-1]['machine'])} Made by `make bench`.")


if __name__ == "__main__":
    main()
