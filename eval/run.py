"""Evaluate a run's adapter: accelerate launch eval/run.py RUN_DIR [--source FILE] [--split test] [--limit N]"""

import argparse
import json
import shutil
from pathlib import Path

from eval.outputs import print_file_scores, score_files
from eval.rows import choose_rows, read_split
from sft.recipe import load_recipe, parse_count, run_command
from sft.run_dir import open_run


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="accelerate launch eval/run.py",
        description="Rewrite the test sentences of a run, and score the rewrites; or score anybody's outputs, without a model.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", nargs="?", help="a finished run, such as runs/tiny")
    parser.add_argument("--source", metavar="FILE", help="evaluate this .tsv, .csv, .jsonl or .parquet file instead")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="split of the run (default: test)")
    parser.add_argument("--limit", metavar="N", type=parse_count, help="only the first N rows")
    files = parser.add_argument_group("anybody's outputs, instead of RUN_DIR")
    files.add_argument("--predictions", metavar="FILE", type=Path, help="a text a line, or .jsonl with `prediction`")
    files.add_argument("--references", metavar="FILE", type=Path, help="their rows, in order: a corpus, or a reference a line")
    files.add_argument("--train", metavar="SOURCE", help="a corpus to fit the toxicity classifier and the word list on")
    parser.add_argument("--json", action="store_true", help="print results.json instead of a table")
    arguments = parser.parse_args()
    both = arguments.predictions and arguments.references
    if bool(arguments.run_dir) == bool(both) or (arguments.run_dir and (arguments.predictions or arguments.references)):
        parser.error("expected either RUN_DIR, or --predictions and --references")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if not arguments.run_dir:
        print_file_scores(score_files(arguments.predictions, arguments.references, arguments.train), arguments.json)
        return
    run = open_run(arguments.run_dir)
    rows = choose_rows(run, arguments.source, arguments.split, arguments.limit)
    train, settings = read_split(run, "train"), load_recipe(run.recipe).eval

    from eval.baselines import choose_shots
    from eval.generate import open_adapter, rewrite_texts
    from eval.protocols import resolve_models, score_protocols
    from eval.report import describe_results, print_results, write_report
    from eval.results import complete_outputs, describe_scores
    from eval.stress import judge_outputs, list_texts
    from eval.toxicity import fit_toxicity
    from sft.model import join_processes

    adapter = open_adapter(run)
    state = join_processes()
    commits = resolve_models(settings.protocols, settings.pins)
    texts, journal = [example.toxic for example in rows.examples], rows.folder / "unfinished"
    generated: dict[str, list[str]] = {}
    generated["adapter"], seconds = rewrite_texts(adapter, texts, journal)
    if "unpenalised" in settings.baselines and adapter.settings.listed_penalty:
        generated["unpenalised"], _ = rewrite_texts(adapter, texts, journal, penalised=False)
    if "base" in settings.baselines:
        generated["base"], _ = rewrite_texts(adapter, texts, journal, tuned=False)
    if "few_shot" in settings.baselines:
        generated["few_shot"], _ = rewrite_texts(adapter, texts, journal, tuned=False, shots=choose_shots(train))
    stressed, _ = rewrite_texts(adapter, list_texts(), journal) if settings.stress else ([], 0)
    if state.is_main_process:
        model = fit_toxicity(train)
        outputs = complete_outputs(generated, texts, model, settings.baselines)
        scores, sentences = describe_scores(rows.examples, outputs, model, "human" in settings.baselines)
        accuracy = model.measure_accuracy(read_split(run, "validation"))
        scores["stress"] = judge_outputs(stressed) if settings.stress else []
        scores["protocols"] = score_protocols(settings.protocols, commits, rows.examples, outputs)
        results = describe_results(adapter, rows, scores, accuracy, seconds, state.num_processes)
        write_report(run, rows, generated, sentences, results, model.lexicon, settings.samples)
        shutil.rmtree(journal, ignore_errors=True)
        if arguments.json:
            print(json.dumps(results))
        else:
            print_results(run, rows.folder)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
