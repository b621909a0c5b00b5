"""The publish folder: exactly the files that a push would commit, made from a run whose parts belong together."""

import dataclasses
import hashlib
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.results import GENERATED, complete_outputs, describe_scores, describe_unrewritten, read_evaluation
from eval.rows import read_split
from eval.stress import judge_outputs
from eval.toxicity import fit_toxicity
from publish.card import CardFacts, render_card, write_license, write_samples
from publish.scan import find_private
from sft.data import Example, hash_examples
from sft.recipe import dump_yaml, load_recipe
from sft.run_dir import Refusal, RunDir, RunError, read_json, read_json_lines

PLOTS = ("loss.png", "scores.png", "lengths.png")


def read_facts(run: RunDir, repo_id: str | None = None) -> CardFacts:
    """Read what the card says, and hold its parts against one another. `repo_id` goes before the recipe's own.

    Raises:
        RunError: the test split is not evaluated in full.
        Refusal: the scores are of another adapter, base, data or prompt, or not those of the predictions.
    """
    manifest, environment = read_json(run.manifest), read_json(run.environment)
    results, predictions = read_evaluation(run)
    if "training" not in environment:
        raise RunError(f"{run.environment}: no record of the training in it; the file was changed after the run.")
    recipe = load_recipe(run.recipe)
    examples = read_split(run, "test")
    generated = {"adapter": [line["prediction"] for line in predictions]}
    generated |= {name: [line[name] for line in predictions] for name in GENERATED if name in predictions[0]}
    model = fit_toxicity(read_split(run, "train"))
    outputs = complete_outputs(generated, [example.toxic for example in examples], model, tuple(results["systems"]))
    scores, sentences = describe_scores(examples, outputs, model, "human" in results["systems"])
    stressed = [case["output"] for group in results["stress"] for case in group["cases"]]
    scores["stress"] = judge_outputs(stressed) if stressed else []
    scores["toxicity_accuracy"] = model.measure_accuracy(read_split(run, "validation"))
    lines = list(zip(predictions, sentences, strict=True))
    if "unrewritten" in results:
        attempts = read_json_lines(run.eval / "unrewritten.jsonl")
        slices, marks = describe_unrewritten(attempts, model)
        digest = hash_examples(Example(line["toxic"], ()) for line in attempts)
        scores["unrewritten"] = results["unrewritten"] | {"sha256": digest, "rows": len(attempts), "slices": slices}
        lines += zip(attempts, marks, strict=True)
    same = all(are_close(results.get(key), part) for key, part in scores.items())
    if not same or not all(are_close(line["scores"], values) for line, values in lines):
        raise Refusal(
            f"{run.eval / 'results.json'}: its scores are not those of predictions.jsonl or unrewritten.jsonl. "
            f"Evaluate again: accelerate launch eval/run.py {run.root}"
        )
    values = recipe.values()
    values["publish"]["repo_id"] = repo_id or recipe.publish.repo_id
    name = (values["publish"]["repo_id"] or run.root.resolve().name).rpartition("/")[2]
    return CardFacts(name, values, environment, manifest, results, predictions, model.lexicon)


def are_close(one: Any, other: Any) -> bool:
    """Say whether two JSON values are the same but for the rounding of their numbers: another machine's may differ in it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_close, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-4)
    return bool(one == other)


def clean_recipe(run: RunDir) -> str:
    """Return the run's recipe without what is of this machine alone: of absolute paths the last part is left."""
    values = load_recipe(run.recipe).values()
    del values["output_dir"]

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return dump_yaml(clean(values))


def write_publish_folder(run: RunDir, repo_id: str | None = None, merged: bool = False) -> list[Path]:
    """Make the publish folder anew, complete or not at all; return its files. With `merged`, also the merged model.

    Raises:
        Refusal: something in it must not leave this machine; or see `read_facts` and `write_merged`.
    """
    facts = read_facts(run, repo_id)
    extra: dict[str, Path] = {}
    if merged:
        from publish.merge import write_merged

        folder = run.root / ".merged"
        facts = dataclasses.replace(facts, merged=write_merged(run, folder, facts.predictions))
        extra = {f"merged/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
    files = {
        run.adapter_config: "adapter_config.json",
        run.adapter_weights: "adapter_model.safetensors",
        run.eval / "results.json": "results.json",
    } | {run.plots / name: f"plots/{name}" for name in PLOTS}
    for source in files:
        if not source.is_file():
            raise RunError(f"{source}: missing. Training draws loss.png; accelerate launch eval/run.py {run.root} the others.")
    contents = {"README.md": render_card(facts).encode(), "recipe.yaml": clean_recipe(run).encode()}
    contents["samples.md"] = write_samples(facts).encode()
    contents |= {name: source.read_bytes() for source, name in files.items()}
    contents |= {name: source.read_bytes() for name, source in extra.items()}
    if license := write_license(facts):
        contents["LICENSE"] = license.encode()
    if found := find_private(contents):
        raise Refusal("these files hold what must not leave this machine; nothing was written:\n" + "\n".join(found))
    temporary = run.root / ".publish"
    shutil.rmtree(temporary, ignore_errors=True)
    for name, content in contents.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(content)
            os.fsync(stream.fileno())
    shutil.rmtree(run.publish, ignore_errors=True)
    temporary.replace(run.publish)
    shutil.rmtree(run.root / ".merged", ignore_errors=True)
    return [run.publish / name for name in sorted(contents)]


def describe_files(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    ]


def print_plan(run: RunDir, files: Mapping[str, bytes]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "bytes", "sha256", title=f"{run.publish}: what a push commits")
    for file in describe_files(files):
        table.add_row(file["name"], f"{file['bytes']:,}", file["sha256"][:16])
    Console().print(table)
