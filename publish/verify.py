"""Does a published adapter's card tell the truth? python -m publish.verify REPO_ID [--rerun]"""

import argparse
import dataclasses
import difflib
import functools
import itertools
import json
import math
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
    """Make the splits again from their source, write and score all rows again, and compare.

    Each system's scores, people's, slices and differences are compared, the stress cases, and the
    classifier's accuracy. What a language model wrote is compared within NEAR, all else to rounding.

    Raises:
        Refusal: the source's rows are no longer those that were evaluated.
    """
    from eval.adapter import download_adapter
    from eval.generate import load_rewriter
    from eval.scoring import complete_outputs, score_outputs
    from eval.stress import judge_outputs, list_texts
    from eval.toxicity import fit_toxicity
    from sft.splits import hash_examples
    from sft.stream import read_splits

    results, data = read_results(folder / RESULTS), load_recipe(folder / "recipe.yaml").data
    corpus, splits = read_splits(dataclasses.replace(data, source=source, revision=None) if source else data)
    examples = splits["test"]
    if hash_examples(examples) != results.data.sha256:
        raise Refusal(
            f"{corpus.source.name}: its test split is not the one that was evaluated (the SHA-256 differs)."
        )
    texts, adapter = [example.toxic for example in examples], download_adapter(name, folder.name)
    rewriter = load_rewriter(adapter)
    generated = {"adapter": rewriter.rewrite(texts, "generating")}
    stressed = rewriter.rewrite(list_texts(), "stress cases") if results.stress else []
    if "base" in results.systems:
        generated["base"] = load_rewriter(adapter, tuned=False).rewrite(texts, "untuned base")
    model = fit_toxicity(splits["train"])
    outputs = complete_outputs(generated, texts, model, tuple(results.systems))
    scores, _ = score_outputs(examples, outputs, model, "human" in results.systems)
    found = dataclasses.replace(
        results,
        **vars(scores),
        stress=judge_outputs(stressed) if stressed else (),
        toxicity_accuracy=model.measure_accuracy(splits["validation"]),
    )
    return list(compare_scores(results.to_json(), found.to_json()))


AGAIN = (
    "systems",
    "differences",
    "ceiling",
    "slices",
    "stress",
    "toxicity_accuracy",
)  # sections of results.json


def compare_scores(said: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Check]:
    """Yield a check for each number that was made again; those of systems that were not are left out."""
    sizes = {f"slices.{part['by']} {part['slice']}": part["rows"] for part in found["slices"]}
    sizes |= {"ceiling": found["ceiling"]["rows"]} if found.get("ceiling") else {}
    for section in AGAIN:
        values, others = dict(flatten(said.get(section), section)), dict(flatten(found.get(section), section))
        for place in values | others:
            one, other = values.get(place), others.get(place)
            if "few_shot" in place or (section == "stress" and not place.endswith(".passed")):
                continue
            size = next((size for part, size in sizes.items() if place.startswith(f"{part}.")), None)
            near = NEAR * found["data"]["rows"] / size if size else NEAR  # one output weighs more on few rows
            holds = are_near(place, one, other, near)
            yield Check(f"{place}, made again", show_number(one), show_number(other), holds)


def flatten(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and texts in a JSON value, each with its place; parts of lists by their names."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flatten(inner, f"{place}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            names = [inner.get(key) for key in ("by", "slice", "group")] if isinstance(inner, Mapping) else []
            yield from flatten(inner, f"{place}.{' '.join(filter(None, names)) or number}")
    elif value is not None:
        yield place, value


def are_near(place: str, one: Any, other: Any, near: float) -> bool:
    """Say whether a value of results.json and the same made again agree, within `near` of a score's range."""
    if type(one) is bool or not isinstance(one, int | float) or not isinstance(other, int | float):
        return bool(one == other)
    parts = place.split(".")
    if parts[0] == "stress" and len(parts) == 3:
        return abs(one - other) <= 1  # of the cases of a group
    # People's, the copied and the cut rows need no model, nor do counts of rows.
    exact = {"copy", "delete", "human"} & set(parts) and parts[0] != "differences"
    if exact or parts[-1] == "rows" or parts[0] == "toxicity_accuracy":
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-4)
    metric = parts[-2] if parts[-1] in ("value", "low", "high") else parts[-1]
    largest = 100 if metric.startswith(("bleu", "chrf")) else 1
    return abs(one - other) <= near * largest


def show_number(value: Any) -> str:
    return "not there" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def print_checks(checks: list[Check]) -> None:
    from rich.table import Table

    from sft.terminal import Terminal

    table = Table("", "what", "said", "found")
    for check in checks:
        table.add_row("holds" if check.holds else "FAILS", check.what, check.said[:44], check.found[:44])
    Terminal().print(table)


def parse_arguments() -> argparse.Namespace:
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
        help="also make the splits again, rewrite the test split, and compare all scores that this gives",
    )
    parser.add_argument(
        "--source", metavar="FILE", help="with --rerun: where the data is now, if not where the recipe says"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser.parse_args()


def check_foreign(name: str, folder: Path) -> list[Check]:
    """Return `check_files` of a download, whose files may be anything.

    Raises:
        InputError: they are not what this project writes.
    """
    from jinja2 import TemplateError
    from yaml import YAMLError

    try:
        return check_files(folder)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
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
        raise InputError(f"{name}: its files are not of this project's making ({problem}).") from None


def list_unchecked(results: Results, rerun: bool) -> list[str]:
    """Return what was not made again, and so rests on the publisher's word."""
    parts = ["what card.json alone says (the training's record, samples, how a merged model agrees)"]
    if not rerun:
        return [*parts, "the scores themselves, which --rerun makes again"]
    parts += ["the few-shot base's scores"] if "few_shot" in results.systems else []
    parts += [f"the scores of {part.source}" for part in results.protocols]
    parts += ["the sentences that nobody could rewrite"] if results.unrewritten else []
    return [*parts, "times"]


def main() -> None:
    arguments = parse_arguments()
    folder = download(arguments.repo_id, arguments.revision)
    checks = check_foreign(arguments.repo_id, folder)
    made_again = arguments.rerun and all(check.holds for check in checks)
    if made_again:
        checks += rerun(arguments.repo_id, folder, arguments.source)
    report: dict[str, Any] = {"repo_id": arguments.repo_id, "commit": folder.name}
    report["checks"] = [dataclasses.asdict(check) for check in checks]
    if not arguments.json:
        print_checks(checks)
    name = f"{arguments.repo_id} at {folder.name[:12]}"
    failed = [check.what for check in checks if not check.holds]
    if failed:
        raise Refusal(f"{name}: its card's numbers do not hold: {', '.join(failed)}.", report)
    report["not_checked"] = list_unchecked(read_results(folder / RESULTS), made_again)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{name}: its card's numbers hold.")
    print(f"Not made again: {', '.join(report['not_checked'])}.")


if __name__ == "__main__":
    run_command(main)
