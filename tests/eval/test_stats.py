"""Intervals and paired differences, against sacrebleu's own bootstrap and against what is known exactly."""

import numpy as np
import pytest

from eval.metrics import compute_bleu, compute_chrf, compute_scores, score_mean
from eval.stats import Resampled, compare, estimate, resample
from sft.data import read_corpus
from sft.lexicon import delete_listed
from sft.schema import DataConfig
from sft.storage import PROJECT

EXAMPLES = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples[:120]
REFERENCES = [example.references for example in EXAMPLES]
COPIES = [example.toxic for example in EXAMPLES]
DELETED = [delete_listed(text, {"fucking", "shit", "damn", "idiot", "stupid", "hell"}) for text in COPIES]


def sample(values: list[float]) -> Resampled:
    return resample([score_mean("x", "x", values)])[0]


def test_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(3).normal(5, 2, size=400).tolist()
    interval = estimate(sample(values))
    error = 1.96 * np.std(values) / 20
    assert interval.value == pytest.approx(np.mean(values))
    assert interval.low == pytest.approx(np.mean(values) - error, abs=0.05)
    assert interval.high == pytest.approx(np.mean(values) + error, abs=0.05)


def test_intervals_agree_with_sacrebleus_bootstrap() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    streams = [
        [refs[n] if n < len(refs) else None for refs in REFERENCES] for n in range(max(map(len, REFERENCES)))
    ]
    for metric, ours in (
        (BLEU(force=True), compute_bleu(COPIES, REFERENCES)),
        (CHRF(), compute_chrf(COPIES, REFERENCES)),
    ):
        theirs = metric.corpus_score(
            COPIES, streams, n_bootstrap=1000
        )  # its own name: a mean and half a width
        interval = estimate(resample([ours])[0])
        assert ours.value == theirs.score
        assert interval.low < interval.value < interval.high
        assert (interval.high - interval.low) / 2 == pytest.approx(theirs._ci, rel=0.15)


def test_same_rows_same_interval() -> None:
    assert estimate(sample([0.0, 1.0, 0.5])) == estimate(sample([0.0, 1.0, 0.5]))


def test_paired_difference_is_narrower_than_its_parts() -> None:
    deleted, copied = resample([compute_bleu(texts, REFERENCES) for texts in (DELETED, COPIES)])
    difference = compare(deleted, copied)
    assert difference.value == pytest.approx(deleted.score.value - copied.score.value)
    assert difference.excludes_zero()
    whole = estimate(deleted)
    assert difference.high - difference.low < whole.high - whole.low


def test_difference_to_itself_is_zero_and_inside_the_noise() -> None:
    difference = compare(sample([1.0, 0.0, 3.0]), sample([1.0, 0.0, 3.0]))
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert not difference.excludes_zero()


def test_interval_covers_what_it_says() -> None:
    """Of 200 samples of 60 coins, about 95 % have the true share inside their interval."""
    generator = np.random.default_rng(1)
    intervals = [
        estimate(sample(generator.binomial(1, 0.4, size=60).astype(float).tolist())) for _ in range(200)
    ]
    assert 0.90 <= np.mean([interval.low <= 0.4 <= interval.high for interval in intervals]) <= 0.99


def test_draws_are_paired() -> None:
    values = [1.0, 2.0, 5.0]
    assert np.allclose(sample([2 * value for value in values]).values, 2 * sample(values).values)


def test_scores_that_do_not_belong_together() -> None:
    with pytest.raises(
        ValueError, match=r"only scores of one metric on the same rows .* on 2 rows and .* on 1"
    ):
        compare(sample([1.0, 2.0]), sample([1.0]))
    with pytest.raises(ValueError, match="only scores of one metric"):
        compare(*resample([compute_bleu(COPIES, REFERENCES), compute_chrf(COPIES, REFERENCES)]))


def test_one_row_and_no_words() -> None:
    for scores in (
        compute_scores(["a b c d"], [["a b c d"]]),
        compute_scores(["", ""], [["a b c d"], ["e f g h"]]),
    ):
        for resampled in resample(list(scores.values())):
            interval = estimate(resampled)
            assert interval.low == pytest.approx(interval.value) == pytest.approx(interval.high)


def test_draws_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=77).tolist()
    whole = sample(values).values
    monkeypatch.setattr("eval.stats.BLOCK", 300)
    assert np.allclose(sample(values).values, whole)
    assert len(whole) == 1000
