"""Metrics: pure functions of predictions and references that return a value with its name and signature."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

References = Sequence[Sequence[str]]  # for each prediction, one or more references

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class Score:
    """One metric's value on a whole corpus, and the signature that says exactly how it was computed."""

    name: str
    value: float
    signature: str

    def describe(self) -> dict[str, float | str]:
        return {"value": self.value, "signature": self.signature}


def transpose_references(references: References) -> list[list[str | None]]:
    """Return sacrebleu's layout: a stream for each reference number, None where a sentence has fewer.

    An empty text in its place would count as a reference without words, and lift the brevity penalty.
    """
    width = max(map(len, references))
    return [[refs[number] if number < len(refs) else None for refs in references] for number in range(width)]


def compute_bleu(predictions: Sequence[str], references: References) -> Score:
    """Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it by default, against all references; 0 to 100."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(force=True)  # no warning that the text looks tokenised: ParaDetox's does
    value = metric.corpus_score(list(predictions), transpose_references(references)).score
    return Score("bleu", value, str(metric.get_signature()))


def compute_chrf(predictions: Sequence[str], references: References) -> Score:
    """Corpus chrF (Popović 2015) as sacrebleu computes it by default, against the best reference; 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    value = metric.corpus_score(list(predictions), transpose_references(references)).score
    return Score("chrf", value, str(metric.get_signature()))


def compute_rouge(predictions: Sequence[str], references: References) -> list[Score]:
    """Mean ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin 2004), each row against its best reference; 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
    rows = [scorer.score_multi(list(refs), text) for text, refs in zip(predictions, references, strict=True)]
    version = importlib.metadata.version("rouge_score")
    return [
        Score(
            name,
            sum(row[name].fmeasure for row in rows) / len(rows),
            f"{name}|measure:f|refs:best|stemmer:no|aggregate:mean|version:{version}",
        )
        for name in ROUGE_TYPES
    ]


def compute_scores(predictions: Sequence[str], references: References) -> dict[str, Score]:
    """Return every metric's score by name.

    Args:
        predictions: one text a row; an empty one counts as empty.
        references: one or more texts for each row.

    Raises:
        ValueError: no rows, numbers of rows that differ, or a row without reference.
    """
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(
            f"expected as many rows of references as predictions, at least one, each with a reference; "
            f"got {len(predictions)} predictions and {len(references)} rows of references"
        )
    scores = [compute_bleu(predictions, references), compute_chrf(predictions, references)]
    return {score.name: score for score in [*scores, *compute_rouge(predictions, references)]}
