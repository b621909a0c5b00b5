"""Outputs -> Results: scores, human ceiling, slices, stress, protocols, and what they are bound to."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.metrics import Score, score_unreferenced
from eval.protocols import Sentences, describe_protocols, score_protocols
from eval.results import (
    SCHEMA,
    AdapterHashes,
    BaseModel,
    Generation,
    ResamplingMethod,
    Results,
    Scores,
    Slice,
    Unrewritten,
    UnrewrittenSlice,
)
from eval.rows import EvalRows, UnrewrittenRows
from eval.stats import LEVEL, RESAMPLES, SEED
from eval.stress import judge_outputs
from eval.systems import SystemScores, describe_beside_people, describe_systems, score_ceiling, score_systems
from eval.toxicity import ToxicityModel, fit_toxicity
from sft.data import Example
from sft.lexicon import delete_listed, find_listed
from sft.prompt import TEMPLATE
from sft.schema import EvalConfig

if TYPE_CHECKING:
    from eval.adapter import Adapter

SLICED = ("bleu", "toxicity", "joint", "listed")  # metrics that each slice has
SHORT, LONG = 8, 15  # words: shorter than the one, as long as the other
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "sacrebleu",
    "rouge_score",
    "scikit-learn",
    "numpy",
)


@dataclass(frozen=True)
class Answers:
    """What language models wrote in one evaluation.

    `systems` holds a text a row for "adapter" and those of `eval.results.GENERATED`; `stressed` the outputs
    for `eval.stress.list_texts`, or nothing; `attempts` the rewrites of `UnrewrittenRows`; `seconds` are the
    adapter's.
    """

    systems: Mapping[str, Sequence[str]]
    seconds: float
    stressed: Sequence[str] = ()
    attempts: Sequence[str] = ()


@dataclass(frozen=True)
class Evaluation:
    """The results, the lines of predictions.jsonl and unrewritten.jsonl, their rows, and the classifier."""

    results: Results
    predictions: list[dict[str, Any]]
    examples: Sequence[Example]
    model: ToxicityModel
    unrewritten: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Circumstances:
    """What an evaluation is made under: adapter, settings, the run's splits, and the protocols' models."""

    adapter: "Adapter"
    settings: EvalConfig
    splits: Mapping[str, Sequence[Example]]
    commits: Mapping[str, str]  # see `eval.protocols.resolve_models`
    processes: int


def score_run(
    circumstances: Circumstances, rows: EvalRows, unrewritten: UnrewrittenRows | None, answers: Answers
) -> Evaluation:
    """Return the scores of the answers to a run's rows, bound to all that they are of."""
    adapter, settings = circumstances.adapter, circumstances.settings
    adapter.check_unchanged()
    model = fit_toxicity(circumstances.splits["train"])
    texts, human = [example.toxic for example in rows.examples], "human" in settings.baselines
    outputs = complete_outputs(answers.systems, texts, model, settings.baselines)
    scores, sentences = score_outputs(rows.examples, outputs, model, human)
    judged = score_protocols(settings.protocols, circumstances.commits, rows.examples, outputs, human)
    lines: list[dict[str, Any]] = []
    described = None
    if unrewritten is not None:
        lines = [
            line | {"prediction": attempt}
            for line, attempt in zip(unrewritten.lines, answers.attempts, strict=True)
        ]
        slices, marks = score_unrewritten(lines, model)
        lines = [line | {"scores": round_scores(mark)} for line, mark in zip(lines, marks, strict=True)]
        described = Unrewritten(**unrewritten.description, slices=slices)
    results = Results(
        schema=SCHEMA,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        adapter=AdapterHashes(**adapter.hashes),
        base=BaseModel(**adapter.base.describe()),
        quantization=adapter.quantization,
        tokens=adapter.tokens,
        prompt=TEMPLATE,
        data=rows.data,
        generation=Generation(**adapter.settings.describe()),
        **vars(scores),
        stress=judge_outputs(answers.stressed) if answers.stressed else (),
        protocols=describe_protocols(judged, circumstances.commits),
        unrewritten=described,
        toxicity_accuracy=model.measure_accuracy(circumstances.splits["validation"]),
        generation_seconds=round(answers.seconds, 1),
        processes=circumstances.processes,
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    )
    predictions = list_predictions(rows.examples, answers.systems, sentences, judged)
    return Evaluation(results, predictions, rows.examples, model, lines)


def list_predictions(
    examples: Sequence[Example],
    generated: Mapping[str, Sequence[str]],
    sentences: Sequence[Mapping[str, float]],
    judged: Sequence[Sentences],
) -> list[dict[str, Any]]:
    """Return the lines of predictions.jsonl; of a protocol's scores, those of its measures."""
    lines = []
    for index, example in enumerate(examples):
        line: dict[str, Any] = {"id": example.id, "toxic": example.toxic, "references": example.references}
        line["prediction"] = generated["adapter"][index]
        line |= {system: texts[index] for system, texts in generated.items() if system != "adapter"}
        line["scores"] = round_scores(sentences[index])
        if judged[index]:
            line["protocols"] = judged[index]
        lines.append(line)
    return lines


