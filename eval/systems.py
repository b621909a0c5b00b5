"""Outputs of several systems on the same rows -> their scores, their differences, and people's."""

from collections.abc import Mapping, Sequence

from eval.metrics import Score, compute_scores
from eval.results import Ceiling, Differences, Interval, ReportedScore, Systems
from eval.stats import compare, estimate, resample
from eval.toxicity import ToxicityModel
from sft.data import Example

BESIDE = "each rewrite against the others"  # in the signatures of people's scores

SystemScores = Mapping[str, Mapping[str, Score]]  # by system and metric


def score_systems(
    examples: Sequence[Example], outputs: Mapping[str, Sequence[str]], model: ToxicityModel | None
) -> SystemScores:
    """Return the scores of each system, on the same rows."""
    sources = [example.toxic for example in examples]
    references = [example.references for example in examples]
    known = sources if all(sources) else None
    return {name: compute_scores(texts, references, known, model) for name, texts in outputs.items()}


def score_ceiling(
    examples: Sequence[Example], outputs: Mapping[str, Sequence[str]], model: ToxicityModel | None
) -> SystemScores:
    """Score each human rewrite, and each system, against the others of its sentence; {} without such rows.

    Fewer references give lower scores, so people can be compared with nobody but on these rows and
    references. A sentence counts once for each of its rewrites; intervals are over sentences.
    """
    others, texts, starts = take_apart(examples, outputs)
    if not others:
        return {}
    return {
        name: {metric: score.join(starts, BESIDE) for metric, score in scores.items()}
        for name, scores in score_systems(others, texts, model).items()
    }


def take_apart(
    examples: Sequence[Example], outputs: Mapping[str, Sequence[str]]
) -> tuple[list[Example], dict[str, list[str]], list[int]]:
    """Return a row for each rewrite of sentences with several, the systems' outputs, and where each starts.

    Such a row's references are the other rewrites, and the output of the system "human" is the rewrite
    itself.
    """
    places = [
        (row, left)
        for row, example in enumerate(examples)
        if len(example.references) > 1
        for left in range(len(example.references))
    ]
    others = [
        Example(
            examples[row].toxic,
            tuple(text for number, text in enumerate(examples[row].references) if number != left),
        )
        for row, left in places
    ]
    texts = {name: [values[row] for row, _ in places] for name, values in outputs.items()}
    texts["human"] = [examples[row].references[left] for row, left in places]
    return others, texts, [index for index, (_, left) in enumerate(places) if left == 0]


def describe_systems(systems: SystemScores) -> tuple[Systems, Differences]:
    """Return the systems' scores, and the first one's differences from each other, all with intervals."""
    flat = [score for scores in systems.values() for score in scores.values()]
    samples = iter(resample(flat))
    by_system = {system: {name: next(samples) for name in scores} for system, scores in systems.items()}
    first, *rest = by_system
    described = {
        system: {name: report_score(estimate(it), it.score.signature) for name, it in scores.items()}
        for system, scores in by_system.items()
    }
    differences = {
        system: {name: compare(by_system[first][name], it) for name, it in by_system[system].items()}
        for system in rest
    }
    return described, differences


def report_score(interval: Interval, signature: str) -> ReportedScore:
    return ReportedScore(interval.value, interval.low, interval.high, signature)


def describe_beside_people(
    systems: SystemScores, ceiling: SystemScores, rows: int
) -> tuple[Systems, Differences, Ceiling | None]:
    """Return the systems' scores and differences, and people's, where there are any, on `rows` sentences."""
    described, differences = describe_systems(systems)
    if not ceiling:
        return described, differences, None
    beside = Ceiling(rows, *describe_systems(ceiling))
    return {**described, "human": beside.systems["human"]}, differences, beside
