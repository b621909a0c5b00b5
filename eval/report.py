"""The files of an evaluation's report, and the report in the terminal."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.page import render_page
from eval.plots import plot_lengths, plot_scores
from eval.results import GENERATED, RESULTS, Results
from eval.scoring import Evaluation
from eval.tables import SYSTEMS, print_scores, tabulate_protocol, tabulate_unrewritten
from sft.command import count, show
from sft.run_dir import Run
from sft.storage import write_json, write_json_lines, write_seal, write_text

SEALED = (RESULTS, "predictions.jsonl", "unrewritten.jsonl")


def write_report(run: Run, folder: Path, evaluation: Evaluation, samples: int) -> None:
    """Write all files, results.json and its seal last: it never tells of files that are missing.

    Args:
        folder: where all but the plots of the whole test split is written.
        samples: the number of rows that samples.md and the page show.
    """
    results, lines = evaluation.results, evaluation.predictions
    write_json_lines(folder / "predictions.jsonl", lines)
    if evaluation.unrewritten:
        write_json_lines(folder / "unrewritten.jsonl", evaluation.unrewritten)
    else:
        (folder / "unrewritten.jsonl").unlink(missing_ok=True)
    write_text(folder / "samples.md", format_samples(lines, samples, results.data.source))
    plots = find_plots(run, folder)
    plot_scores(results, plots / "scores.png")
    plot_lengths(lines, plots / "lengths.png")
    chosen, title = choose_samples(lines, samples), f"{run.root.resolve().name}: evaluation"
    page = render_page(title, results, chosen, evaluation.model.lexicon, plots)
    write_text(folder / "report.html", page)
    write_json(folder / RESULTS, results.to_json())
    written = [path for name in SEALED if (path := folder / name).is_file()]
    write_seal(folder, {path.name: path for path in written})


def find_plots(run: Run, folder: Path) -> Path:
    """Return where an evaluation's plots are: beside the loss for the test split, which is published."""
    return run.plots if folder == run.eval else folder / "plots"


def choose_samples(lines: Sequence[Mapping[str, Any]], number: int) -> list[Mapping[str, Any]]:
    """Return rows spread evenly over the split by their id, a hash: neither the best nor the first."""
    return sorted(lines, key=lambda line: line["id"])[:number]


def format_samples(lines: Sequence[Mapping[str, Any]], number: int, source: str) -> str:
    chosen = choose_samples(lines, number)
    text = [
        f"# Samples: {len(chosen)} of {count(len(lines), 'row')} of {escape_markdown(source)}",
        "",
        "Chosen by a hash of the sentence, not by hand. The sentences are toxic.",
    ]
    for line in chosen:
        text += ["", f"- toxic: {escape_markdown(line['toxic'])}"]
        text += [f"- **rewritten: {escape_markdown(line['prediction'])}**"]
        text += [f"- {SYSTEMS[name]}: {escape_markdown(line[name])}" for name in GENERATED if name in line]
        text += [f"- human: {escape_markdown(reference)}" for reference in line["references"]]
        text += ["", "---"]
    return "\n".join(text) + "\n"


def escape_markdown(text: str) -> str:
    """Return `text` as one line that renders as itself in Markdown: no markup, HTML, cell or link."""
    line = html.escape(show(" ".join(text.split())), quote=False)
    # An underscore between letters or digits is none of Markdown's; query_key_value stays readable.
    markup = r"[\\`*{}\[\]#|~$@^]|_(?![^\W_])|(?<![^\W_])_"
    line = re.sub(markup, lambda match: f"&#{ord(match[0])};", line)
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    return line or "&nbsp;"


def print_report(run: Run, folder: Path, results: Results, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print an evaluation's score tables, three of its predictions, and where its files are."""
    from rich.text import Text

    from sft.terminal import Terminal

    console, data = Terminal(), results.data
    title = f"{data.split or 'all'} rows of {data.source}: {data.rows:,}"
    if data.rows < data.rows_of:
        title += f", the first of {data.rows_of:,}"
    print_scores(results, title)
    print_further_tables(results)
    if data.left_out_as_seen:
        left_out = count(data.left_out_as_seen, "sentence")
        console.print(
            f"{left_out} left out: the run trained on them, or on ones near to them.", highlight=False
        )
    for line in choose_samples(lines, 3):
        console.print(Text.assemble(("toxic      ", "dim"), line["toxic"]))
        console.print(Text.assemble(("rewritten  ", "dim"), (line["prediction"], "bold")))
    for label, path in (
        ("scores", folder / RESULTS),
        ("predictions", folder / "predictions.jsonl"),
        ("samples", folder / "samples.md"),
        ("report", folder / "report.html"),
        ("plots", find_plots(run, folder)),
        ("adapter", run.adapter),
        ("card", run.publish / "README.md"),
    ):
        if path.exists():
            console.print(f"{label:<12}{path}", highlight=False, soft_wrap=True)


def print_further_tables(results: Results) -> None:
    """Print the scores of the protocols, and of sentences that annotators could not rewrite."""
    from rich.table import Table
    from rich.text import Text

    from sft.terminal import Terminal

    console = Terminal()
    for part in results.protocols:
        head, *rows = tabulate_protocol(part)
        table = Table(*head, title=part.source, caption=part.note)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if results.unrewritten:
        head, *rows = tabulate_unrewritten(results.unrewritten)
        title = Text(f"{results.unrewritten.source}: sentences that annotators could not rewrite")
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
