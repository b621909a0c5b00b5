"""Outputs of several systems on the same rows -> scores, differences, human ceiling and slices, each with its interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics import Score, compute_scores, score_unreferenced
from eval.stats import LEVEL, RESAMPLES, SEED, compare, estimate, resample
from eval.toxicity import ToxicityModel
from sft.data import Example
from sft.lexicon import delete_listed, find_listed

SCHEMA = 5
GENERATED = ("base", "few_shot")  # beside the adapter
SLICED = ("bleu", "toxicity", "joint", "listed")  # metrics that each slice has
BESIDE = "each rewrite against the others"  # in the signatures of people's scores
SHORT, LONG = 8, 15  # words: shorter than the one, as long as the other

Systems = Mapping[str, Mapping[str, Score]]


def complete_outputs(
    generated: Mapping[str, Sequence[str]], texts: Sequence[str], model: ToxicityModel | None, baselines: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Return each system's outputs, the generated ones and those of the baselines that need no language model."""
    outputs = dict(generated)
    if "delete" in baselines and model is not None and model.lexicon:
        outputs["delete"] = [delete_listed(text, model.lexicon) for text in texts]
    if "copy" in baselines:
        outputs["copy"] = list(texts)
    return outputs


def describe_scores(
    examples: Sequence[Example], outputs: Mapping[str, Sequence[str]], model: ToxicityModel | None, human: bool = True
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the scores' part of results.json, and the first system's sentence scores by metric, for each row.

    Args:
        examples: the rows; those without a toxic sentence ("") are scored against their references alone.
        outputs: for each system a text a row; the others are what the first one is held against.
        model: see `eval.metrics.compute_scores`.
        human: whether each human rewrite is scored against the others of its sentence.
    """
    systems = score_systems(examples, outputs, model)
    ceiling = score_ceiling(examples, outputs, model) if human else {}
    results = describe_beside_people(systems, ceiling, sum(len(example.references) > 1 for example in examples))
    results["slices"] = describe_slices(examples, systems, model)
    results["intervals"] = {"method": "percentile bootstrap over sentences", "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}
    first = next(iter(systems.values()))
    rows = zip(*(score.sentences.tolist() for score in first.values()), strict=True)
    return results, [dict(zip(first, row, strict=True)) for row in rows]


def score_systems(examples: Sequence[Example], outputs: Mapping[str, Sequence[str]], model: ToxicityModel | None) -> Systems:
    """Return the scores of each system, on the same rows."""
    sources = [example.toxic for example in examples]
    references = [example.references for example in examples]
    known = sources if all(sources) else None
    return {name: compute_scores(texts, references, known, model) for name, texts in outputs.items()}


def score_ceiling(examples: Sequence[Example], outputs: Mapping[str, Sequence[str]], model: ToxicityModel | None) -> Systems:
    """Score each human rewrite against the others of its sentence, and each system against the same; {} without such rows.

    Fewer references give lower scores, so people can be compared with nobody but on these rows and references. A
    sentence counts once for each of its rewrites; intervals are over sentences.
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
    """Return a row for each rewrite of sentences with several, the systems' outputs for it, and where each sentence starts.

    Such a row's references are the other rewrites, and the output of the system "human" is the rewrite itself.
    """
    places = [(row, left) for row, e in enumerate(examples) if len(e.references) > 1 for left in range(len(e.references))]
    others = [
        Example(examples[row].toxic, tuple(text for number, text in enumerate(examples[row].references) if number != left))
        for row, left in places
    ]
    texts = {name: [values[row] for row, _ in places] for name, values in outputs.items()}
    texts["human"] = [examples[row].references[left] for row, left in places]
    return others, texts, [index for index, (_, left) in enumerate(places) if left == 0]


def describe_beside_people(systems: Systems, ceiling: Systems, rows: int) -> dict[str, Any]:
    """Return `systems`, `differences` and, where there is a `ceiling`, that of results.json, on so many rows."""
    results = describe_systems(systems)
    if ceiling:
        results["ceiling"] = {"rows": rows, **describe_systems(ceiling)}
        results["systems"]["human"] = results["ceiling"]["systems"]["human"]
    return results


def describe_systems(systems: Systems) -> dict[str, Any]:
    """Return `systems` and `differences` of results.json: all with intervals, the latter the first system's to each other."""
    flat = [score for scores in systems.values() for score in scores.values()]
    samples = iter(resample(flat))
    by_system = {system: {name: next(samples) for name in scores} for system, scores in systems.items()}
    first, *rest = by_system
    return {
        "systems": {
            system: {name: {**estimate(it).describe(), "signature": it.score.signature} for name, it in scores.items()}
            for system, scores in by_system.items()
        },
        "differences": {
            system: {name: compare(by_system[first][name], it).describe() for name, it in by_system[system].items()}
            for system in rest
        },
    }


def find_slices(examples: Sequence[Example], model: ToxicityModel | None) -> dict[str, dict[str, np.ndarray]]:
    """Return masks of shape (rows,) by what the rows are sliced by and by the slice's name."""
    references = np.array([len(example.references) for example in examples])
    slices = {"rewrites": {str(number): references == number for number in sorted(set(references.tolist()))}}
    if all(example.toxic for example in examples):
        words = np.array([len(example.toxic.split()) for example in examples])
        short, long = words < SHORT, words >= LONG
        slices["words"] = {f"below {SHORT}": short, f"{SHORT} to {LONG - 1}": ~short & ~long, f"from {LONG}": long}
        if model is not None:
            listed = np.array([len(find_listed(example.toxic, model.lexicon)) for example in examples])
            slices["listed words"] = {"none (implicit toxicity)": listed == 0, "one": listed == 1, "several": listed > 1}
    return slices


def describe_slices(examples: Sequence[Example], systems: Systems, model: ToxicityModel | None) -> list[dict[str, Any]]:
    """Return each slice that has rows, with some scores of each system on it."""
    described = []
    for by, slices in find_slices(examples, model).items():
        for name, mask in slices.items():
            if mask.any():
                part = {
                    system: {metric: scores[metric].select(mask) for metric in SLICED if metric in scores}
                    for system, scores in systems.items()
                }
                described.append({"by": by, "slice": name, "rows": int(mask.sum()), "systems": describe_systems(part)["systems"]})
    return described


def describe_unrewritten(
    lines: Sequence[Mapping[str, Any]], model: ToxicityModel
) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """Return the scores of sentences that have no rewrites, and the adapter's sentence scores by metric, for each row.

    Args:
        lines: each with its toxic sentence, the adapter's prediction, and the annotators' reasons, by which they are sliced.
    """
    texts = [line["toxic"] for line in lines]
    outputs = complete_outputs({"adapter": [line["prediction"] for line in lines]}, texts, model, ("delete", "copy"))
    systems = {name: score_unreferenced(predictions, texts, model) for name, predictions in outputs.items()}
    reasons = {reason: np.array([reason in line["reasons"] for line in lines]) for line in lines for reason in line["reasons"]}
    described = []
    for reason, mask in {"all": np.ones(len(lines), dtype=bool), **dict(sorted(reasons.items()))}.items():
        part = {name: {metric: score.select(mask) for metric, score in scores.items()} for name, scores in systems.items()}
        described.append({"slice": reason, "rows": int(mask.sum()), **describe_systems(part)})
    rows = zip(*(score.sentences.tolist() for score in systems["adapter"].values()), strict=True)
    return described, [dict(zip(systems["adapter"], row, strict=True)) for row in rows]
