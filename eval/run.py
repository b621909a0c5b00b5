"""Evaluate a run's adapter: accelerate launch eval/run.py RUN_DIR [--source FILE] [--split test] [--limit N]"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.outputs import print_file_scores, score_files
from eval.rows import choose_rows, choose_shots, choose_unrewritten
from sft.command import parse_count, run_command
from sft.run_dir import open_run
from sft.schema import EvalConfig

if TYPE_CHECKING:
    from eval.generate import Adapter
    from sft.data import Example


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="accelerate launch eval/run.py",
        description="Rewrite the test sentences of a run, and score the rewrites; or score anybody's outputs, without a model.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", nargs="?", help="a finished run, such as runs/tiny")
    parser.add_argument("--source", metavar="FILE", help="evaluate this .tsv, .csv, .jsonl or .parquet file instead")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="split of the run (default: test)")
    parser.add_argument("--limit", metavar="N", type=parse_count, help="only the first N rows")
    parser.add_argument(
        "--unrewritten",
        metavar="FILE",
        type=Path,
        help="also rewrite sentences that nobody could: ParaDetox's .tsv file of them, or a text a line (at most 1,000)",
    )
    files = parser.add_argument_group("anybody's outputs, instead of RUN_DIR")
    files.add_argument("--predictions", metavar="FILE", type=Path, help="a text a line, or .jsonl with `prediction`")
    files.add_argument("--references", metavar="FILE", type=Path, help="their rows, in order: a corpus, or a reference a line")
    files.add_argument("--train", metavar="SOURCE", help="a corpus to fit the toxicity classifier and the word list on")
    parser.add_argument("--json", action="store_true", help="print results.json instead of a table")
    arguments = parser.parse_args()
    both = arguments.predictions and arguments.references
    if bool(arguments.run_dir) == bool(both) or (arguments.run_dir and (arguments.predictions or arguments.references)):
        parser.error("expected either RUN_DIR, or --predictions and --references")
    if arguments.unrewritten and not arguments.run_dir:
        parser.error("--unrewritten needs RUN_DIR, whose adapter rewrites the sentences")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if not arguments.run_dir:
        print_file_scores(score_files(arguments.predictions, arguments.references, arguments.train), arguments.json)
        return
    run = open_run(arguments.run_dir)
    rows = choose_rows(run, arguments.source, arguments.split, arguments.limit)
    unrewritten = choose_unrewritten(run, arguments.unrewritten) if arguments.unrewritten else None
    train, settings = run.splits["train"], run.recipe.eval

    from eval.generate import open_adapter, rewrite_texts
    from eval.protocols import describe_protocols, resolve_models, score_protocols
    from eval.report import describe_results, print_results, round_scores, write_report
    from eval.results import complete_outputs, describe_scores, describe_unrewritten
    from eval.stress import judge_outputs, list_texts
    from eval.toxicity import fit_toxicity
    from sft.machine import join_processes

    adapter = open_adapter(run)
    state = join_processes()
    commits = resolve_models(settings.protocols, settings.pins)
    texts, journal = [example.toxic for example in rows.examples], rows.folder / "unfinished"
    generated, seconds = generate_systems(adapter, settings, train, texts, journal)
    stressed, _ = rewrite_texts(adapter, list_texts(), journal) if settings.stress else ([], 0)
    lines = unrewritten.lines if unrewritten else []
    attempts, _ = rewrite_texts(adapter, [line["toxic"] for line in lines], journal) if lines else ([], 0)
    if state.is_main_process:
        model = fit_toxicity(train)
        outputs = complete_outputs(generated, texts, model, settings.baselines)
        human = "human" in settings.baselines
        scores, sentences = describe_scores(rows.examples, outputs, model, human)
        accuracy = model.measure_accuracy(run.splits["validation"])
        scores["stress"] = judge_outputs(stressed) if settings.stress else []
        judged = score_protocols(settings.protocols, commits, rows.examples, outputs, human)
        scores["protocols"] = describe_protocols(judged, commits)
        if unrewritten:
            lines = [line | {"prediction": attempt} for line, attempt in zip(lines, attempts, strict=True)]
            slices, values = describe_unrewritten(lines, model)
            lines = [line | {"scores": round_scores(value)} for line, value in zip(lines, values, strict=True)]
            scores["unrewritten"] = unrewritten.description | {"slices": slices}
        results = describe_results(adapter, rows, scores, accuracy, seconds, state.num_processes)
        write_report(run, rows, generated, sentences, judged, results, model.lexicon, settings.samples, lines)
        shutil.rmtree(journal, ignore_errors=True)
        if arguments.json:
            print(json.dumps(results))
        else:
            print_results(run, rows.folder)
    state.wait_for_everyone()
    state.destroy_process_group()


def generate_systems(
    adapter: "Adapter", settings: EvalConfig, train: "Sequence[Example]", texts: Sequence[str], journal: Path
) -> tuple[dict[str, list[str]], float]:
    """Return the rewrites of each system that is generated, and the seconds of the adapter's."""
    from eval.generate import rewrite_texts

    generated: dict[str, list[str]] = {}
    generated["adapter"], seconds = rewrite_texts(adapter, texts, journal)
    if "base" in settings.baselines:
        generated["base"], _ = rewrite_texts(adapter, texts, journal, tuned=False)
    if "few_shot" in settings.baselines:
        generated["few_shot"], _ = rewrite_texts(adapter, texts, journal, tuned=False, shots=choose_shots(train))
    return generated, seconds


if __name__ == "__main__":
    run_command(main)
