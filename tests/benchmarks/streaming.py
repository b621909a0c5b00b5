"""Memory of a streamed corpus: python tests/benchmarks/streaming.py --rows 100000 2000000

Writes corpora of so many rows, of made-up sentences, and with each, in fresh processes, (a) trains some steps with the tiny
recipe and `data.streaming: true`, and (b) reads and tokenises all its training rows once. The smallest is also trained on
from memory. A peak is that of the process.
"""

import argparse
import itertools
import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import sides

from sft.command import parse_count
from sft.storage import PROJECT


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=parse_count, nargs="+", default=[100_000, 2_000_000])
    parser.add_argument("--steps", type=parse_count, default=40)
    parser.add_argument("--out", type=Path, default=sides.FIGURES)
    parser.add_argument(
        "--read", type=Path, help=argparse.SUPPRESS
    )  # the fresh process's own arguments: the corpus
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)  # and where it writes
    arguments = parser.parse_args()
    if arguments.read:
        arguments.time.write_text(json.dumps(read_all(arguments.read)))
        return
    work = sides.make_work_folder()
    cases = []
    for rows in arguments.rows:
        corpus = work / f"rows-{rows}.tsv"
        write_corpus(corpus, rows)
        for streaming in (True, False) if rows == min(arguments.rows) else (True,):
            case = {"rows": rows, "streaming": streaming} | train(corpus, streaming, arguments.steps, work)
            if streaming:
                out = work / "streaming.json"
                words = ["tests/benchmarks/streaming.py", "--read", str(corpus), "--time", str(out)]
                if failure := sides.run_fresh(words, work / "streaming.log"):
                    sys.exit(failure)
                case |= json.loads(out.read_text())
            cases.append(case)
            print(case, flush=True)
        corpus.unlink()
    figures = {"machine": sides.describe_machine("cpu"), "steps": arguments.steps, "cases": cases}
    lines = [
        f"| rows | read | peak of {arguments.steps} training steps, GiB | seconds before | peak of reading all, GiB | rows/s |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for case in cases:
        lines.append(
            f"| {case['rows']:,} | {'streamed' if case['streaming'] else 'into memory'} | {case['training_peak']:.2f} | "
            f"{case['before']:.0f} | "
            + (
                f"{case['reading_peak']:.2f} | {case['rows_per_second']:,.0f} |"
                if case["streaming"]
                else "| |"
            )
        )
    sides.write_figures("streaming", figures, "\n".join(lines), arguments.out)


def write_corpus(path: Path, rows: int) -> None:
    """Write rows of 8 to 16 words of the embedded corpus, with one rewrite each: all of them but the first two."""
    rng = random.Random(0)
    words = sorted(
        set((PROJECT / "recipes" / "tiny-corpus.tsv").read_text(encoding="utf-8").replace('"', " ").split())
    )
    with path.open("w", encoding="utf-8") as stream:
        stream.write("toxic\tneutral1\n")
        for _ in range(rows):
            sentence = rng.choices(words, k=rng.randint(8, 16))
            stream.write(f"{' '.join(sentence)}\t{' '.join(sentence[2:])}\n")


def train(corpus: Path, streaming: bool, steps: int, work: Path) -> dict[str, float]:
    """Return the peak of a training in GiB, and the seconds before its first step."""
    run = work / "streaming-run"
    words = sides.list_overrides("tiny", sides.make_base("tiny", None, work), str(corpus), "cpu", steps, None)
    words += [
        "--data.streaming",
        str(streaming).lower(),
        "--data.closest",
        "false",
        "--data.swaps",
        "0",
        "--data.inserts",
        "0",
    ]
    words += ["--output_dir", str(run), "--overwrite"]
    begin = time.time()
    if failure := sides.run_fresh(["sft/run.py", *words], work / "streaming.log"):
        sys.exit(failure)
    training = json.loads((run / "environment.json").read_text())["training"]
    return {"training_peak": training["peak_memory_gib"], "before": time.time() - begin - training["seconds"]}


def read_all(corpus: Path) -> dict[str, Any]:
    """Return the peak of a process that reads all training rows once, in GiB, and its rows/s, the first pass included."""
    from sft.model import load_tokenizer, resolve_base
    from sft.schema import DataConfig
    from sft.stream import RowSettings, read_splits, stream_training_rows

    tokenizer = load_tokenizer(resolve_base("recipes/bloom-tiny"))
    begin = time.perf_counter()
    config = DataConfig(source=str(corpus), streaming=True)
    kept, splits = read_splits(config)
    held_out = [*splits["validation"], *splits["test"]]
    stream = stream_training_rows(config, kept, held_out, tokenizer, RowSettings(160, True, 24, 0))
    rows = kept.counts["references"] - sum(len(example.references) for example in held_out)
    read = sum(1 for _ in itertools.islice(stream, rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    return {"reading_peak": peak, "rows_per_second": read / (time.perf_counter() - begin)}


if __name__ == "__main__":
    main()
