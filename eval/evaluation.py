"""A run's evaluation read back, all of its parts held against one another."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.protocols import PROTOCOLS, describe_protocols
from eval.results import GENERATED, SCHEMA, complete_outputs, describe_scores, describe_unrewritten
from eval.stress import judge_outputs
from eval.toxicity import ToxicityModel, fit_toxicity
from sft.command import Refusal, RunError
from sft.data import Example
from sft.run_dir import Run
from sft.splits import hash_examples
from sft.storage import hash_file, read_json, read_json_lines


@dataclass(frozen=True)
class Evaluation:
    """results.json, the lines of predictions.jsonl, the test split that they are of, and the classifier fitted on the run."""

    results: dict[str, Any]
    predictions: list[dict[str, Any]]
    examples: list[Example]
    model: ToxicityModel


def read_evaluation(run: Run) -> Evaluation:
    """Return the evaluation of a run's whole test split, held against the run, and its scores against its predictions.

    Raises:
        RunError: the test split is not evaluated in full.
        Refusal: the scores are of another adapter, base, data or prompt, or not those of the predictions.
    """
    evaluate = f"accelerate launch eval/run.py {run.root}"
    path = run.eval / "results.json"
    if not path.is_file():
        raise RunError(f"{run.root}: its whole test split is not evaluated yet. Run: {evaluate}")
    results, manifest = read_json(path), run.manifest
    if results["schema"] != SCHEMA:
        raise RunError(f"{path}: made by another version of this project. Evaluate again: {evaluate}")
    checks = {
        "another adapter (its SHA-256 differs)": results["adapter"]["sha256"] == hash_file(run.adapter_weights),
        "another base model": results["base"] == run.environment["base"],
        "another prompt": results["prompt"] == manifest["prompt"],
        "other rows than the run's test split": results["data"]["sha256"] == manifest["splits"]["test"]["sha256"],
    }
    for fault, belongs in checks.items():
        if not belongs:
            raise Refusal(f"{path}: its scores are of {fault}. Evaluate again: {evaluate}")
    predictions, examples = read_json_lines(run.eval / "predictions.jsonl"), run.splits["test"]
    rows = [[line.get(key) for key in ("id", "toxic", "references")] for line in predictions]
    if rows != [[example.id, example.toxic, list(example.references)] for example in examples]:
        raise Refusal(f"{run.eval / 'predictions.jsonl'}: not the rows of the run's test split. Evaluate again: {evaluate}")
    model = fit_toxicity(run.splits["train"])
    scores, sentences = score_predictions(results, predictions, examples, model)
    scores["toxicity_accuracy"] = model.measure_accuracy(run.splits["validation"])
    lines = list(zip(predictions, sentences, strict=True))
    if "unrewritten" in results:
        attempts = read_json_lines(run.eval / "unrewritten.jsonl")
        slices, marks = describe_unrewritten(attempts, model)
        digest = hash_examples(Example(line["toxic"], ()) for line in attempts)
        scores["unrewritten"] = results["unrewritten"] | {"sha256": digest, "rows": len(attempts), "slices": slices}
        lines += zip(attempts, marks, strict=True)
    same = all(are_close(results.get(key), part) for key, part in scores.items())
    if not same or not all(are_close(line["scores"], values) for line, values in lines):
        raise Refusal(f"{path}: its scores are not those of predictions.jsonl or unrewritten.jsonl. Evaluate again: {evaluate}")
    return Evaluation(results, predictions, examples, model)


def score_predictions(
    results: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], examples: Sequence[Example], model: ToxicityModel
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return what results.json should say of these predictions, and the adapter's sentence scores for each row."""
    generated = {"adapter": [line["prediction"] for line in predictions]}
    generated |= {name: [line[name] for line in predictions] for name in GENERATED if name in predictions[0]}
    outputs = complete_outputs(generated, [example.toxic for example in examples], model, tuple(results["systems"]))
    scores, sentences = describe_scores(examples, outputs, model, "human" in results["systems"])
    stressed = [case["output"] for group in results["stress"] for case in group["cases"]]
    scores["stress"] = judge_outputs(stressed) if stressed else []
    told = results.get("protocols", [])
    commits = {model: "" for protocol in PROTOCOLS.values() for model in protocol.models.values()}
    commits |= {model: commit for part in told for model, commit in part["models"].items()}
    described = describe_protocols([line.get("protocols", {}) for line in predictions], commits)
    if told or described:
        scores["protocols"] = described
    return scores, sentences


def are_close(one: Any, other: Any) -> bool:
    """Say whether two JSON values are the same but for the rounding of their numbers: another machine's may differ in it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_close, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-4)
    return bool(one == other)
