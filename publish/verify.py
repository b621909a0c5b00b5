"""Does a published adapter's card tell the truth? python -m publish.verify REPO_ID [--rerun]"""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from publish.card import split_card
from sft.hub import explain_errors, first_line
from sft.recipe import InputError, load_recipe, run_command
from sft.run_dir import Refusal, hash_file, read_json

FILES = ("README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "results.json")
NEAR = 0.01  # of a score's range: what another machine's rounding may change in a few of its outputs


@dataclass(frozen=True)
class Check:
    """One thing that the repository says, and what was found."""

    what: str
    said: str
    found: str
    holds: bool


def download(name: str, revision: str | None) -> Path:
    """Download what is checked; return the folder, whose name is the commit.

    Raises:
        InputError: there is no such repository, or a file is missing in it.
    """
    from huggingface_hub import snapshot_download

    with explain_errors(name, "adapter", revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise InputError(f"{name}: no {', '.join(missing)} in it. Expected an adapter that this project published.")
    return folder


def check_files(folder: Path) -> list[Check]:
    """Hold weights, base and card against results.json."""
    results, config = read_json(folder / "results.json"), read_json(folder / "adapter_config.json")
    said, found = results["adapter"]["sha256"], hash_file(folder / "adapter_model.safetensors")
    checks = [Check("SHA-256 of the weights", said, found, said == found)]
    base = results["base"]
    said, found = f"{base['name']} {base['revision']}", f"{config['base_model_name_or_path']} {config['revision']}"
    checks.append(Check("base model", said, found, base["revision"] is None or said == found))
    metadata, text = split_card((folder / "README.md").read_text(encoding="utf-8"))
    told = [metric for model in metadata["model-index"] for result in model["results"] for metric in result["metrics"]]
    scores = results["systems"]["adapter"]
    for metric in told:
        key = next((key for key, score in scores.items() if score["signature"] == metric["args"]["signature"]), None)
        value = scores[key]["value"] if key else None
        said, found = f"{metric['value']}", "not in results.json" if value is None else f"{value}"
        checks.append(Check(f"{metric['name']} on the card", said, found, metric["value"] == value))
    sha256 = results["adapter"]["sha256"]
    checks.append(Check("weights named on the card", sha256, sha256 if sha256 in text else "not named", sha256 in text))
    return checks


def rerun(name: str, folder: Path, source: str | None) -> list[Check]:
    """Make the test split again from its source, rewrite it with the published adapter, and compare the scores.

    Raises:
        Refusal: the source's rows are no longer those that were evaluated.
    """
    from eval.generate import download_adapter, load_rewriter
    from eval.metrics import compute_scores
    from sft.data import hash_examples
    from sft.stream import read_splits

    results, data = read_json(folder / "results.json"), load_recipe(folder / "recipe.yaml").data
    corpus, splits = read_splits(dataclasses.replace(data, source=source, revision=None) if source else data)
    examples = splits["test"]
    if hash_examples(examples) != results["data"]["sha256"]:
        raise Refusal(f"{corpus.source.name}: its test split is not the one that was evaluated (the SHA-256 differs).")
    rewrites = load_rewriter(download_adapter(name, folder.name)).rewrite([e.toxic for e in examples], "generating")
    found = compute_scores(rewrites, [example.references for example in examples])
    checks = []
    for key, score in found.items():
        said = results["systems"]["adapter"][key]["value"]
        largest = 1 if key.startswith("rouge") else 100
        near = abs(score.value - said) <= NEAR * largest
        checks.append(Check(f"{key}, evaluated again", f"{said:.4f}", f"{score.value:.4f}", near))
    return checks


def print_checks(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "what", "said", "found")
    for check in checks:
        table.add_row("holds" if check.holds else "FAILS", check.what, check.said[:44], check.found[:44])
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m publish.verify",
        description="Download a published adapter and hold its weights, its results.json and its card against one another. "
        "Exit status: 0 all holds, 2 bad input, 3 something does not hold.",
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME of an adapter that publish.run has pushed")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--rerun", action="store_true", help="also make the test split again, rewrite it all, and compare scores")
    parser.add_argument("--source", metavar="FILE", help="with --rerun: where the data is now, if not where the recipe says")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    folder = download(arguments.repo_id, arguments.revision)
    try:
        checks = check_files(folder)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{arguments.repo_id}: its files are not of this project's making ({problem}).") from None
    if arguments.rerun and all(check.holds for check in checks):
        checks += rerun(arguments.repo_id, folder, arguments.source)
    report: dict[str, Any] = {"repo_id": arguments.repo_id, "commit": folder.name}
    report["checks"] = [dataclasses.asdict(check) for check in checks]
    if not arguments.json:
        print_checks(checks)
    failed = [check.what for check in checks if not check.holds]
    if failed:
        message = f"{arguments.repo_id} at {folder.name[:12]}: its card's numbers do not hold: {', '.join(failed)}."
        raise Refusal(message, report)
    print(json.dumps(report) if arguments.json else f"{arguments.repo_id} at {folder.name[:12]}: its card's numbers hold.")


if __name__ == "__main__":
    run_command(main)
