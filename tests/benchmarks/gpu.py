"""All figures of a GPU, one after another: python tests/benchmarks/gpu.py --data paradetox.tsv

Calls this folder's other commands on the shapes of BLOOM-3B and BLOOM-7B1; each prints its table and writes its figures.
`--device cpu --layers 1 --steps 6` tries them on a machine that has no GPU.
"""

import argparse
from pathlib import Path

import sides

from sft.recipe import parse_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="recipes/tiny-corpus.tsv", help="data.source")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layers", type=parse_count, help="fewer layers than the shapes have, to try the commands")
    parser.add_argument("--steps", type=parse_count, default=40, help="of each training")
    parser.add_argument("--sentences", type=parse_count, default=600, help="to rewrite")
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    arguments = parser.parse_args()
    work = sides.make_work_folder()
    sides.run_commands(list_commands(arguments, sides.make_base("3b", arguments.layers, work), str(work / "generate")))


def list_commands(arguments: argparse.Namespace, base: str, run: str) -> list[list[str]]:
    """Return the commands, of which one trains `base`, a BLOOM-3B, in the folder `run`."""
    training = sides.list_overrides("3b", base, arguments.data, arguments.device, arguments.steps, None)
    shared = ["--data", arguments.data, "--device", arguments.device, "--out", str(arguments.out)]
    shared += ["--layers", str(arguments.layers)] if arguments.layers else []
    steps = ["--steps", str(arguments.steps)]
    generation = ["--sentences", str(arguments.sentences), "--out", str(arguments.out)]
    return [
        ["tests/benchmarks/train.py", "--shape", "3b", *steps, *shared],  # against trl sft; an epoch of 18,000 pairs
        ["tests/benchmarks/train.py", "--shape", "7b1", "--batch", "4", "--sides", "this project", *steps, *shared],
        ["tests/benchmarks/memory.py", *shared],
        ["sft/run.py", *training, "--output_dir", run, "--overwrite"],
        ["tests/benchmarks/generate.py", run, *generation],
    ]


if __name__ == "__main__":
    main()
