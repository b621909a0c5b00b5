"""The publish folder: exactly the files that a push would commit, made from a run whose parts belong together."""

import os
import shutil
from pathlib import Path
from typing import Any

from eval.baselines import fit_lexicon
from eval.report import SCHEMA, complete_outputs, describe_systems, score_systems
from eval.rows import read_split
from publish.card import CardFacts, render_card
from sft.recipe import Recipe, load_recipe
from sft.run_dir import RunDir, RunError, hash_file, read_json, read_json_lines, write_text

PLOTS = ("loss.png", "scores.png", "lengths.png")


def read_facts(run: RunDir) -> CardFacts:
    """Read what the card says, and hold its parts against one another.

    Raises:
        RunError: the test split is not evaluated in full, or the scores are of another adapter, base, data or prompt.
    """
    evaluate = f"accelerate launch eval/run.py {run.root}"
    if not (run.eval / "results.json").is_file():
        raise RunError(f"{run.root}: its whole test split is not evaluated yet. Run: {evaluate}")
    results, manifest, environment = (
        read_json(run.eval / "results.json"),
        read_json(run.manifest),
        read_json(run.environment),
    )
    if results["schema"] != SCHEMA:
        raise RunError(f"{run.eval / 'results.json'}: made by another version of this project. Evaluate again: {evaluate}")
    checks = {
        "another adapter (its SHA-256 differs)": results["adapter"]["sha256"] == hash_file(run.adapter_weights),
        "another base model": results["base"] == environment["base"],
        "another prompt": results["prompt"] == manifest["prompt"],
        "other rows than the run's test split": results["data"]["sha256"] == manifest["splits"]["test"]["sha256"],
    }
    for fault, belongs in checks.items():
        if not belongs:
            raise RunError(f"{run.eval / 'results.json'}: its scores are of {fault}. Evaluate again: {evaluate}")
    if "training" not in environment:
        raise RunError(f"{run.environment}: no record of the training in it; the file was changed after the run.")
    recipe = load_recipe(run.recipe)
    predictions = read_json_lines(run.eval / "predictions.jsonl")
    generated = {"adapter": [line["prediction"] for line in predictions]}
    if "base" in predictions[0]:
        generated["base"] = [line["base"] for line in predictions]
    lexicon = fit_lexicon(read_split(run, "train"))
    outputs = complete_outputs(generated, [line["toxic"] for line in predictions], lexicon, tuple(results["systems"]))
    scores = describe_systems(score_systems(outputs, [line["references"] for line in predictions], lexicon))
    if any(results[key] != part for key, part in scores.items()):
        raise RunError(f"{run.eval / 'results.json'}: its scores are not those of predictions.jsonl. Evaluate again: {evaluate}")
    return CardFacts(name_model(recipe, run), recipe.values(), environment, manifest, results, predictions)


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
