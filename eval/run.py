"""Evaluate a run's adapter: accelerate launch eval/run.py RUN_DIR [--source FILE] [--split test]"""

import argparse
import json
import shutil
from pathlib import Path

from eval.rows import choose_rows, choose_unrewritten, read_splits
from sft.command import explain_shortage, parse_count, run_command
from sft.run_dir import Run, share_run

GO_ON = "The same command goes on with what is done."


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="accelerate launch eval/run.py",
        description="Rewrite the test sentences of a run, and score the rewrites.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a finished run, such as runs/tiny")
    parser.add_argument(
        "--source", metavar="FILE", help="evaluate this .tsv, .csv, .jsonl or .parquet file instead"
    )
    split_help = "split of the run (default: test)"
    parser.add_argument("--split", choices=["test", "validation"], default="test", help=split_help)
    parser.add_argument("--limit", metavar="N", type=parse_count, help="only the first N rows")
    parser.add_argument(
        "--unrewritten",
        metavar="FILE",
        type=Path,
        help="also rewrite sentences that nobody could: ParaDetox's .tsv file of them, or a text a line "
        "(at most 1,000)",
    )
    parser.add_argument("--json", action="store_true", help="print results.json instead of a table")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with share_run(arguments.run_dir) as run, explain_shortage(run.eval, GO_ON):
        evaluate(run, arguments)


def evaluate(run: Run, arguments: argparse.Namespace) -> None:
    splits, settings = read_splits(run), run.recipe.eval
    rows = choose_rows(run, splits, arguments.source, arguments.split, arguments.limit)
    unrewritten = choose_unrewritten(run, splits, arguments.unrewritten) if arguments.unrewritten else None

    from eval.adapter import open_adapter
    from eval.answers import generate_answers
    from eval.protocols import resolve_models
    from eval.report import print_report, write_report
    from eval.scoring import Circumstances, score_run
    from sft.machine import join_processes

    adapter, state = open_adapter(run), join_processes()
    commits = resolve_models(settings.protocols, settings.pins)
    circumstances = Circumstances(adapter, settings, splits, commits, state.num_processes)
    journal = rows.folder / "unfinished"
    answers = generate_answers(circumstances, rows, unrewritten, journal)
    if state.is_main_process:
        evaluation = score_run(circumstances, rows, unrewritten, answers)
        write_report(run, rows.folder, evaluation, settings.samples)
        shutil.rmtree(journal, ignore_errors=True)
        if arguments.json:
            print(json.dumps(evaluation.results.to_json()))
        else:
            print_report(run, rows.folder, evaluation.results, evaluation.predictions)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
