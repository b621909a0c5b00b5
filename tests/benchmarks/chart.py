"""Draw the README's chart from the figures of the benchmarks: python tests/benchmarks/chart.py"""

import json
from pathlib import Path

import sides

from sft.plots import draw_figure

RATES = ("samples_per_second", "sentences_per_second")
LABELS = {
    "tiny": "embedded base",
    "560m": "BLOOM-560M shape",
    "3b": "BLOOM-3B shape",
    "7b1": "BLOOM-7B1 shape",
}


def main() -> None:
    rows = collect_rows(sides.FIGURES)
    names = list(dict.fromkeys(side for _, medians in rows for side in medians))
    with draw_figure(sides.FIGURES / "speed.png") as axes:
        for index, (_, medians) in enumerate(rows):
            speeds = {
                side: next(values[rate] for rate in RATES if rate in values)
                for side, values in medians.items()
            }
            for place, (side, speed) in enumerate(speeds.items()):
                height = 0.8 / len(speeds)
                y, ratio = index + (place - (len(speeds) - 1) / 2) * height, speed / min(speeds.values())
                label = side if side not in axes.get_legend_handles_labels()[1] else None
                axes.barh(y, ratio, height * 0.9, color=f"C{names.index(side)}", label=label)
                axes.text(ratio, y, f" {ratio:.1f} x ({speed:.3g}/s)", va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
        axes.set_xlabel("times as fast as the slowest (samples or sentences a second)")
        axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
        axes.invert_yaxis()
        axes.legend(fontsize=8)


def collect_rows(folder: Path) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """Return what was measured, with the figures of each side, from the files of `folder` but those of trials."""
    rows = []
    for path in [*sorted(folder.glob("train-*.json")), *sorted(folder.glob("generate-*.json"))]:
        figures = json.loads(path.read_text())
        if figures["layers"] is None:
            base, device = LABELS.get(figures["shape"], figures["shape"]), figures["device"].upper()
            beams = f", {figures['beams']} beams" if figures.get("beams", 1) > 1 else ""
            label = (
                f"training, {base},\n{figures['bits']} bit, {device}"
                if "bits" in figures
                else f"generation{beams},\n{base}, {device}"
            )
            rows.append((label, figures["medians"]))
    return rows


if __name__ == "__main__":
    main()
