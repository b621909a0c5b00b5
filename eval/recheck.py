"""A run's evaluation, read back and verified: its scores are computed again from its predictions."""

import dataclasses
import math
from typing import Any

from eval.protocols import PROTOCOLS, describe_protocols
from eval.results import GENERATED, RESULTS, OtherSchema, Results, read_results
from eval.scoring import Evaluation, complete_outputs, score_outputs, score_unrewritten
from eval.stress import judge_outputs
from eval.toxicity import fit_toxicity
from sft.command import Refusal, RunError
from sft.data import Example
from sft.records import Attempt, Prediction
from sft.run_dir import Run
from sft.splits import hash_examples
from sft.storage import hash_file, read_json_lines


def read_evaluation(run: Run) -> Evaluation:
    """Return the evaluation of a run's whole test split, after comparing it with the run and its predictions.

    Raises:
        RunError: the test split is not evaluated in full, or results.json is not laid out as `Results`.
        Refusal: the scores are of another adapter, base, data or prompt, or not those of the predictions.
    """
    evaluate = f"accelerate launch eval/run.py {run.root}"
    path = run.eval / RESULTS
    if not path.is_file():
        raise RunError(f"{run.root}: its whole test split is not evaluated yet. Run: {evaluate}")
    try:
        results = read_results(path)
    except OtherSchema:
        raise RunError(
            f"{path}: made by another version of this project. Evaluate again: {evaluate}"
        ) from None
    check_bindings(run, results, evaluate)
    predictions, examples = read_json_lines(run.eval / "predictions.jsonl", Prediction), run.splits["test"]
    rows = [[line.get(key) for key in ("id", "toxic", "references")] for line in predictions]
    if rows != [[example.id, example.toxic, list(example.references)] for example in examples]:
        raise Refusal(
            f"{run.eval / 'predictions.jsonl'}: not the rows of the run's test split. Evaluate again: "
            f"{evaluate}"
        )
    model = fit_toxicity(run.splits["train"])
    attempts = read_json_lines(run.eval / "unrewritten.jsonl", Attempt) if results.unrewritten else []
    evaluation = Evaluation(results, predictions, examples, model, attempts)
    expected, marks = score_again(evaluation)
    accuracy = model.measure_accuracy(run.splits["validation"])
    expected = dataclasses.replace(expected, toxicity_accuracy=accuracy)
    same = are_close(results.to_json(), expected.to_json())
    lines = zip([*predictions, *attempts], marks, strict=True)
    if not same or not all(are_close(line["scores"], values) for line, values in lines):
        found = "its scores are not those of predictions.jsonl or unrewritten.jsonl"
        raise Refusal(f"{path}: {found}. Evaluate again: {evaluate}")
    return evaluation


def check_bindings(run: Run, results: Results, evaluate: str) -> None:
    """Verify that the results are of this run's adapter, base, prompt and test split.

    Raises:
        Refusal: they are of another one.
    """
    manifest, base = run.manifest, run.environment["base"]
    checks = {
        "another adapter (its SHA-256 differs)": results.adapter.sha256 == hash_file(run.adapter_weights),
        "another base model": dataclasses.asdict(results.base) == base,
        "another prompt": results.prompt == manifest["prompt"],
        "other rows than the run's test split": results.data.sha256 == run.split_hashes["test"],
    }
    for fault, belongs in checks.items():
        if not belongs:
            raise Refusal(f"{run.eval / RESULTS}: its scores are of {fault}. Evaluate again: {evaluate}")


def score_again(evaluation: Evaluation) -> tuple[Results, list[dict[str, float]]]:
    """Return the results that an evaluation's lines give, and the adapter's sentence scores for each line."""
    results, predictions, model = evaluation.results, evaluation.predictions, evaluation.model
    generated = {"adapter": [line["prediction"] for line in predictions]}
    generated |= {name: [line[name] for line in predictions] for name in GENERATED if name in predictions[0]}
    texts = [example.toxic for example in evaluation.examples]
    outputs = complete_outputs(generated, texts, model, tuple(results.systems))
    scores, marks = score_outputs(evaluation.examples, outputs, model, "human" in results.systems)
    stressed = [case.output for group in results.stress for case in group.cases]
    unrewritten = results.unrewritten
    if unrewritten:
        slices, others = score_unrewritten(evaluation.unrewritten, model)
        digest = hash_examples(Example(line["toxic"], ()) for line in evaluation.unrewritten)
        unrewritten = dataclasses.replace(
            unrewritten, sha256=digest, rows=len(evaluation.unrewritten), slices=slices
        )
        marks = marks + others
    commits = {name: "" for protocol in PROTOCOLS.values() for name in protocol.models.values()}
    for part in results.protocols:
        commits |= part.models
    expected = dataclasses.replace(
        results,
        **vars(scores),
        stress=judge_outputs(stressed) if stressed else (),
        protocols=describe_protocols([line.get("protocols", {}) for line in predictions], commits),
        unrewritten=unrewritten,
    )
    return expected, marks


def are_close(one: Any, other: Any) -> bool:
    """Say whether two JSON values are the same but for rounding, in which another machine may differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_close, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-4)
    return bool(one == other)
