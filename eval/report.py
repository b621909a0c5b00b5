"""Results -> results.json, predictions, samples, plots and the table in the terminal."""

import html
import importlib.metadata
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.generate import Adapter
from eval.page import render_page
from eval.results import GENERATED, SCHEMA
from eval.rows import EvalRows
from eval.stats import LEVEL, Interval
from sft.command import count
from sft.plots import draw_figure
from sft.prompt import TEMPLATE
from sft.run_dir import Run
from sft.storage import read_json, read_json_lines, write_json, write_json_lines, write_text

# Those of a table; results.json has more.
LABELS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "toxicity": "toxicity",
    "listed": "listed words",
    "joint": "joint",
}
PRINTED = ("bleu", "chrf", "rougeL", "toxicity", "listed", "joint")  # what fits a terminal of 80 columns
PLOTTED = ("bleu", "chrf", "rougeL", "toxicity", "joint")
OF_HUNDRED = ("bleu", "chrf")  # on a scale of 0 to 100; the others, of 0 to 1
SHARES = ("listed", "copies")  # printed as percentages
LESS_IS_BETTER = ("toxicity", "listed")
SYSTEMS = {
    "adapter": "this adapter",
    "human": "people",
    "base": "untuned base",
    "few_shot": "few-shot base",
    "delete": "listed words cut",
    "copy": "input copied",
}
REASONS = {
    "all": "all",
    "toxic_content": "what it says is toxic",
    "unclear": "unclear",
    "not_toxic": "not toxic",
    "other_tick": "another reason",
}
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "sacrebleu", "rouge_score", "scikit-learn", "numpy")


def describe_results(
    adapter: Adapter, rows: EvalRows, scores: Mapping[str, Any], accuracy: float | None, seconds: float, processes: int
) -> dict[str, Any]:
    """Return the content of results.json: the scores, and all that they are bound to."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter": adapter.describe(),
        "base": adapter.base.describe(),
        "quantization": adapter.quantization,
        "tokens": adapter.tokens,
        "prompt": TEMPLATE,
        "data": rows.description,
        "generation": adapter.settings.describe(),
        **scores,
        "toxicity_accuracy": accuracy,
        "generation_seconds": round(seconds, 1),
        "processes": processes,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def write_report(
    run: Run,
    rows: EvalRows,
    generated: Mapping[str, Sequence[str]],
    sentences: Sequence[Mapping[str, float]],
    judged: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    lexicon: Collection[str],
    samples: int,
    unrewritten: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write predictions, samples, plots, page and last results.json, which so never speaks of files that are not there."""
    lines = []
    for index, example in enumerate(rows.examples):
        line: dict[str, Any] = {"id": example.id, "toxic": example.toxic, "references": example.references}
        line["prediction"] = generated["adapter"][index]
        line |= {system: texts[index] for system, texts in generated.items() if system != "adapter"}
        line["scores"] = round_scores(sentences[index])
        if judged[index]:
            line["protocols"] = judged[index]
        lines.append(line)
    write_json_lines(rows.folder / "predictions.jsonl", lines)
    if unrewritten:
        write_json_lines(rows.folder / "unrewritten.jsonl", unrewritten)
    else:
        (rows.folder / "unrewritten.jsonl").unlink(missing_ok=True)
    write_text(rows.folder / "samples.md", format_samples(lines, samples, rows.description["source"]))
    plots = find_plots(run, rows.folder)
    plot_scores(results, plots / "scores.png")
    plot_lengths(lines, plots / "lengths.png")
    chosen = choose_samples(lines, samples)
    page = render_page(f"{run.root.resolve().name}: evaluation", results, chosen, lexicon, plots)
    write_text(rows.folder / "report.html", page)
    write_json(rows.folder / "results.json", results)


def round_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Return a sentence's scores as its line of predictions.jsonl has them."""
    return {name: round(value, 4) for name, value in scores.items()}


def find_plots(run: Run, folder: Path) -> Path:
    """Return where an evaluation's plots lie: beside the loss for the test split, which is published, else with it."""
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
        text += ["", f"- toxic: {escape_markdown(line['toxic'])}", f"- **rewritten: {escape_markdown(line['prediction'])}**"]
        text += [f"- {SYSTEMS[name]}: {escape_markdown(line[name])}" for name in GENERATED if name in line]
        text += [f"- human: {escape_markdown(reference)}" for reference in line["references"]]
        text += ["", "---"]
    return "\n".join(text) + "\n"


