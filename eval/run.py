"""Evaluate a run's adapter: accelerate launch eval/run.py RUN_DIR [--source FILE] [--split test] [--limit N]"""

import argparse

from eval.rows import choose_rows, read_split
from sft.recipe import load_recipe, parse_count, run_command
from sft.run_dir import open_run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="accelerate launch eval/run.py", description="Rewrite the test sentences of a run, and score the rewrites."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a finished run, such as runs/tiny")
    parser.add_argument("--source", metavar="FILE", help="evaluate this .tsv, .csv, .jsonl or .parquet file instead")
    parser.add_argument("--split", choices=["test", "validation"], default="test", help="split of the run (default: test)")
    parser.add_argument("--limit", metavar="N", type=parse_count, help="only the first N rows")
    arguments = parser.parse_args()
    run = open_run(arguments.run_dir)
    rows = choose_rows(run, arguments.source, arguments.split, arguments.limit)
    train, settings = read_split(run, "train"), load_recipe(run.recipe).eval

    from eval.baselines import fit_lexicon
    from eval.generate import open_adapter, rewrite_texts
    from eval.report import complete_outputs, describe_results, print_results, score_systems, write_report
    from sft.model import join_processes

    adapter = open_adapter(run)
    state = join_processes()
    texts, references = [example.toxic for example in rows.examples], [example.references for example in rows.examples]
    generated: dict[str, list[str]] = {}
    generated["adapter"], seconds = rewrite_texts(adapter, texts)
    if "base" in settings.baselines:
        generated["base"], _ = rewrite_texts(adapter, texts, tuned=False)
    if state.is_main_process:
        lexicon = fit_lexicon(train)
        outputs = complete_outputs(generated, texts, lexicon, settings.baselines)
        results = describe_results(adapter, rows, score_systems(outputs, references, lexicon), seconds, state.num_processes)
        write_report(run, rows, generated, results, settings.samples)
        print_results(run, rows.folder)
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    run_command(main)
