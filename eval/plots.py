"""Pictures of an evaluation: the scores of each system, and how long its outputs are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.results import Results
from eval.stats import LEVEL
from eval.tables import LESS_IS_BETTER, OF_HUNDRED, name_metrics, tabulate_ceiling, tabulate_systems
from sft.plots import draw_figure

PLOTTED = ("bleu", "chrf", "rougeL", "toxicity", "joint")


def plot_scores(results: Results, path: Path) -> None:
    """Draw each system's scores as bars with intervals, from 0 to 100; on fewer sentences, hatched."""
    with draw_figure(path) as axes:
        systems, apart = tabulate_systems(results), tabulate_ceiling(results)
        labels = {name: label for name, label in name_metrics(results.systems).items() if name in PLOTTED}
        width = 0.8 / len(systems)
        for number, (label, scores) in enumerate(systems.items()):
            scaled = [(scores[name], 1 if name in OF_HUNDRED else 100) for name in labels]
            heights = [score.value * factor for score, factor in scaled]
            # A percentile interval need not hold the value itself; a bar can't be drawn below zero length.
            margins = [
                [
                    max(0, height - score.low * factor)
                    for height, (score, factor) in zip(heights, scaled, strict=True)
                ],
                [
                    max(0, score.high * factor - height)
                    for height, (score, factor) in zip(heights, scaled, strict=True)
                ],
            ]
            places = [index + (number - (len(systems) - 1) / 2) * width for index in range(len(labels))]
            hatch = "///" if label in apart else None
            bars = axes.bar(
                places, heights, width * 0.95, label=label, yerr=margins, ecolor="0.3", hatch=hatch
            )
            axes.bar_label(bars, fmt="%.0f", fontsize=6, padding=2)
        axes.set_xticks(
            range(len(labels)),
            [
                f"{label}\n(less is better)" if name in LESS_IS_BETTER else label
                for name, label in labels.items()
            ],
        )
        axes.set(ylim=(0, 105), ylabel=f"0 to 100, with {LEVEL} % confidence intervals")
        axes.set_title(f"{results.data.rows:,} rows of {results.data.source}", parse_math=False)
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
            mean = sum(lengths) / len(lengths)
            axes.hist(lengths, bins=bins, histtype="step", linewidth=1.6, label=f"{label}, mean {mean:.1f}")
        axes.set(xlabel="words", ylabel="sentences", title="Lengths")
        axes.grid(alpha=0.3)
        axes.legend()
