"""Memory, estimated and measured: python tests/benchmarks/memory.py --device cpu

Trains some steps of several shapes, each in a fresh process, and holds the peak that the preflight estimated against the
one that was measured: of the process on a CPU, of PyTorch's allocator on a GPU. Batches by length begin with the longest
rows. Real BLOOM shapes have random weights, made on the spot.
"""

import argparse
import json
from pathlib import Path

import sides

from sft.command import parse_count

CASES = {  # shape, overrides
    "cpu": [
        ("tiny", []),
        ("tiny", ["--per_device_train_batch_size", "96"]),
        ("tiny", ["--packing", "true", "--max_length", "512"]),
        ("560m", ["--per_device_train_batch_size", "4"]),
        ("560m", ["--per_device_train_batch_size", "8"]),
        ("560m", ["--per_device_train_batch_size", "16"]),
        ("560m", ["--per_device_train_batch_size", "16", "--activation_checkpointing", "true"]),
        ("560m", ["--per_device_train_batch_size", "4", "--load_in_4bit", "false"]),
    ],
    "cuda": [
        ("560m", []),
        ("560m", ["--activation_checkpointing", "true"]),
        ("3b", []),
        ("3b", ["--per_device_train_batch_size", "64"]),
        ("7b1", ["--per_device_train_batch_size", "1"]),
        ("7b1", ["--per_device_train_batch_size", "4"]),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=CASES, default="cpu")
    parser.add_argument("--steps", type=parse_count, default=3)
    parser.add_argument(
        "--layers", type=parse_count, help="fewer layers than the shapes have, to try the command"
    )
    parser.add_argument("--data", default="recipes/tiny-corpus.tsv", help="data.source")
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    arguments = parser.parse_args()
    work = sides.make_work_folder()
    cases = []
    for shape, overrides in CASES[arguments.device]:
        base = sides.make_base(shape, arguments.layers, work)
        words = sides.list_overrides(shape, base, arguments.data, arguments.device, arguments.steps, None)
        run = work / "memory"
        words += ["--gradient_accumulation_steps", "1", *overrides, "--output_dir", str(run), "--overwrite"]
        failure = sides.run_fresh(["sft/run.py", *words], work / "memory.log")
        case = {"shape": shape, "overrides": overrides, "failure": failure}
        if failure is None:
            environment = json.loads((run / "environment.json").read_text())
            case |= {
                "estimated": environment["estimated_memory_gib"],
                "measured": environment["training"]["peak_memory_gib"],
            }
        cases.append(case)
        print(case, flush=True)
    figures = {"machine": sides.describe_machine(arguments.device), "steps": arguments.steps, "cases": cases}
    lines = [
        "| shape | overrides | estimated, GiB | measured, GiB | estimated / measured |",
        "|---|---|---:|---:|---:|",
    ]
    for case in cases:
        if case["failure"]:
            figures_of = f"failed: {case['failure']} | |"
        else:
            estimated, measured = case["estimated"]["peak"], case["measured"]
            figures_of = f"{estimated:.2f} | {measured:.2f} | {estimated / measured:.2f}"
        lines.append(f"| {case['shape']} | {' '.join(case['overrides']) or 'none'} | {figures_of} |")
    name = sides.name_figures("memory", arguments.layers, arguments.device)
    sides.write_figures(name, figures, "\n".join(lines), arguments.out)


if __name__ == "__main__":
    main()
