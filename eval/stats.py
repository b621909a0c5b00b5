"""Uncertainty: bootstrap confidence intervals over source sentences, and paired differences on the same rows."""

from dataclasses import asdict, dataclass

import numpy as np

from eval.metrics import Score

RESAMPLES = 1000
LEVEL = 95  # per cent
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A value, and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def describe(self) -> dict[str, float]:
        return asdict(self)

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Resampled:
    """A score, and the metric's values on RESAMPLES draws of its rows; shape (RESAMPLES,)."""

    score: Score
    values: np.ndarray


def resample(score: Score) -> Resampled:
    """Draw a score's rows with replacement, as often as there are rows, and compute the metric on each draw.

    The draws are the same for any two scores with the same number of rows: their values pair up.
    """
    rows = len(score.statistics)
    draws = np.random.default_rng(SEED).integers(rows, size=(RESAMPLES, rows))
    return Resampled(score, np.array([score.combine(score.statistics[draw].sum(axis=0)) for draw in draws]))


def bound(value: float, values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def estimate(system: Resampled) -> Interval:
    """Return a score with its percentile bootstrap interval (Koehn 2004, "Statistical Significance Tests…", EMNLP)."""
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