def round_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Return a sentence's scores as its line of predictions.jsonl has them."""
    return {name: round(value, 4) for name, value in scores.items()}


def complete_outputs(
    generated: Mapping[str, Sequence[str]],
    texts: Sequence[str],
    model: ToxicityModel | None,
    baselines: Sequence[str],
) -> dict[str, Sequence[str]]:
    """Return each system's outputs: the generated ones, and the baselines' that need no language model."""
    outputs = dict(generated)
    if "delete" in baselines and model is not None and model.lexicon:
        outputs["delete"] = [delete_listed(text, model.lexicon) for text in texts]
    if "copy" in baselines:
        outputs["copy"] = list(texts)
    return outputs


def score_outputs(
    examples: Sequence[Example],
    outputs: Mapping[str, Sequence[str]],
    model: ToxicityModel | None,
    human: bool = True,
) -> tuple[Scores, list[dict[str, float]]]:
    """Return the scores of a run's or anybody's outputs, and the first system's by metric for each row.

    Args:
        examples: the rows; those without a toxic sentence ("") are scored against their references alone.
        outputs: for each system a text a row; the others are what the first one is compared with.
        model: see `eval.metrics.compute_scores`.
        human: whether each human rewrite is scored against the others of its sentence.
    """
    systems = score_systems(examples, outputs, model)
    ceiling = score_ceiling(examples, outputs, model) if human else {}
    several = sum(len(example.references) > 1 for example in examples)
    method = ResamplingMethod("percentile bootstrap over sentences", LEVEL, RESAMPLES, SEED)
    scores = Scores(
        *describe_beside_people(systems, ceiling, several), describe_slices(examples, systems, model), method
    )
    return scores, list_sentences(next(iter(systems.values())))


def list_sentences(scores: Mapping[str, Score]) -> list[dict[str, float]]:
    """Return the sentence scores of each row by metric."""
    rows = zip(*(score.sentences.tolist() for score in scores.values()), strict=True)
    return [dict(zip(scores, row, strict=True)) for row in rows]


def find_slices(examples: Sequence[Example], model: ToxicityModel | None) -> dict[str, dict[str, np.ndarray]]:
    """Return masks of shape (rows,) by what the rows are sliced by and by the slice's name."""
    references = np.array([len(example.references) for example in examples])
    slices = {"rewrites": {str(number): references == number for number in sorted(set(references.tolist()))}}
    if all(example.toxic for example in examples):
        words = np.array([len(example.toxic.split()) for example in examples])
        short, long = words < SHORT, words >= LONG
        slices["words"] = {
            f"below {SHORT}": short,
            f"{SHORT} to {LONG - 1}": ~short & ~long,
            f"from {LONG}": long,
        }
        if model is not None:
            listed = np.array([len(find_listed(example.toxic, model.lexicon)) for example in examples])
            slices["listed words"] = {
                "none (implicit toxicity)": listed == 0,
                "one": listed == 1,
                "several": listed > 1,
            }
    return slices


def describe_slices(
    examples: Sequence[Example], systems: SystemScores, model: ToxicityModel | None
) -> tuple[Slice, ...]:
    """Return each slice that has rows, with some scores of each system on it."""
    described = []
    for by, slices in find_slices(examples, model).items():
        for name, mask in slices.items():
            if mask.any():
                part = {
                    system: {metric: scores[metric].select(mask) for metric in SLICED if metric in scores}
                    for system, scores in systems.items()
                }
                described.append(Slice(by, name, int(mask.sum()), describe_systems(part)[0]))
    return tuple(described)


def score_unrewritten(
    lines: Sequence[Mapping[str, Any]], model: ToxicityModel
) -> tuple[tuple[UnrewrittenSlice, ...], list[dict[str, float]]]:
    """Return the scores of sentences without rewrites, and the adapter's by metric for each row.

    Args:
        lines: each with its toxic sentence, the adapter's prediction, and the annotators' reasons that they
            are sliced by.
    """
    texts = [line["toxic"] for line in lines]
    predictions = {"adapter": [line["prediction"] for line in lines]}
    outputs = complete_outputs(predictions, texts, model, ("delete", "copy"))
    systems = {name: score_unreferenced(rewrites, texts, model) for name, rewrites in outputs.items()}
    masks = {"all": np.ones(len(lines), dtype=bool)}
    for reason in sorted({reason for line in lines for reason in line["reasons"]}):
        masks[reason] = np.array([reason in line["reasons"] for line in lines])
    described = []
    for reason, mask in masks.items():
        part = {
            name: {metric: score.select(mask) for metric, score in scores.items()}
            for name, scores in systems.items()
        }
        described.append(UnrewrittenSlice(reason, int(mask.sum()), *describe_systems(part)))
    return tuple(described), list_sentences(systems["adapter"])
