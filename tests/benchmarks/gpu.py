"""All figures of a GPU, one after another: python tests/benchmarks/gpu.py --data paradetox.tsv

Calls this folder's other commands on the shapes of BLOOM-3B and BLOOM-7B1; each prints its table and writes its figures.
`--device cpu --layers 1 --steps 6` tries them on a machine that has no GPU.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import sides

from sft.recipe import PROJECT, parse_count


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
    run = work / "generate"
    base = sides.make_base("3b", arguments.layers, work)
    training = sides.list_overrides("3b", base, arguments.data, arguments.device, arguments.steps, None)
    shared = ["--data", arguments.data, "--device", arguments.device, "--out", str(arguments.out)]
    shared += ["--layers", str(arguments.layers)] if arguments.layers else []
    steps = ["--steps", str(arguments.steps)]
    generation = ["--sentences", str(arguments.sentences), "--out", str(arguments.out)]
    failed = []
    for command in (
        ["tests/benchmarks/train.py", "--shape", "3b", *steps, *shared],  # against trl sft; an epoch of 18,000 pairs
        ["tests/benchmarks/train.py", "--shape", "7b1", "--batch", "4", "--sides", "this project", *steps, *shared],
        ["tests/benchmarks/memory.py", *shared],
        ["sft/run.py", *training, "--output_dir", str(run), "--overwrite"],
        ["tests/benchmarks/generate.py", str(run), *generation],
    ):
        print(f"$ python {shlex.join(command)}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=PROJECT).returncode:
            failed.append(command[0])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
