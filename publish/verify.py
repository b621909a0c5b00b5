"""Does a published adapter's card tell the truth? python -m publish.verify REPO_ID [--rerun]"""

import argparse
import dataclasses
import difflib
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.adapter import find_foreign_config, find_foreign_settings
from eval.results import RESULTS, SCHEMA, OtherSchema, Results, read_results
from publish.card import BEGIN, END, list_metrics, render_card, restore_facts, split_card
from publish.hub import Target, call_again, check_online, connect, explain_failure, list_errors
from sft.command import InputError, Refusal, run_command
from sft.hub import HubFailure, explain_errors, first_line, is_passing
from sft.recipe import load_recipe
from sft.storage import hash_file, read_json

CARD_FILES = ("README.md", "card.json", "recipe.yaml", RESULTS)  # by which the card is rendered again
FILES = (*CARD_FILES, "adapter_config.json", "adapter_model.safetensors")
OURS = (
    "base_model",
    "base_model_relation",
    "co2_eq_emissions",
    "model-index",
)  # metadata that no person adds
NEAR = 0.01  # of a score's range: what another machine's rounding may change in a few of its outputs


@dataclass(frozen=True)
class Check:
    """One thing that the repository says, and what was found."""

    what: str
    said: str
    found: str
    holds: bool


def download(name: str, revision: str | None) -> Path:
    """Download what is checked, as the Hub has it now; return the folder, whose name is the commit.

    Raises:
        HubFailure: the Hub fails; what an earlier call has left in the cache may be out of date.
        InputError: there is no such repository, or a file is missing in it.
    """
    check_online()
    api = connect()
    with explain_errors(name, "adapter", revision):
        try:
            info = call_again(lambda: api.repo_info(name, revision=revision))
            if missing := sorted(set(FILES) - {sibling.rfilename for sibling in info.siblings}):
                raise InputError(
                    f"{name}: no {', '.join(missing)} in it. Expected an adapter that this project published."
                )
            for file in FILES:
                path = call_again(functools.partial(api.hf_hub_download, name, file, revision=info.sha))
        except list_errors() as error:
            if not is_passing(error):
                raise
            raise HubFailure(
                f"{name}: {explain_failure(error, Target(name))} Nothing was verified."
            ) from None
    return Path(path).parent


def check_files(folder: Path) -> list[Check]:
    """Compare weights, config, base and card with results.json.

    Raises:
        InputError: another version of this project made them, whose card says the same in other words.
    """
    config = read_json(folder / "adapter_config.json")
    try:
        results = Results.from_json((folder / RESULTS).read_bytes())
    except OtherSchema as error:
        message = f"{RESULTS} has schema {error.schema}, and this version reads {SCHEMA}"
        advice = "Verify with the version that published it (its card names the commit), or publish again."
        raise InputError(f"{message}. {advice}") from None
    adapter, base = results.adapter, results.base
    checks = [
        compare("SHA-256 of the weights", adapter.sha256, hash_file(folder / "adapter_model.safetensors")),
        compare(
            "SHA-256 of adapter_config.json",
            adapter.config_sha256 or f"not in {RESULTS}",
            hash_file(folder / "adapter_config.json"),
        ),
        compare(
            "base model",
            f"{base.name} {base.revision}",
            f"{config['base_model_name_or_path']} {config['revision']}",
        ),
    ]
    faults = [*find_foreign_settings(results.to_json()), *filter(None, [find_foreign_config(config)])]
    checks += [
        Check("settings that can be used", fault, "settings of this project", False) for fault in faults
    ]
    return checks + check_card(folder)


def check_card(folder: Path) -> list[Check]:
    """Render the card again from results.json, recipe.yaml and card.json; compare all that is generated."""
    results, record = read_json(folder / RESULTS), read_json(folder / "card.json")
    facts = restore_facts(record, results, load_recipe(folder / "recipe.yaml").values())
    manifest, data = record["manifest"], results["data"]
    checks = [
        compare("data of card.json", manifest["source"], data["source"]),
        compare("test split of card.json", manifest["splits"]["test"]["sha256"], data["sha256"]),
    ]
    metadata, text = split_card((folder / "README.md").read_text(encoding="utf-8"))
    expected, ours = split_card(render_card(facts))
    checks += check_metrics(metadata, results)
    for key in [*expected, *(key for key in OURS if key in metadata and key not in expected)]:
        if key != "model-index" or key in metadata:  # where it is not there, each metric is missed already
            said, found = (describe_metadata(values, key) for values in (metadata, expected))
            checks.append(compare(f"{key} in the card's metadata", said, found))
    return checks + check_text(text, ours)


def describe_metadata(metadata: Mapping[str, Any], key: str) -> str:
    """Return a key's value as text, without the metrics, which `check_metrics` compares one by one."""
    if key not in metadata:
        return "not there"
    value = metadata[key]
    if key == "model-index":
        results = [{**result, "metrics": "..."} for model in value for result in model["results"]]
        value = [[{**model, "results": "..."} for model in value], results]
    return json.dumps(value, default=str)


def compare(what: str, said: str, found: str) -> Check:
    return Check(what, said, found, said == found)


