"""Metrics: pure functions of predictions and references that return a value with its name and signature."""

import importlib.metadata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.baselines import find_listed, hash_lexicon

References = Sequence[Sequence[str]]  # for each prediction, one or more references

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Score:
    """One metric's value on a whole corpus, and the signature that says exactly how it was computed.

    `statistics`, of shape (rows, numbers), is all that the metric keeps of each row: `combine` turns the sum of some
    rows, of shape (numbers,), into the metric's value on these rows.
    """

    name: str
    value: float
    signature: str
    statistics: np.ndarray = field(repr=False, compare=False)
    combine: Callable[[np.ndarray], float] = field(repr=False, compare=False)


def score_rows(name: str, signature: str, rows: Sequence[Any], combine: Callable[[np.ndarray], float]) -> Score:
    statistics = np.array(rows)
    return Score(name, combine(statistics.sum(axis=0)), signature, statistics, combine)


def score_mean(name: str, signature: str, values: Sequence[float]) -> Score:
    """Return the score whose value on some rows is the mean of theirs."""
    return score_rows(name, signature, [(value, 1.0) for value in values], lambda sums: float(sums[0] / sums[1]))


def score_sacrebleu(name: str, metric: Any, predictions: Sequence[str], references: References) -> Score:
    # What sacrebleu's own corpus_score and paired tests are made of.
    rows = metric._extract_corpus_statistics(list(predictions), transpose_references(references))
    return score_rows(
        name, str(metric.get_signature()), rows, lambda sums: float(metric._compute_score_from_stats(sums.tolist()).score)
    )


def transpose_references(references: References) -> list[list[str | None]]:
    """Return sacrebleu's layout: a stream for each reference number, None where a sentence has fewer.

    An empty text in its place would count as a reference without words, and lift the brevity penalty.
    """
    width = max(map(len, references))
    return [[refs[number] if number < len(refs) else None for refs in references] for number in range(width)]


def compute_bleu(predictions: Sequence[str], references: References) -> Score:
    """Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it by default, against all references; 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    # force: no warning that the text looks tokenised; ParaDetox's does.
    return score_sacrebleu("bleu", BLEU(force=True), predictions, references)


def compute_chrf(predictions: Sequence[str], references: References) -> Score:
    """Corpus chrF (Popović 2015) as sacrebleu computes it by default, against the best reference; 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    return score_sacrebleu("chrf", CHRF(), predictions, references)


def compute_rouge(predictions: Sequence[str], references: References) -> list[Score]:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004), each row against its best reference; 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
    rows = [scorer.score_multi(list(refs), text) for text, refs in zip(predictions, references, strict=True)]
    version = importlib.metadata.version("rouge_score")
    return [
        score_mean(
            name,
            f"{name}|measure:f|refs:best|stemmer:no|aggregate:mean|version:{version}",
            [row[name].fmeasure for row in rows],
        )
        for name in ROUGE_TYPES
    ]


def compute_listed(predictions: Sequence[str], lexicon: Collection[str]) -> Score:
    """Share of the predictions that hold a word of the lexicon (see `eval.baselines.fit_lexicon`); 0 to 1, less is better."""
    signature = f"listed|words:{len(lexicon)}|sha256:{hash_lexicon(lexicon)[:8]}|aggregate:mean"
    return score_mean("listed", signature, [float(bool(find_listed(text, lexicon))) for text in predictions])


def compute_scores(predictions: Sequence[str], references: References, lexicon: Collection[str]) -> dict[str, Score]:
    """Return every metric's score by name.

    Args:
        predictions: one text a row; an empty one counts as empty.
        references: one or more texts for each row.
        lexicon: the words that `listed` looks for; without any there is no such score.

    Raises:
        ValueError: no rows, numbers of rows that differ, or a row without reference.
    """
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(
            f"expected as many rows of references as predictions, at least one, each with a reference; "
            f"got {len(predictions)} predictions and {len(references)} rows of references"
        )
    scores = [compute_bleu(predictions, references), compute_chrf(predictions, references)]
    scores += compute_rouge(predictions, references)
    if lexicon:
        scores.append(compute_listed(predictions, frozenset(lexicon)))
    return {score.name: score for score in scores}
