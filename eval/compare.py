"""Compare runs: python -m eval.compare RUN_A RUN_B …"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.results import Data, Differences, Systems, write_value
from sft.command import InputError, parse_count, run_command
from sft.run_dir import Run, open_run


@dataclass(frozen=True)
class ComparedRow:
    """A row with each run's prediction for it, and the prediction's sentence chrF."""

    toxic: str
    references: tuple[str, ...]
    predictions: Mapping[str, str]
    chrf: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Runs on one test split, by path: scores, differences of each two, and the rows that differ most."""

    data: Data
    systems: Systems
    differences: Differences  # by "one - other": how far the one is above the other
    rows: tuple[ComparedRow, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.compare",
        description="Print the scores of evaluated runs on the same test split with 95 % intervals, the "
        "paired difference of "
        "each two, and the rows where the first two differ most.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", help="two or more runs with the same test split, evaluated"
    )
    parser.add_argument("--rows", metavar="N", type=parse_count, default=5, help="rows to show (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    if len(set(arguments.runs)) < max(2, len(arguments.runs)):
        raise InputError(f"found {' '.join(arguments.runs)}, expected two different runs at least.")
    comparison = compare_runs([open_run(name) for name in arguments.runs], arguments.rows)
    if arguments.json:
        print(json.dumps(write_value(comparison), indent=2))
    else:
        print_comparison(comparison)


def compare_runs(runs: Sequence[Run], rows: int) -> Comparison:
    """Return the runs' scores, the differences of each two, and `rows` rows where the first two differ most.

    Scores are computed anew from the runs' predictions, toxicity by the classifier of the first run's
    training split.

    Raises:
        InputError: see `read_evaluation`; or the runs have not the same test split.
    """
    from eval.recheck import read_evaluation
    from eval.systems import describe_systems, score_systems

    evaluations = {str(run.root): read_evaluation(run) for run in runs}
    (name, first), *others = evaluations.items()
    for other, evaluation in others:
        if evaluation.results.data.sha256 != first.results.data.sha256:
            raise InputError(
                f"{other}: its test split is not that of {name}: their scores can't be compared."
            )
    outputs = {
        name: [line["prediction"] for line in evaluation.predictions]
        for name, evaluation in evaluations.items()
    }
    systems = score_systems(first.examples, outputs, first.model)
    differences = {
        f"{one} - {other}": describe_systems({one: systems[one], other: systems[other]})[1][other]
        for one, other in itertools.combinations(outputs, 2)
    }
    ours, theirs, *_ = systems.values()
    gaps = ours["chrf"].sentences - theirs["chrf"].sentences
    most = sorted(range(len(gaps)), key=lambda row: (-abs(gaps[row]), row))[:rows]
    return Comparison(
        data=first.results.data,
        systems=describe_systems(systems)[0],
        differences=differences,
        rows=tuple(
            ComparedRow(
                first.examples[row].toxic,
                first.examples[row].references,
                {name: texts[row] for name, texts in outputs.items()},
                {name: round(float(systems[name]["chrf"].sentences[row]), 1) for name in outputs},
            )
            for row in most
        ),
    )


def print_comparison(comparison: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    from eval.tables import format_interval, name_metrics
    from sft.terminal import Terminal

    console = Terminal()
    table = Table("metric", title=f"{comparison.data.rows:,} rows")
    for name in (*comparison.systems, *comparison.differences):
        table.add_column(Text(name))
    for metric, label in name_metrics(comparison.systems).items():
        cells = [format_interval(metric, scores[metric]) for scores in comparison.systems.values()]
        for scores in comparison.differences.values():
            noise = "" if scores[metric].excludes_zero() else " (noise)"
            cells.append(format_interval(metric, scores[metric], signed=True) + noise)
        table.add_row(label, *cells)
    console.print(table)
    console.print("(noise): the interval of the paired difference holds 0.", highlight=False)
    for row in comparison.rows:
        console.print(Text.assemble(("\ntoxic  ", "dim"), row.toxic))
        for name, text in row.predictions.items():
            console.print(Text.assemble((f"{name}  ", "dim"), text, (f"  chrF {row.chrf[name]}", "dim")))


if __name__ == "__main__":
    run_command(main)
