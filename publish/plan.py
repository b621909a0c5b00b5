"""The publish folder: exactly the files that a push would commit, made from a run whose parts belong together."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

from eval.results import complete_outputs, describe_scores, read_evaluation
from eval.rows import read_split
from eval.stress import judge_outputs
from eval.toxicity import fit_toxicity
from publish.card import CardFacts, render_card
from sft.recipe import Recipe, load_recipe
from sft.run_dir import RunDir, RunError, hash_file, read_json, write_text

PLOTS = ("loss.png", "scores.png", "lengths.png")


def read_facts(run: RunDir) -> CardFacts:
    """Read what the card says, and hold its parts against one another.

    Raises:
        RunError: the test split is not evaluated in full, or the scores are of another adapter, base, data or prompt.
    """
    manifest, environment = read_json(run.manifest), read_json(run.environment)
    results, predictions = read_evaluation(run)
    if "training" not in environment:
        raise RunError(f"{run.environment}: no record of the training in it; the file was changed after the run.")
    recipe = load_recipe(run.recipe)
    examples = read_split(run, "test")
    generated = {"adapter": [line["prediction"] for line in predictions]}
    generated |= {name: [line[name] for line in predictions] for name in ("base", "few_shot") if name in predictions[0]}
    model = fit_toxicity(read_split(run, "train"))
    outputs = complete_outputs(generated, [example.toxic for example in examples], model, tuple(results["systems"]))
    scores, sentences = describe_scores(examples, outputs, model, "human" in results["systems"])
    stressed = [case["output"] for group in results["stress"] for case in group["cases"]]
    scores["stress"] = judge_outputs(stressed) if stressed else []
    scores["toxicity_accuracy"] = model.measure_accuracy(read_split(run, "validation"))
    lines = zip(predictions, sentences, strict=True)
    same = all(are_close(results.get(key), part) for key, part in scores.items())
    if not same or not all(are_close(line["scores"], values) for line, values in lines):
        raise RunError(
            f"{run.eval / 'results.json'}: its scores are not those of predictions.jsonl. "
            f"Evaluate again: accelerate launch eval/run.py {run.root}"
        )
    return CardFacts(name_model(recipe, run), recipe.values(), environment, manifest, results, predictions)


def are_close(one: Any, other: Any) -> bool:
    """Say whether two JSON values are the same but for the rounding of their numbers: another machine's may differ in it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_close, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-4)
    return bool(one == other)


def name_model(recipe: Recipe, run: RunDir) -> str:
    return (recipe.publish.repo_id or run.root.resolve().name).rpartition("/")[2]


def write_publish_folder(run: RunDir) -> list[Path]:
    """Make the publish folder anew, complete or not at all; return its files."""
    facts = read_facts(run)
    files = {
        run.adapter_config: "adapter_config.json",
        run.adapter_weights: "adapter_model.safetensors",
        run.eval / "results.json": "results.json",
    } | {run.plots / name: f"plots/{name}" for name in PLOTS}
    for source in files:
        if not source.is_file():
            raise RunError(f"{source}: missing. Training draws loss.png; accelerate launch eval/run.py {run.root} the others.")
    temporary = run.root / ".publish"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "plots").mkdir(parents=True)
    write_text(temporary / "README.md", render_card(facts))
    for source, name in files.items():
        shutil.copyfile(source, temporary / name)
        with (temporary / name).open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(run.publish, ignore_errors=True)
    temporary.replace(run.publish)
    return sorted(path for path in run.publish.rglob("*") if path.is_file())


def print_plan(run: RunDir, files: list[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    publish: Any = load_recipe(run.recipe).publish
    table = Table("file", "bytes", "sha256", title="what a push would commit")
    for path in files:
        table.add_row(str(path.relative_to(run.publish)), f"{path.stat().st_size:,}", hash_file(path)[:16])
    console.print(table)
    visibility = "private" if publish.private else "public"
    console.print(f"to          {publish.repo_id or 'publish.repo_id is not set'}, {visibility}", highlight=False)
    console.print("Nothing has left this machine.")
