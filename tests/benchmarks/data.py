"""Seconds to read, clean, split and tokenise: python tests/benchmarks/data.py --data paradetox.tsv

Each repeat is a fresh process. Libraries are imported and the tokenizer is loaded before the clock starts; their seconds
are given apart.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import sides

from sft.command import parse_count
from sft.schema import DataConfig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="recipes/tiny-corpus.tsv", help="data.source")
    parser.add_argument("--base", default="recipes/bloom-tiny", help="folder of the tokenizer")
    parser.add_argument("--repeats", type=parse_count, default=3)
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    parser.add_argument(
        "--time", type=Path, help=argparse.SUPPRESS
    )  # the fresh process's own argument: where it writes
    arguments = parser.parse_args()
    if arguments.time:
        arguments.time.write_text(json.dumps(time_data(arguments.data, arguments.base)))
        return
    runs: list[dict[str, float]] = []
    work = sides.make_work_folder()
    for _ in range(arguments.repeats):
        out = work / "data.json"
        words = [
            "tests/benchmarks/data.py",
            "--data",
            arguments.data,
            "--base",
            arguments.base,
            "--time",
            str(out),
        ]
        if failure := sides.run_fresh(words, work / "data.log"):
            sys.exit(failure)
        runs.append(json.loads(out.read_text()))
    figures: dict[str, Any] = {
        "machine": sides.describe_machine("cpu"),
        "data": Path(arguments.data).name,
        "runs": runs,
        "medians": sides.median(runs),
    }
    sides.write_figures("data", figures, print_table(figures), arguments.out)


def time_data(source: str, base: str) -> dict[str, float]:
    """Return the seconds of each stage, and the number of pairs."""
    laps = [time.perf_counter()]
    import datasets  # noqa: F401
    import pandas  # noqa: F401

    from sft.data import read_corpus, tokenise_pairs
    from sft.model import load_tokenizer, resolve_base
    from sft.splits import SPLITS, find_leaks, split_examples

    tokenizer = load_tokenizer(resolve_base(base))
    laps.append(time.perf_counter())
    corpus = read_corpus(DataConfig(source=source))
    laps.append(time.perf_counter())
    splits = split_examples(corpus.examples, 0.05, 0.05, 0)
    assert not find_leaks(splits)
    laps.append(time.perf_counter())
    tokens = [tokenise_pairs(splits[split], tokenizer, 160) for split in SPLITS]
    laps.append(time.perf_counter())
    imports, read, split, tokenise = (after - before for before, after in itertools.pairwise(laps))
    return {
        "read and clean": read,
        "split, check for leaks": split,
        "tokenise": tokenise,
        "all": laps[-1] - laps[1],
        "imports before": imports,
        "pairs": sum(len(part.lengths) for part in tokens),
    }


def print_table(figures: dict[str, Any]) -> str:
    medians = figures["medians"]
    stages = [key for key in medians if key != "pairs"]
    pairs, repeats = medians["pairs"], len(figures["runs"])
    lines = [
        f"{pairs:,} pairs of {figures['data']}, seconds, medians of {repeats}.",
        "",
        f"| {' | '.join(stages)} |",
        "|" + "---:|" * len(stages),
        f"| {' | '.join(f'{medians[stage]:.2f}' for stage in stages)} |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
