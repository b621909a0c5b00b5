"""The publish folder: exactly the files of a push, made from a run whose parts belong together."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.adapter import find_config_fault
from eval.recheck import read_evaluation
from eval.results import RESULTS
from eval.scoring import Evaluation
from publish.card import CardFacts, describe_record, render_card
from publish.licence import write_license
from publish.samples import choose_examples, mask_samples, write_samples
from publish.scan import refuse_private
from sft.command import Refusal, RunError
from sft.recipe import dump_yaml
from sft.run_dir import Run
from sft.storage import check_seal, replace_folder

PLOTS = ("loss.png", "scores.png", "lengths.png")


def read_facts(run: Run, repo_id: str | None = None) -> tuple[CardFacts, Evaluation]:
    """Read what the card says, its parts compared with one another. `repo_id` goes before the recipe's own.

    Raises:
        RunError: the environment has no record of the training, or the evaluation has no hash of
            adapter_config.json.
        InputError: see `read_evaluation`.
        Refusal: adapter_config.json is not the one that was evaluated.
    """
    manifest, environment = run.manifest, run.environment
    evaluation = read_evaluation(run)
    results = evaluation.results.to_json()
    evaluate = f"Evaluate again: accelerate launch eval/run.py {run.root}"
    if evaluation.results.adapter.config_sha256 is None:
        raise RunError(
            f"{run.eval / RESULTS}: made by a version that did not hash adapter_config.json. {evaluate}"
        )
    if fault := find_config_fault(run.adapter_config, results):
        raise Refusal(f"{run.adapter_config}: {fault}. {evaluate}")
    if "training" not in environment:
        raise RunError(
            f"{run.environment_path}: no record of the training in it; the file was changed after the run."
        )
    run.check_seal()
    check_seal(run.eval, evaluate)
    recipe = run.recipe
    values = recipe.values()
    values["publish"]["repo_id"] = repo_id or recipe.publish.repo_id
    name = (values["publish"]["repo_id"] or run.root.resolve().name).rpartition("/")[2]
    lexicon = evaluation.model.lexicon
    samples, examples = (
        mask_samples(evaluation.predictions, lexicon),
        choose_examples(results, lexicon),
    )
    return CardFacts(name, values, environment, manifest, results, samples, examples), evaluation


def clean_recipe(run: Run) -> str:
    """Return the run's recipe without what is of this machine alone; absolute paths keep their last part."""
    values = run.recipe.values()
    del values["output_dir"]
    values["publish"]["emissions_country"] = None  # of where this machine stands

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(inner) for key, inner in value.items()}
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return dump_yaml(clean(values))


def write_publish_folder(run: Run, repo_id: str | None = None, merged: bool = False) -> list[Path]:
    """Make the publish folder anew, complete or not at all; return its files.

    With `merged`, the merged model is among them.

    Raises:
        Refusal: something in it must not leave this machine; or see `read_facts` and `write_merged`.
    """
    facts, evaluation = read_facts(run, repo_id)
    extra: dict[str, Path] = {}
    if merged:
        from publish.merge import write_merged

        folder = run.root / ".merged"
        facts = dataclasses.replace(facts, merged=write_merged(run, folder, evaluation.predictions))
        extra = {
            f"merged/{path.relative_to(folder).as_posix()}": path
            for path in folder.rglob("*")
            if path.is_file()
        }
    files = {
        run.adapter_config: "adapter_config.json",
        run.adapter_weights: "adapter_model.safetensors",
        run.eval / RESULTS: RESULTS,
    } | {run.plots / name: f"plots/{name}" for name in PLOTS}
    for source in files:
        if not source.is_file():
            raise RunError(
                f"{source}: missing. Training draws loss.png; "
                f"accelerate launch eval/run.py {run.root} the others."
            )
    contents = {"README.md": render_card(facts).encode(), "recipe.yaml": clean_recipe(run).encode()}
    contents["card.json"] = (json.dumps(describe_record(facts), indent=2, ensure_ascii=False) + "\n").encode()
    shown = facts.recipe["eval"]["samples"], facts.results["data"]["source"]
    contents["samples.md"] = write_samples(evaluation.predictions, evaluation.model.lexicon, *shown).encode()
    contents |= {name: source.read_bytes() for source, name in files.items()}
    contents |= {name: source.read_bytes() for name, source in extra.items()}
    if license := write_license(facts.recipe["publish"]["license"], facts.merged is not None):
        contents["LICENSE"] = license.encode()
    owner = facts.recipe["publish"]["repo_id"]
    refuse_private(contents, owner and owner.partition("/")[0])
    temporary = run.root / ".publish"
    shutil.rmtree(temporary, ignore_errors=True)
    for name, content in contents.items():
        path = temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.write(content)
            os.fsync(stream.fileno())
    replace_folder(temporary, run.publish)
    shutil.rmtree(run.root / ".merged", ignore_errors=True)
    return [run.publish / name for name in sorted(contents)]


def describe_files(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    ]


def print_plan(run: Run, files: Mapping[str, bytes]) -> None:
    from rich.table import Table

    from sft.terminal import Terminal

    table = Table("file", "bytes", "sha256", title=f"{run.publish}: what a push commits")
    for file in describe_files(files):
        table.add_row(file["name"], f"{file['bytes']:,}", file["sha256"][:16])
    Terminal().print(table)