def escape_markdown(text: str) -> str:
    """Return `text` as one line that renders as itself inside a Markdown line: no markup, HTML, cell, link or formula."""
    line = html.escape(" ".join(text.split()), quote=False)
    line = re.sub(r"[\\`*_{}\[\]#|~$@^]", lambda match: f"&#{ord(match[0])};", line)
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    return line or "&nbsp;"


def format_value(name: str, value: float) -> str:
    """Return a score with the digits that its metric's own tools print."""
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.1f}" if name in OF_HUNDRED else f"{value:.3f}"


def format_interval(name: str, score: Mapping[str, float], signed: bool = False) -> str:
    """Return a score or a difference with its interval, such as "61.2 [59.5, 63.0]"."""
    value = format_value(name, score["value"])
    sign = "+" if signed and score["value"] > 0 else ""
    return f"{sign}{value} [{format_value(name, score['low'])}, {format_value(name, score['high'])}]"


def name_system(system: str) -> str:
    """Return a system's label; other systems, such as the runs of a comparison, go by their own names."""
    return SYSTEMS.get(system, system)


def tabulate_systems(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the rows of a table of scores by their labels: the systems' scores, and last those of `tabulate_ceiling`."""
    rows = {name_system(system): scores for system, scores in results["systems"].items() if system != "human"}
    return rows | tabulate_ceiling(results)


def tabulate_ceiling(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the scores of people and of the first system on the same sentences and references, by labels; {} without them.

    Both are fewer than those of the other systems, and so are scores: people can be compared with no other row.
    """
    if "ceiling" not in results:
        return {}
    ceiling = results["ceiling"]
    first = next(iter(ceiling["systems"]))
    return {
        f"{name_system('human')}, on {count(ceiling['rows'], 'sentence')}": ceiling["systems"]["human"],
        f"{name_system(first)}, on these {ceiling['rows']:,}": ceiling["systems"][first],
    }


def name_metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the metrics of a table, by their names; those that the results have."""
    scores = next(iter(results["systems"].values()))
    return {name: label for name, label in LABELS.items() if name in scores}


def describe_differences(results: Mapping[str, Any]) -> list[str]:
    """Return how far the first system's BLEU is above each other's, such as "BLEU +2.1 [1.3, 2.9] against input copied".

    Beside it stand the other metrics whose differences are not significant.
    """
    lines = [describe_difference(results, system) for system in results["differences"]]
    if "ceiling" in results:
        ceiling = results["ceiling"]
        first = next(iter(ceiling["systems"]))
        bleu = ceiling["systems"][first]["bleu"]["value"]
        rows = f" on the {count(ceiling['rows'], 'sentence')} with several rewrites, each held against the others"
        lines.append(describe_difference(ceiling, "human", f"{rows}, where {name_system(first)} has {bleu:.1f}"))
    return lines


def describe_difference(results: Mapping[str, Any], system: str, rows: str = "") -> str:
    differences = {name: Interval(**difference) for name, difference in results["differences"][system].items()}
    bleu = differences["bleu"]
    text = f"BLEU {bleu.value:+.1f} [{bleu.low:.1f}, {bleu.high:.1f}] against {name_system(system)}{rows}"
    noise = {name: label for name, label in LABELS.items() if name in differences and not differences[name].excludes_zero()}
    if noise.pop("bleu", None):
        text += " (not significant, the interval holds 0)"
    return f"{text}; inside the noise: {', '.join(noise.values())}" if noise else text


def tabulate_protocol(part: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a protocol's table, its head first: as in `tabulate_systems`, each with its measures' intervals."""
    measures = list(next(iter(part["systems"].values())))
    rows = [[part["protocol"], *measures]]
    for label, scores in tabulate_systems(part).items():
        rows.append([label, *(format_interval(measure, scores[measure]) for measure in measures)])
    return rows


def tabulate_unrewritten(part: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of sentences that annotators could not rewrite, its head first."""
    head = ["could not be rewritten", "number", "toxicity", "listed words", "unchanged", "joint"]
    rows = [[*head, *(f"joint, {SYSTEMS[name]}" for name in part["slices"][0]["systems"] if name != "adapter")]]
    for piece in part["slices"]:
        scores, *others = piece["systems"].values()
        cells = [format_interval("toxicity", scores["toxicity"])]
        cells += [format_value(name, scores[name]["value"]) if name in scores else "" for name in ("listed", "copies")]
        cells += [
            format_interval("joint", scores["joint"]),
            *(format_value("joint", other["joint"]["value"]) for other in others),
        ]
        rows.append([REASONS.get(piece["slice"], piece["slice"]), f"{piece['rows']:,}", *cells])
    return rows


def print_scores(results: Mapping[str, Any], title: str) -> None:
    """Print the table of the systems' scores, and the first one's differences to the others."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    labels = {name: label for name, label in name_metrics(results).items() if name in PRINTED}
    table = Table("", *labels.values(), title=Text(title))
    for label, scores in tabulate_systems(results).items():
        table.add_row(Text(label), *[format_value(name, scores[name]["value"]) for name in labels])
    console.print(table)
    for difference in describe_differences(results):
        console.print(difference, highlight=False, markup=False)


def print_results(run: Run, folder: Path) -> None:
    """Print an evaluation's score table, three samples, and where everything lies."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    results, lines = read_json(folder / "results.json"), read_json_lines(folder / "predictions.jsonl")
    data = results["data"]
    title = f"{data['split'] or 'all'} rows of {data['source']}: {data['rows']:,}"
    if data["rows"] < data["rows_of"]:
        title += f", the first of {data['rows_of']:,}"
    print_scores(results, title)
    for part in results.get("protocols", ()):
        head, *rows = tabulate_protocol(part)
        table = Table(*head, title=part["source"], caption=part["note"])
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if "unrewritten" in results:
        head, *rows = tabulate_unrewritten(results["unrewritten"])
        table = Table(*head, title=Text(f"{results['unrewritten']['source']}: sentences that annotators could not rewrite"))
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    if data["left_out_as_seen"]:
        left_out = count(data["left_out_as_seen"], "sentence")
        console.print(f"{left_out} left out: the run trained on them, or on ones near to them.", highlight=False)
    for line in choose_samples(lines, 3):
        console.print(Text.assemble(("toxic      ", "dim"), line["toxic"]))
        console.print(Text.assemble(("rewritten  ", "dim"), (line["prediction"], "bold")))
    for label, path in (
        ("scores", folder / "results.json"),
        ("predictions", folder / "predictions.jsonl"),
        ("samples", folder / "samples.md"),
        ("report", folder / "report.html"),
        ("plots", find_plots(run, folder)),
        ("adapter", run.adapter),
        ("card", run.publish / "README.md"),
    ):
        if path.exists():
            console.print(f"{label:<12}{path}", highlight=False, soft_wrap=True)


# ----------------------------------------------------------------------------------------------------------- plots


def plot_scores(results: Mapping[str, Any], path: Path) -> None:
    """Draw each system's scores as bars with their intervals, all on the scale of 0 to 100; on fewer sentences, hatched."""
    with draw_figure(path) as axes:
        systems, apart = tabulate_systems(results), tabulate_ceiling(results)
        labels = {name: label for name, label in name_metrics(results).items() if name in PLOTTED}
        factors = [1 if name in OF_HUNDRED else 100 for name in labels]
        width = 0.8 / len(systems)
        for number, (label, scores) in enumerate(systems.items()):
            heights, lows, highs = (
                [scores[name][part] * factor for name, factor in zip(labels, factors, strict=True)]
                for part in ("value", "low", "high")
            )
            # A percentile interval need not hold the value itself; a bar can't be drawn below zero length.
            margins = [
                [max(0, height - low) for height, low in zip(heights, lows, strict=True)],
                [max(0, high - height) for height, high in zip(heights, highs, strict=True)],
            ]
            places = [index + (number - (len(systems) - 1) / 2) * width for index in range(len(labels))]
            hatch = "///" if label in apart else None
            bars = axes.bar(places, heights, width * 0.95, label=label, yerr=margins, ecolor="0.3", hatch=hatch)
            axes.bar_label(bars, fmt="%.0f", fontsize=6, padding=2)
        axes.set_xticks(
            range(len(labels)),
            [f"{label}\n(less is better)" if name in LESS_IS_BETTER else label for name, label in labels.items()],
        )
        axes.set(ylim=(0, 105), ylabel=f"0 to 100, with {LEVEL} % confidence intervals")
        axes.set_title(f"{results['data']['rows']:,} rows of {results['data']['source']}", parse_math=False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(ncols=3, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def plot_lengths(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw how many words the inputs, the outputs and the human rewrites have."""
    columns = {
        "input": [len(line["toxic"].split()) for line in lines],
        "output": [len(line["prediction"].split()) for line in lines],
        "human (first)": [len(line["references"][0].split()) for line in lines],
    }
    bins = range(max(max(lengths) for lengths in columns.values()) + 2)
    with draw_figure(path) as axes:
        for label, lengths in columns.items():
            axes.hist(
                lengths, bins=bins, histtype="step", linewidth=1.6, label=f"{label}, mean {sum(lengths) / len(lengths):.1f}"
            )
        axes.set(xlabel="words", ylabel="sentences", title="Lengths")
        axes.grid(alpha=0.3)
        axes.legend()
