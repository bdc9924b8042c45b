"""Run every benchmark, each in a process of its own; write results.json and print a Markdown table.

python benchmarks/run.py [--only cold_start,overhead] [--quick] [--work FOLDER]
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from sidebyside import Row, add_options, describe, markdown, say

#: In this order: the exports that `export_memory` writes are what `overhead` runs.
BENCHMARKS = ("cold_start", "export_memory", "overhead", "reference_speed", "latency")
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--only", help=f"some of {', '.join(BENCHMARKS)}, with commas between")
    parser.add_argument("--output", type=Path, help="results.json beside this file, if all ran")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else BENCHMARKS
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    passed = [f"--work={options.work}", *(["--quick"] if options.quick else [])]
    passed += [f"--model={options.model}"] if options.model is not None else []
    passed += [f"--rounds={options.rounds}"] if options.rounds is not None else []
    results = {}
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
    machine = next(iter(results.values()))["machine"]
    rows = {name: result["rows"] for name, result in results.items()}
    output = options.output
    if output is None and options.only is None and not options.quick:
        output = HERE / "results.json"
    if output is not None:
        text = json.dumps({"machine": machine, "command": "make bench", "rows": rows}, indent=1)
        output.write_text(text + "\n", encoding="utf-8")
    print(markdown([Row(**row) for some in rows.values() for row in some]))
    print(f"\n{describe(machine)} Made by `make bench`.")


if __name__ == "__main__":
    main()
