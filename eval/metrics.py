"""Metrics: pure functions of predictions and references that return a value with its name and signature."""

import importlib.metadata
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.data import normalise
from sft.lexicon import find_listed, hash_lexicon

if TYPE_CHECKING:
    from eval.toxicity import ToxicityModel

References = Sequence[Sequence[str]]  # for each prediction, one or more references

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
CHUNK = 5_000  # rows that are scored at a time; more are dealt out to the cores
KEPT_ENOUGH = 25  # chrF to the source, and
LONG_ENOUGH = 0.6  # share of its words, from which on `joint` takes the content as kept


@dataclass(frozen=True)
class Score:
    """One metric's value on a whole corpus, and the signature that says exactly how it was computed.

    `statistics`, of shape (rows, numbers), is all that the metric keeps of each row: `combine` turns the sum
    of some rows, of shape (numbers,), into the metric's value on these rows. `sentences`, of shape (rows,),
    is each row's own.
    """

    name: str
    value: float
    signature: str
    statistics: np.ndarray = field(repr=False, compare=False)
    combine: Callable[[np.ndarray], float] = field(repr=False, compare=False)
    sentences: np.ndarray = field(repr=False, compare=False)

    def select(self, rows: np.ndarray) -> "Score":
        """Return the score on some of the rows: a mask of shape (rows,), or their indices."""
        statistics = self.statistics[rows]
        value = self.combine(statistics.sum(axis=0))
        return replace(self, value=value, statistics=statistics, sentences=self.sentences[rows])

    def join(self, starts: Sequence[int], signature: str) -> "Score":
        """Return the score with neighbouring rows as one: row i is those from starts[i] to starts[i + 1]."""
        return replace(
            self,
            signature=f"{self.signature}|{signature}",
            statistics=np.add.reduceat(self.statistics, starts),
            sentences=average_neighbours(self.sentences, starts),
        )


def average_neighbours(values: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Return the mean of each run of neighbouring values: the i-th is from starts[i] to starts[i + 1]."""
    return np.asarray(np.add.reduceat(values, starts) / np.diff([*starts, len(values)]))


def score_mean(name: str, signature: str, values: Sequence[float]) -> Score:
    """Return the score whose value on some rows is the mean of theirs."""
    statistics = np.array([(value, 1.0) for value in values])

    def combine(sums: np.ndarray) -> float:
        return float(sums[0] / sums[1])

    return Score(
        name,
        combine(statistics.sum(axis=0)),
        f"{signature}|aggregate:mean",
        statistics,
        combine,
        statistics[:, 0],
    )


def score_sacrebleu(
    name: str, metric: Any, sentence_metric: Any, predictions: Sequence[str], references: References
) -> Score:
    # What sacrebleu's own corpus_score, sentence_score and paired tests are made of.
    rows = metric._extract_corpus_statistics(list(predictions), transpose_references(references))
    statistics = np.array(rows, dtype=float)

    def combine(sums: np.ndarray) -> float:
        return float(metric._compute_score_from_stats(sums.tolist()).score)

    sentences = np.array([sentence_metric._compute_score_from_stats(row).score for row in rows])
    return Score(
        name, combine(statistics.sum(axis=0)), str(metric.get_signature()), statistics, combine, sentences
    )


def transpose_references(references: References) -> list[list[str | None]]:
    """Return sacrebleu's layout: a stream for each reference number, None where a sentence has fewer.

    An empty text in its place would count as a reference without words, and lift the brevity penalty.
    """
    width = max(map(len, references))
    return [[refs[number] if number < len(refs) else None for refs in references] for number in range(width)]


def compute_bleu(
    predictions: Sequence[str], references: References, name: str = "bleu", lowercase: bool = False
) -> Score:
    """Corpus BLEU (Papineni et al. 2002) by sacrebleu's defaults, against all references; 0 to 100.

    A sentence's own BLEU is of the orders that the sentence has (sacrebleu's `effective_order`).
    """
    from sacrebleu.metrics.bleu import BLEU

    # force: no warning that the text looks tokenised; ParaDetox's does.
    metric, sentence = (
        BLEU(lowercase=lowercase, force=True, effective_order=effective) for effective in (False, True)
    )
    return score_sacrebleu(name, metric, sentence, predictions, references)


def compute_chrf(predictions: Sequence[str], references: References) -> Score:
    """Corpus chrF (Popović 2015) by sacrebleu's defaults, against the best reference; 0 to 100."""
    from sacrebleu.metrics.chrf import CHRF

    return score_sacrebleu("chrf", CHRF(), CHRF(), predictions, references)


