"""All figures of a GPU, one after another: python tests/benchmarks/gpu.py --data paradetox.tsv

Calls this folder's other commands on the shapes of BLOOM-3B and BLOOM-7B1; each prints its table and writes its figures.
`--device cpu --layers 1 --batch 1 --steps 2 --repeats 1 --sentences 4` tries them on a machine that has no GPU.
"""

import argparse
from pathlib import Path

import sides

from sft.command import parse_count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="recipes/tiny-corpus.tsv", help="data.source")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--layers", type=parse_count, help="fewer layers than the shapes have, to try the commands"
    )
    parser.add_argument(
        "--batch",
        type=parse_count,
        help="per_device_train_batch_size of the BLOOM-3B shape, not the recipe's",
    )
    parser.add_argument("--steps", type=parse_count, default=40, help="of each training")
    parser.add_argument("--repeats", type=parse_count, default=3, help="of each side")
    parser.add_argument("--sentences", type=parse_count, default=600, help="to rewrite")
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    arguments = parser.parse_args()
    work = sides.make_work_folder()
    sides.run_commands(
        list_commands(arguments, sides.make_base("3b", arguments.layers, work), str(work / "generate"))
    )


def list_commands(arguments: argparse.Namespace, base: str, run: str) -> list[list[str]]:
    """Return the commands, of which one trains `base`, a BLOOM-3B, in the folder `run`."""
    training = sides.list_overrides(
        "3b", base, arguments.data, arguments.device, arguments.steps, arguments.batch
    )
    shared = ["--data", arguments.data, "--device", arguments.device, "--out", str(arguments.out)]
    shared += ["--layers", str(arguments.layers)] if arguments.layers else []
    compare = [*shared, "--steps", str(arguments.steps), "--warmup", str(max(1, arguments.steps // 8))]
    compare += ["--repeats", str(arguments.repeats)]
    compare_3b = ["--shape", "3b", *compare] + (["--batch", str(arguments.batch)] if arguments.batch else [])
    ours = ["--sides", "this project"]
    generation = [
        "tests/benchmarks/generate.py",
        run,
        "--sentences",
        str(arguments.sentences),
        "--forced_end",
    ]
    generation += ["--report_sentences", str(min(40, arguments.sentences))]
    generation += ["--repeats", str(arguments.repeats), "--out", str(arguments.out)]
    packed = ["--packing", "true", "--out", str(arguments.out / "packed")]
    compiled = [
        "--packing",
        "true",
        "--torch_compile",
        "true",
        "--out",
        str(arguments.out / "compiled"),
    ]  # rows of like lengths
    large = [*ours, "--batch_size", "256"]
    return [
        ["tests/benchmarks/train.py", *compare_3b],  # against trl sft; an epoch of 18,000 pairs
        ["tests/benchmarks/train.py", "--shape", "7b1", "--batch", "4", *ours, *compare],
        ["tests/benchmarks/memory.py", *shared],
        ["sft/run.py", *training, "--output_dir", run, "--overwrite"],
        generation,
        # What may pay, and is in no recipe yet:
        [*generation, *large],
        [*generation, *large, "--in_16_bit"],
        [*generation, *large, "--in_16_bit", "--static_cache"],
        ["tests/benchmarks/train.py", *compare_3b, *ours, *packed],
        ["tests/benchmarks/train.py", *compare_3b, *ours, *compiled],
    ]


if __name__ == "__main__":
    main()
