"""The type of results.json: compared with its JSON schema, and what it says of files that are laid out otherwise."""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from eval.recheck import read_evaluation
from eval.results import RESULTS, SCHEMA, OtherSchema, Results, read_results
from sft.command import RunError
from sft.run_dir import Run
from sft.storage import PROJECT, read_json
from sft.typed_json import list_fields

NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
SCHEMA_FILE = PROJECT / "eval" / "results.schema.json"


@pytest.fixture
def text(mini_run: Path) -> str:
    return (mini_run / "eval" / RESULTS).read_text(encoding="utf-8")


def outline_type(hint: Any) -> Any:
    """Return what a type allows: its fields, each with whether it is required, or its items, or its JSON types."""
    if dataclasses.is_dataclass(hint):
        fields = list_fields(typing.cast(type, hint))
        return {name: (not optional, outline_type(kind)) for name, (kind, optional) in fields.items()}
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Mapping:
        return ("object", outline_type(arguments[1]))
    if typing.get_origin(hint) is tuple:
        return ("array", outline_type(arguments[0]))
    return {NAMES[kind] for kind in (arguments or (hint,))}


def outline_schema(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    """Return the same of a JSON schema."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")] | schema
    if "properties" in schema:
        assert schema["additionalProperties"] is False
        return {
            name: (name in schema["required"], outline_schema(part, definitions))
            for name, part in schema["properties"].items()
        }
    if schema.get("type") == "object":
        return ("object", outline_schema(schema["additionalProperties"], definitions))
    if schema.get("type") == "array":
        return ("array", outline_schema(schema["items"], definitions))
    if "type" in schema:
        return {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
    return {NAMES[type(value)] for value in schema.get("enum", [schema.get("const")])}


def test_type_and_schema_say_the_same() -> None:
    schema = read_json(SCHEMA_FILE)
    assert outline_type(Results) == outline_schema(schema, schema["$defs"])
    assert schema["properties"]["schema"]["const"] == SCHEMA
    for changed in (
        schema | {"required": schema["required"][1:]},
        schema | {"properties": schema["properties"] | {"bleu": {"type": "number"}}},
        schema | {"properties": schema["properties"] | {"processes": {"type": "string"}}},
    ):
        assert outline_type(Results) != outline_schema(changed, schema["$defs"])


def test_results_keep_their_schema(mini_run: Path) -> None:
    import jsonschema

    schema = read_json(PROJECT / "eval" / "results.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    results = read_json(mini_run / "eval" / "results.json")
    jsonschema.validate(results, schema)
    for broken in (
        results | {"schema": 3},
        results | {"bleu": 0.94},
        {**results, "systems": {"adapter": {"bleu": {"value": 94}}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_what_is_read_is_written_again(text: str) -> None:
    content = json.loads(text)
    results = Results.from_json(text)
    assert json.dumps(results.to_json()) == json.dumps(content)
    assert Results.from_json(content) == results
    assert results.systems["adapter"]["bleu"].value == content["systems"]["adapter"]["bleu"]["value"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        results.processes = 7  # type: ignore[misc]


def put(*keys: str | int, value: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return content

    return change


def drop(*keys: str) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return content

    return change


BLEU = ("systems", "adapter", "bleu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {}, "schema: found nothing, expected this key"),
        (lambda _: [], "found a list, expected an object"),
        (lambda _: None, "found null, expected an object"),
        (lambda _: "x" * 999, f'found "{"x" * 39}…, expected an object'),
        (drop("systems"), "systems: found nothing, expected this key"),
        (drop(*BLEU, "signature"), "systems.adapter.bleu.signature: found nothing, expected this key"),
        (put(*BLEU, "value", value="94"), 'systems.adapter.bleu.value: found "94", expected a number'),
        (put(*BLEU, "value", value=True), "systems.adapter.bleu.value: found true, expected a number"),
        (put(*BLEU, "value", value=None), "systems.adapter.bleu.value: found null, expected a number"),
        (put(*BLEU, value=94.0), "systems.adapter.bleu: found 94.0, expected an object"),
        (put("processes", value=1.5), "processes: found 1.5, expected a whole number"),
        (put("slices", value={}), "slices: found an object, expected a list"),
        (put("slices", 0, "rows", value=[]), "slices[0].rows: found a list, expected a whole number"),
        (
            put("stress", 0, "cases", 1, "passed", value=1),
            "stress[0].cases[1].passed: found 1, expected true or false",
        ),
        (
            put("quantization", "dtype", value=[]),
            "quantization.dtype: found a list, expected a text, a number, true",
        ),
        (
            put("data", "colour", value=1),
            "data.colour: found an unknown key, expected some of source, revision",
        ),
        (put("unrewritten", value=None), "unrewritten: found null, expected an object"),
        (put("x" * 999, value=1), f"{'x' * 120}…: found an unknown key, expected some of schema, created"),
        (put(*BLEU, "value", value=10**400), "systems.adapter.bleu.value: found 1000"),
    ],
)
def test_what_does_not_fit_is_named(text: str, change: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(RunError) as caught:
        Results.from_json(json.dumps(change(json.loads(text))), "a/results.json")
    assert str(caught.value).startswith(f"a/results.json: {message}")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"value": ', '"value": NaN, "x": ', "not JSON (NaN is no number of JSON)"),
        ('"value": ', '"value": -Infinity, "x": ', "not JSON (-Infinity is no number of JSON)"),
        ('"low": ', '"low": 1e999, "x": ', "systems.adapter.bleu."),
        (
            '"systems": ',
            '"systems": ' + "[" * 100_000 + '"x": ',
            "not JSON of this project (nested too deeply)",
        ),
        ('"systems": ', '"systems": ' + "9" * 5000 + ', "x": ', "not JSON (Exceeds the limit"),
        ("{", "", "not JSON (Extra data"),
    ],
)
def test_numbers_and_nesting_that_no_reader_takes(text: str, old: str, new: str, message: str) -> None:
    with pytest.raises(RunError) as caught:
        Results.from_json(text.replace(old, new, 1))
    assert str(caught.value).startswith(f"{RESULTS}: {message}")
    assert len(str(caught.value)) < 600


def test_bytes_that_are_no_text_and_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not JSON"):
        Results.from_json(b"\xff\xfe{")
    with pytest.raises(RunError, match=r"results\.json: missing from the run directory"):
        read_results(tmp_path / RESULTS)


def test_results_of_another_version_are_told_apart_from_broken_ones() -> None:
    with pytest.raises(OtherSchema, match=f"schema: found 5, expected {SCHEMA}") as caught:
        Results.from_json({"schema": 5})
    assert caught.value.schema == 5


def test_an_evaluation_whose_results_do_not_fit_is_not_read(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path)
    run.eval.mkdir()
    for broken in ("{}", "[]", "null", "", text.replace('"systems"', '"system"', 1)):
        (run.eval / RESULTS).write_text(broken)
        with pytest.raises(RunError, match=r"eval/results\.json: "):
            read_evaluation(run)
