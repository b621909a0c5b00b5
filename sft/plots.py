"""Pictures: matplotlib axes written to a file, and the curve of the loss."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.storage import replace_file


@contextlib.contextmanager
def draw_figure(path: Path) -> Iterator[Any]:
    """Yield matplotlib axes, and write what is drawn on them to `path` as a PNG when the block ends well."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    yield axes
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss over steps."""
    with draw_figure(path) as axes:
        for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        axes.set(xlabel="step", ylabel="loss on answer tokens (nats)", title="Loss")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