def check_metrics(metadata: Mapping[str, Any], results: Mapping[str, Any]) -> list[Check]:
    """Compare each metric of the card's metadata with results.json, and look for each that must be there."""
    entries = [
        entry
        for model in metadata.get("model-index") or ()
        for result in model["results"]
        for entry in result["metrics"]
    ]
    told: dict[str, list[tuple[Any, str]]] = {}
    for entry in entries:
        told.setdefault(entry["name"], []).append((entry["value"], entry["args"]["signature"]))
    expected = {name: [(score["value"], score["signature"])] for _, name, score in list_metrics(results)}
    checks = []
    for name in expected | told:
        said, found = told.get(name, []), expected.get(name, [])
        checks.append(
            Check(f"{name} on the card", describe_metric(said), describe_metric(found), said == found)
        )
    return checks


def describe_metric(entries: Sequence[tuple[Any, str]]) -> str:
    return ", ".join(f"{value} ({signature})" for value, signature in entries) or "not there"


def check_text(text: str, expected: str) -> list[Check]:
    """Compare the generated parts of two cards, each line and each cell of a table."""
    said, found = (card.partition(BEGIN)[2].partition(END)[0].splitlines() for card in (text, expected))
    failed = list(compare_lines("the card", said, found))
    return failed or [Check("the card's text", "as in its results", "as in its results", True)]


def compare_lines(part: str, said: Sequence[str], expected: Sequence[str]) -> Iterator[Check]:
    """Yield a failed check for each cell of a table, and each other line, that differs."""
    said, expected = list(filter(str.strip, said)), list(filter(str.strip, expected))
    for kind, first, last, start, end in difflib.SequenceMatcher(
        None, said, expected, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            continue
        for number, (one, other) in enumerate(
            itertools.zip_longest(said[first:last], expected[start:end], fillvalue=""), start
        ):
            cells, wanted = split_row(one), split_row(other)
            if one.startswith("|") and other.startswith("|") and len(cells) == len(wanted):
                heads = [
                    row for row, rule in itertools.pairwise(expected[: number + 1]) if rule.startswith("|---")
                ]
                head = split_row(heads[-1]) if heads else []
                for column, cell, value in itertools.zip_longest(head, cells, wanted, fillvalue=""):
                    if cell != value:
                        yield Check(f"{part}: {column or 'name'} of {wanted[0]}", cell, value, False)
            else:
                yield Check(
                    f"{part}: {' '.join((other or one).split()[:6])}", *show_difference(one, other), False
                )


def split_row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def show_difference(one: str, other: str) -> tuple[str, str]:
    """Return the words of two lines that differ, or "not there"."""
    words, others = one.split(), other.split()
    if len(words) == len(others):
        differing = [pair for pair in zip(words, others, strict=True) if pair[0] != pair[1]]
        words, others = [pair[0] for pair in differing], [pair[1] for pair in differing]
    return " ".join(words) or "not there", " ".join(others) or "not there"


def rerun(name: str, folder: Path, source: str | None) -> list[Check]:
    """Make the test split again from its source, rewrite it with the published adapter, compare the scores.

    Raises:
        Refusal: the source's rows are no longer those that were evaluated.
    """
    from eval.adapter import download_adapter
    from eval.generate import load_rewriter
    from eval.metrics import compute_scores
    from sft.splits import hash_examples
    from sft.stream import read_splits

    results, data = read_results(folder / RESULTS), load_recipe(folder / "recipe.yaml").data
    corpus, splits = read_splits(dataclasses.replace(data, source=source, revision=None) if source else data)
    examples = splits["test"]
    if hash_examples(examples) != results.data.sha256:
        raise Refusal(
            f"{corpus.source.name}: its test split is not the one that was evaluated (the SHA-256 differs)."
        )
    rewrites = load_rewriter(download_adapter(name, folder.name)).rewrite(
        [e.toxic for e in examples], "generating"
    )
    found = compute_scores(rewrites, [example.references for example in examples])
    checks = []
    for key, score in found.items():
        said = results.systems["adapter"][key].value
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
        description="Download a published adapter and compare its weights, its results.json and its card. "
        "Exit status: 0 all holds, 2 bad input, 3 something does not hold, 4 the Hub failed.",
    )
    parser.add_argument(
        "repo_id", metavar="REPO_ID", help="OWNER/NAME of an adapter that publish.run has pushed"
    )
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="also make the test split again, rewrite it all, and compare scores",
    )
    parser.add_argument(
        "--source", metavar="FILE", help="with --rerun: where the data is now, if not where the recipe says"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    folder = download(arguments.repo_id, arguments.revision)

    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        checks = check_files(folder)
    except InputError as error:
        raise InputError(f"{arguments.repo_id}: {error}") from None
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
        TemplateError,
        YAMLError,
    ) as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{arguments.repo_id}: its files are not of this project's making ({problem})."
        ) from None
    if arguments.rerun and all(check.holds for check in checks):
        checks += rerun(arguments.repo_id, folder, arguments.source)
    report: dict[str, Any] = {"repo_id": arguments.repo_id, "commit": folder.name}
    report["checks"] = [dataclasses.asdict(check) for check in checks]
    if not arguments.json:
        print_checks(checks)
    failed = [check.what for check in checks if not check.holds]
    if failed:
        message = (
            f"{arguments.repo_id} at {folder.name[:12]}: its card's numbers do not hold: {', '.join(failed)}."
        )
        raise Refusal(message, report)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{arguments.repo_id} at {folder.name[:12]}: its card's numbers hold.")
    print(
        "Not made again: what card.json alone says (the training's record, samples, "
        "and how a merged model agrees)."
    )


if __name__ == "__main__":
    run_command(main)
