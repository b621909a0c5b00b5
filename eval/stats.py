"""Uncertainty: bootstrap intervals over source sentences, and paired differences on the same rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics import Score
from eval.results import Interval

RESAMPLES = 1000
LEVEL = 95  # per cent
SEED = 0
BLOCK = 5_000_000  # counts held at a time: 40 MB


@dataclass(frozen=True)
class Resampled:
    """A score, and the metric's values on RESAMPLES draws of its rows; shape (RESAMPLES,)."""

    score: Score
    values: np.ndarray


def resample(scores: Sequence[Score]) -> list[Resampled]:
    """Draw the rows with replacement, as many as there are, and compute each score's metric on each draw.

    All scores are of the same rows, and share the draws, also with those of another call: their values pair
    up.
    """
    rows = len(scores[0].statistics)
    columns = np.hstack([score.statistics for score in scores])
    sums = np.vstack([counts @ columns for counts in draw_counts(rows)])
    borders = np.cumsum([score.statistics.shape[1] for score in scores])[:-1]
    return [
        Resampled(score, np.array([score.combine(row) for row in part]))
        for score, part in zip(scores, np.hsplit(sums, borders), strict=True)
    ]


def draw_counts(rows: int) -> Iterator[np.ndarray]:
    """Yield how often each row is drawn, in blocks of shape (draws, rows), RESAMPLES draws in all."""
    generator = np.random.default_rng(SEED)
    block = max(1, BLOCK // rows)
    for start in range(0, RESAMPLES, block):
        draws = generator.integers(rows, size=(min(block, RESAMPLES - start), rows))
        yield np.array([np.bincount(draw, minlength=rows) for draw in draws], dtype=float)


def bound(value: float, values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def estimate(system: Resampled) -> Interval:
    """Return a score with its percentile bootstrap interval (Koehn 2004, EMNLP)."""
    return bound(system.score.value, system.values)


def compare(system: Resampled, baseline: Resampled) -> Interval:
    """Return how far `system` is above `baseline`, with the interval of the paired difference.

    Raises:
        ValueError: other metrics, or numbers of rows that differ.
    """
    one, other = system.score, baseline.score
    if one.signature != other.signature or len(one.statistics) != len(other.statistics):
        raise ValueError(
            f"only scores of one metric on the same rows can be compared; got {one.signature} on "
            f"{len(one.statistics)} rows and {other.signature} on {len(other.statistics)}"
        )
    return bound(one.value - other.value, system.values - baseline.values)
