"""Results -> results.json, predictions, samples, plots and the table in the terminal."""

import html
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.baselines import delete_listed
from eval.generate import Adapter
from eval.metrics import References, Score, compute_scores
from eval.rows import EvalRows
from eval.stats import LEVEL, RESAMPLES, SEED, Interval, compare, estimate, resample
from sft.data import count
from sft.prompt import TEMPLATE
from sft.run_dir import RunDir, draw_figure, read_json, read_json_lines, write_json, write_json_lines, write_text

LABELS = {"bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "listed": "listed words"}
SYSTEMS = {
    "adapter": "this adapter",
    "base": "untuned base",
    "delete": "listed words cut",
    "copy": "input copied",
}
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "sacrebleu", "rouge_score", "numpy")
SCHEMA = 2


def complete_outputs(
    generated: Mapping[str, list[str]], texts: Sequence[str], lexicon: Sequence[str], baselines: Sequence[str]
) -> dict[str, list[str]]:
    """Return each system's outputs, the generated ones and those of the baselines that need no model."""
    outputs = dict(generated)
    if "delete" in baselines and lexicon:
        listed = frozenset(lexicon)
        outputs["delete"] = [delete_listed(text, listed) for text in texts]
    if "copy" in baselines:
        outputs["copy"] = list(texts)
    return outputs


def score_systems(
    outputs: Mapping[str, Sequence[str]], references: References, lexicon: Sequence[str]
) -> dict[str, dict[str, Score]]:
    """Return the scores of each system, on the same rows."""
    return {name: compute_scores(texts, references, lexicon) for name, texts in outputs.items()}


def describe_systems(systems: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """Return `systems` and `differences` of results.json: all with intervals, the latter the adapter's to each baseline."""
    samples = {system: {name: resample(score) for name, score in scores.items()} for system, scores in systems.items()}
    return {
        "systems": {
            system: {name: {**estimate(it).describe(), "signature": it.score.signature} for name, it in scores.items()}
            for system, scores in samples.items()
        },
        "differences": {
            system: {name: compare(samples["adapter"][name], it).describe() for name, it in scores.items()}
            for system, scores in samples.items()
            if system != "adapter"
        },
        "intervals": {"method": "percentile bootstrap over sentences", "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
    }


def describe_results(
    adapter: Adapter, rows: EvalRows, systems: Mapping[str, Mapping[str, Score]], seconds: float, processes: int
) -> dict[str, Any]:
    """Return the content of results.json: the scores, and all that they are bound to."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapter": {"sha256": adapter.hash_weights()},
        "base": adapter.base.describe(),
        "quantization": adapter.quantization,
        "tokens": adapter.tokens,
        "prompt": TEMPLATE,
        "data": rows.description,
        "generation": adapter.settings.describe(),
        **describe_systems(systems),
        "generation_seconds": round(seconds, 1),
        "processes": processes,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def write_report(
    run: RunDir, rows: EvalRows, generated: Mapping[str, Sequence[str]], results: Mapping[str, Any], samples: int
) -> None:
    """Write predictions, samples, plots and last results.json, which so never speaks of files that are not there."""
    lines = []
    for index, example in enumerate(rows.examples):
        line: dict[str, Any] = {"id": example.id, "toxic": example.toxic, "references": example.references}
        line["prediction"] = generated["adapter"][index]
        if "base" in generated:
            line["base"] = generated["base"][index]
        lines.append(line)
    write_json_lines(rows.folder / "predictions.jsonl", lines)
    write_text(rows.folder / "samples.md", format_samples(lines, samples, rows.description["source"]))
    plots = find_plots(run, rows.folder)
    plot_scores(results, plots / "scores.png")
    plot_lengths(lines, plots / "lengths.png")
    write_json(rows.folder / "results.json", results)


def find_plots(run: RunDir, folder: Path) -> Path:
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
        if "base" in line:
            text.append(f"- untuned base: {escape_markdown(line['base'])}")
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
    if name == "listed":
        return f"{value:.1%}"
    return f"{value:.3f}" if name.startswith("rouge") else f"{value:.1f}"


def name_metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels of the metrics in results.json, by their names."""
    return {name: LABELS[name] for name in results["systems"]["adapter"]}


def describe_difference(results: Mapping[str, Any], system: str) -> str:
    """Return how far the adapter's BLEU is above a baseline's, such as "BLEU +2.1 [1.3, 2.9] against input copied"."""
    interval = Interval(**results["differences"][system]["bleu"])
    text = f"BLEU {interval.value:+.1f} [{interval.low:.1f}, {interval.high:.1f}] against {SYSTEMS[system]}"
    return text if interval.excludes_zero() else f"{text}: not significant, the interval holds 0"


def print_results(run: RunDir, folder: Path) -> None:
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
    table = Table("", *name_metrics(results).values(), title=Text(title))
    for system, scores in results["systems"].items():
        table.add_row(SYSTEMS[system], *[format_value(name, score["value"]) for name, score in scores.items()])
    console.print(table)
    for system in results["differences"]:
        console.print(describe_difference(results, system), highlight=False)
    if data["left_out_as_seen"]:
        console.print(f"{count(data['left_out_as_seen'], 'sentence')} left out: the run trained on them.", highlight=False)
    for line in choose_samples(lines, 3):
        console.print(Text.assemble(("toxic      ", "dim"), line["toxic"]))
        console.print(Text.assemble(("rewritten  ", "dim"), (line["prediction"], "bold")))
    for label, path in (
        ("scores", folder / "results.json"),
        ("predictions", folder / "predictions.jsonl"),
        ("samples", folder / "samples.md"),
        ("plots", find_plots(run, folder)),
        ("adapter", run.adapter),
        ("card", run.publish / "README.md"),
    ):
        if path.exists():
            console.print(f"{label:<12}{path}", highlight=False, soft_wrap=True)


# ----------------------------------------------------------------------------------------------------------- plots


def plot_scores(results: Mapping[str, Any], path: Path) -> None:
    """Draw each system's scores as bars with their intervals, all on the scale of 0 to 100."""
    with draw_figure(path) as axes:
        systems, labels = results["systems"], name_metrics(results)
        factors = [1 if name in ("bleu", "chrf") else 100 for name in labels]
        width = 0.8 / len(systems)
        for number, (system, scores) in enumerate(systems.items()):
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
            bars = axes.bar(places, heights, width * 0.95, label=SYSTEMS[system], yerr=margins, ecolor="0.3")
            axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
        axes.set_xticks(
            range(len(labels)), [f"{label}\n(less is better)" if name == "listed" else label for name, label in labels.items()]
        )
        axes.set(ylim=(0, 112), ylabel=f"score (0 to 100), with {LEVEL} % confidence intervals")
        axes.set_title(f"{results['data']['rows']:,} rows of {results['data']['source']}", parse_math=False)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(ncols=len(systems), fontsize=8, loc="upper left")


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
