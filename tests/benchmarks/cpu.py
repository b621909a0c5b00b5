"""All figures of a CPU, one after another: python tests/benchmarks/cpu.py --data paradetox.tsv

Calls this folder's other commands as RESULTS.md has them; each prints its table and writes its figures.
"""

import argparse
from pathlib import Path

import sides


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="recipes/tiny-corpus.tsv", help="data.source")
    parser.add_argument(
        "--run",
        help="a finished run to generate with; else one of recipes/tiny.yaml, on people's rewrites, is trained",
    )
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    arguments = parser.parse_args()
    sides.run_commands(list_commands(arguments, sides.make_work_folder()))


def list_commands(arguments: argparse.Namespace, work: Path) -> list[list[str]]:
    """Return the commands; what they train lies in `work`."""
    run = arguments.run or str(work / "tiny")
    data, out = ["--data", arguments.data], ["--out", str(arguments.out)]
    training = [
        "sft/run.py",
        "recipes/tiny.yaml",
        "--data.source",
        arguments.data,
        "--output_dir",
        run,
        "--overwrite",
    ]
    few = ["--batch", "4", "--steps", "6", "--warmup", "2", "--held_out", "4", "--repeats", "2"]
    return [
        ["tests/benchmarks/train.py", *data, *out],
        ["tests/benchmarks/train.py", "--shape", "560m", *few, *data, *out],
        *([] if arguments.run else [training]),
        ["tests/benchmarks/generate.py", run, "--sentences", "2000", *out],  # its whole test split
        ["tests/benchmarks/data.py", *data, *out],
        ["tests/benchmarks/memory.py", "--device", "cpu", *out],
        ["tests/benchmarks/streaming.py", *out],
    ]


if __name__ == "__main__":
    main()