def compute_rouge(predictions: Sequence[str], references: References) -> list[Score]:
    """Mean ROUGE-1, -2 and -L F-measures (Lin 2004), against the best and the first reference; 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), use_stemmer=False)
    rows = [
        [scorer.score(ref, text) for ref in refs] for text, refs in zip(predictions, references, strict=True)
    ]
    version = importlib.metadata.version("rouge_score")
    return [
        score_mean(
            name + suffix,
            f"{name}|measure:f|refs:{refs}|stemmer:no|version:{version}",
            [max(score[name].fmeasure for score in row[:most]) for row in rows],
        )
        for suffix, refs, most in (("", "best", None), ("_first", "first", 1))
        for name in ROUGE_TYPES
    ]


def compute_listed(predictions: Sequence[str], lexicon: Collection[str]) -> Score:
    """Share of predictions with a word of the lexicon (see `fit_lexicon`); 0 to 1, less is better."""
    signature = f"listed|words:{len(lexicon)}|sha256:{hash_lexicon(lexicon)[:8]}"
    return score_mean("listed", signature, [float(bool(find_listed(text, lexicon))) for text in predictions])


def compute_kept(predictions: Sequence[str], sources: Sequence[str]) -> list[Score]:
    """Return what is kept of the sources, without references.

    `chrf_source` is the mean sentence chrF to the source, 0 to 100; `copy_rate` the share of predictions with
    the source's words (case, punctuation and spacing aside), 0 to 1; `length_ratio` the mean ratio of words.
    None of them is better when higher.
    """
    chrf = compute_chrf(predictions, [[source] for source in sources])
    pairs = list(zip(predictions, sources, strict=True))
    copied = [float(normalise(text) == normalise(source)) for text, source in pairs]
    ratios = [len(text.split()) / max(1, len(source.split())) for text, source in pairs]
    return [
        score_mean("chrf_source", f"chrF to the source|{chrf.signature}", chrf.sentences.tolist()),
        score_mean("copy_rate", "copy_rate|same:words", copied),
        score_mean("length_ratio", "length_ratio|ratio:words", ratios),
    ]


def compute_joint(predictions: Sequence[str], kept: Sequence[Score], model: "ToxicityModel") -> list[Score]:
    """Return `toxicity`, the mean probability of the fitted classifier, and `joint`; both 0 to 1.

    `joint` is the mean over sentences of (1 - toxicity) x min(1, chrf_source / KEPT_ENOUGH) x min(1,
    length_ratio / LONG_ENOUGH), with the scores of `compute_kept`: high where a text is not toxic and is
    still about the same. A copy gains nothing by its content, a harmless text about something else or a part
    of the sentence nothing by its harmlessness. It knows nothing of fluency. `python -m eval.validate`
    compares it with people.
    """
    chrf_source, _, length_ratio = kept
    toxicity = np.array(model.predict(predictions))
    whole = np.minimum(1, chrf_source.sentences / KEPT_ENOUGH) * np.minimum(
        1, length_ratio.sentences / LONG_ENOUGH
    )
    signature = f"joint|chrf_source:{KEPT_ENOUGH}|length_ratio:{LONG_ENOUGH}|{model.signature}"
    return [
        score_mean("toxicity", model.signature, toxicity.tolist()),
        score_mean("joint", signature, ((1 - toxicity) * whole).tolist()),
    ]


def compute_scores(
    predictions: Sequence[str],
    references: References,
    sources: Sequence[str] | None = None,
    model: "ToxicityModel | None" = None,
) -> dict[str, Score]:
    """Return every metric's score by name.

    Args:
        predictions: one text a row; an empty one counts as empty.
        references: one or more texts for each row.
        sources: the toxic sentence of each row; without them there is no score of what is kept.
        model: fitted on a training split; without it, or without sources, there is no score of toxicity.

    Raises:
        ValueError: no rows, numbers of rows that differ, or a row without reference.
    """
    if not predictions or len(predictions) != len(references) or not all(references):
        raise ValueError(
            f"expected as many rows of references as predictions, at least one, each with a reference; "
            f"got {len(predictions)} predictions and {len(references)} rows of references"
        )
    if len(predictions) <= CHUNK:
        return score_rows(predictions, references, sources, model)
    from joblib import Parallel, cpu_count, delayed

    chunks = [slice(start, start + CHUNK) for start in range(0, len(predictions), CHUNK)]
    jobs = (
        delayed(score_rows)(predictions[at], references[at], sources and sources[at], model) for at in chunks
    )
    parts = Parallel(min(len(chunks), cpu_count()))(jobs)
    return {name: join_parts([part[name] for part in parts]) for name in parts[0]}


def join_parts(parts: Sequence[Score]) -> Score:
    """Return the score of all rows from those of the parts that they were dealt out in."""
    statistics = np.concatenate([part.statistics for part in parts])
    signature = parts[0].signature
    if any(
        part.signature != signature for part in parts
    ):  # parts whose rows have other numbers of references
        signature = re.sub(r"\bnrefs:\w+", "nrefs:var", signature)
    sentences = np.concatenate([part.sentences for part in parts])
    value = parts[0].combine(statistics.sum(axis=0))
    return replace(parts[0], value=value, signature=signature, statistics=statistics, sentences=sentences)


def score_rows(
    predictions: Sequence[str],
    references: References,
    sources: Sequence[str] | None,
    model: "ToxicityModel | None",
) -> dict[str, Score]:
    first = [refs[:1] for refs in references]
    scores = [compute_bleu(predictions, references), compute_bleu(predictions, first, "bleu_first")]
    scores += [
        compute_bleu(predictions, references, "bleu_lower", lowercase=True),
        compute_chrf(predictions, references),
    ]
    scores += compute_rouge(predictions, references)
    if sources is not None:
        scores += score_unreferenced(predictions, sources, model).values()
    return {score.name: score for score in scores}


def score_unreferenced(
    predictions: Sequence[str], sources: Sequence[str], model: "ToxicityModel | None"
) -> dict[str, Score]:
    """Return the scores that need no reference, by name; see `compute_scores`."""
    scores = compute_kept(predictions, sources)
    if model is not None:
        scores += compute_joint(predictions, scores, model)
        if model.lexicon:
            scores.append(compute_listed(predictions, model.lexicon))
    return {score.name: score for score in scores}
