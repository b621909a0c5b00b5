"""Reading a recipe: YAML and command-line overrides -> one typed object, or all its faults at once."""

import argparse
import dataclasses
import difflib
import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from sft.command import run_command, tell_once
from sft.rules import check_range, find_conflicts
from sft.schema import SECTIONS, Faults, Recipe, RecipeError, RecipeFaults
from sft.storage import PROJECT
from sft.trl_keys import extract_trl_keys, known_keys, refuse_key

KIND_NAMES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list of texts",
    "dict": "a mapping",
    "null": "null",
}
DEEPEST, LONGEST = 20, 1_000  # of a recipe's values: brackets in one another, characters of a text


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe file, with `--key value` overrides.

    Raises:
        RecipeFaults: with a line for each fault.
    """
    recipe, faults = parse_recipe(path, overrides)
    if faults.lines:
        raise RecipeFaults(faults.lines)
    return recipe


def parse_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Faults]:
    """Return the recipe with defaults in place of what is faulty, and the faults.

    Raises:
        RecipeFaults: the file can't be read as YAML at all.
    """
    path = Path(path)
    faults = Faults()
    nodes = {key: (place, node) for key, place, node in read_nodes(path, faults)}
    changed = {key: (flag, node) for key, flag, node in read_overrides(overrides, faults)}
    if "data.source" in changed and "data.targets" in nodes and "data.targets" not in changed:
        place, _ = nodes.pop("data.targets")
        tell_once(
            f"{place}: data.targets left out: they are for the recipe's own data, "
            "and --data.source names other data"
        )
    nodes |= changed
    values = {key: spec["default"] for key, spec in known_keys().items()}
    for key, (place, node) in nodes.items():
        try:
            values[key] = read_value(key, node)
        except RecipeError as error:
            faults.add(place, key, str(error))
    sections: dict[str, Any] = {
        section: kind(**{f.name: values.pop(f"{section}.{f.name}") for f in dataclasses.fields(kind)})
        for section, kind in SECTIONS.items()
    }
    places = {"": str(path)} | {key: place for key, (place, _) in nodes.items()}
    recipe = Recipe(
        name=name_run(path),
        trl=MappingProxyType(values),
        given=frozenset(nodes),
        places=MappingProxyType(places),
        **sections,
    )
    for conflict in find_conflicts(recipe):
        recipe.report(conflict, faults)
    return recipe, faults


def name_run(path: Path) -> str:
    """Return the recipe's name; a run's own recipe.yaml goes by the name of its folder."""
    return path.resolve().parent.name if path.name == "recipe.yaml" else path.stem


def read_nodes(path: Path, faults: Faults) -> list[tuple[str, str, yaml.Node]]:
    """Return (dotted key, "file:line", node) for each value of a recipe file."""
    try:
        text = decode_recipe(path)
        if unplain := find_unplain(text):
            raise RecipeFaults([f"{path}:{unplain[0]}: {unplain[1]}"])
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(
            path.name, [p.name for p in (PROJECT / "recipes").glob("*.yaml")], n=1
        )
        hint = f" Did you mean recipes/{near[0]}?" if near else ""
        raise RecipeFaults([f"{path}: no such recipe.{hint}"]) from None
    except OSError as error:
        raise RecipeFaults([f"{path}: can't be read: {error.strerror}."]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeFaults([f"{path}:{line}: not YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise RecipeFaults([f"{path}: not YAML: {str(error).splitlines()[0]}"]) from None
    if root is None:
        raise RecipeFaults(
            [f"{path}: the recipe is empty. Expected at least model_name_or_path and data: source."]
        )
    if not isinstance(root, yaml.MappingNode):
        raise RecipeFaults(
            [f"{path}:1: found {KIND_NAMES[kind_of(root)]}, expected keys with values, such as lora_r: 16."]
        )
    return list(walk_mapping(root, "", path, faults))


def decode_recipe(path: Path) -> str:
    """Return a recipe's text.

    Raises:
        RecipeFaults: it is not UTF-8, with how to convert it.
    """
    content = path.read_bytes()
    try:
        if b"\0" not in content:
            return content.decode("utf-8-sig")
        found, charset = "byte 0x00", "utf16"
    except UnicodeDecodeError as error:
        byte = content[error.start]
        found, charset = (
            f"byte 0x{byte:02x}",
            "utf16" if error.start == 0 and byte in (0xFE, 0xFF) else "latin1",
        )
    raise RecipeFaults([f"{path}: not UTF-8 ({found}). Convert it: iconv -f {charset} -t utf8."])


def find_unplain(text: str) -> tuple[int, str] | None:
    """Return the line of the first thing in YAML that no recipe needs and some loaders run or drown in.

    These are tags, aliases, deep nesting, and long texts or control characters. The text is not composed for
    it, which would recurse.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        fault = None
        if isinstance(event, yaml.AliasEvent):
            fault = f"found the alias *{str(event.anchor)[:40]}, expected the value itself."
        elif tag := getattr(event, "tag", None):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            fault = f"found the YAML tag {tag[:40]}, expected a plain value."
        elif depth > DEEPEST:
            fault = f"found {depth} brackets in one another, expected at most {DEEPEST}."
        elif isinstance(event, yaml.ScalarEvent):
            fault = check_text(event.value)
        if fault:
            return event.start_mark.line + 1 if event.start_mark else 1, fault
    return None


def check_text(text: str) -> str | None:
    """Say why a text can be no key, name or number of a recipe, or return None."""
    if len(text) > LONGEST:
        return f"found {text[:20]}… of {len(text):,} characters, expected at most {LONGEST:,}."
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text.replace("\n", "")):
        return f"found {text[:40]!r}, expected no control characters."
    return None


def walk_mapping(
    root: yaml.MappingNode, prefix: str, path: Path, faults: Faults
) -> Iterator[tuple[str, str, yaml.Node]]:
    seen: dict[str, int] = {}
    for key_node, node in root.value:
        line = key_node.start_mark.line + 1
        place = f"{path}:{line}"
        if not isinstance(key_node, yaml.ScalarNode):
            faults.lines.append(f"{place}: found {show(key_node)} as a key, expected a name.")
            continue
        key = f"{prefix}{key_node.value}"
        if key in seen:
            faults.add(place, key, f"stands there twice, first in line {seen[key]}. Remove one.")
            continue
        seen[key] = line
        if key in SECTIONS and isinstance(node, yaml.MappingNode):
            yield from walk_mapping(node, f"{key}.", path, faults)
        elif key in SECTIONS:
            if kind_of(node) != "null":
                faults.add(place, key, f"found {show(node)}, expected a section of keys with values.")
        elif not prefix and "." in key and key in known_keys():
            section, _, name = key.partition(".")
            faults.add(place, key, f"in a file, write it inside its section: {section}: {{{name}: …}}.")
        elif message := refuse_key(key):
            faults.add(place, key, message)
        else:
            yield key, place, node


def read_overrides(words: Sequence[str], faults: Faults) -> list[tuple[str, str, yaml.Node]]:
    """Return (key, flag, node) for the words `--key value`, `--key=value`, `--key a b` (a list), `--key`."""
    found: list[tuple[str, str, yaml.Node]] = []
    index = 0
    while index < len(words):
        flag, equals, inline = words[index].partition("=")
        index += 1
        if not flag.startswith("--") or flag == "--":
            faults.lines.append(f"{flag}: found a word without a flag. Overrides are written --key value.")
            continue
        values = [inline] if equals else []
        while not equals and index < len(words) and not words[index].startswith("--"):
            values.append(words[index])
            index += 1
        key = flag[2:].replace("-", "_")
        flag = f"--{key}"
        if message := refuse_key(key):
            faults.add(flag, key, message)
            continue
        kinds = known_keys()[key]["kinds"]
        if message := next(filter(None, map(check_text, values)), None):
            faults.add(flag, key, message)
            continue
        if len(values) == 1 and set(kinds) <= {"str", "null"} and values[0] not in ("null", "~"):
            # Nothing but a text will do: "my file #1.tsv", "!" and "2024" are taken as they are.
            found.append((key, flag, yaml.ScalarNode("tag:yaml.org,2002:str", values[0], style="'")))
            continue
        text = (
            "true"
            if not values
            else values[0]
            if len(values) == 1
            else json.dumps(values, ensure_ascii=False)
        )
        try:
            if unplain := find_unplain(text):
                faults.add(flag, key, unplain[1])
                continue
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            node = None
        if node is None or (isinstance(node, yaml.MappingNode) and not text.startswith("{")):
            # A text that only looks like YAML, such as "a: b" or one with a leading quote.
            node = yaml.ScalarNode("tag:yaml.org,2002:str", text, style="'")
        found.append((key, flag, node))
    return found


def kind_of(node: yaml.Node) -> str:
    return {"map": "dict", "seq": "list"}.get(
        tag := node.tag.rpartition(":")[2], tag if tag in KIND_NAMES else "str"
    )


def show(node: yaml.Node) -> str:
    value = node.value if isinstance(node, yaml.ScalarNode) else yaml.serialize(node, width=10_000).strip()
    return repr(value) if kind_of(node) == "str" else f"{value if value != '' else 'nothing'}"


def construct(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def read_value(key: str, node: yaml.Node) -> Any:
    """Return a node's value in the type that `key` wants.

    Raises:
        RecipeError: wrong type, not among the choices, or out of range.
    """
    spec = known_keys()[key]
    kinds, choices = spec["kinds"], spec.get("choices")
    kind = kind_of(node)
    if kind == "null" and "null" in kinds:
        return None
    value = convert_node(node, kind, kinds)
    is_chosen = not choices or value in choices or (kind == "bool" and "bool" in kinds)
    if value is None or not is_chosen:
        raise RecipeError(f"found {show(node)}, expected {describe_expected(kinds, choices)}.")
    check_range(key, value)
    return tuple(value) if "." in key and isinstance(value, list) else value


def describe_expected(kinds: Sequence[str], choices: Sequence[str] | None) -> str:
    if choices:
        return " or ".join([", ".join(choices), *(["null"] if "null" in kinds else [])])
    return " or ".join(KIND_NAMES[kind] for kind in kinds)


def convert_node(node: yaml.Node, kind: str, kinds: Sequence[str]) -> Any:
    """Return a node's value as one of the `kinds` that its key takes, or None where it is none of them.

    Raises:
        RecipeError: a list or a mapping that can't be read.
    """
    if kind in ("list", "dict"):
        return construct_collection(node, kind) if kind in kinds else None
    if kind == "bool":
        # `eval_strategy: no` is false to YAML 1.1
        return construct(node) if "bool" in kinds else node.value if "str" in kinds else None
    if kind in ("str", "int", "float") and ("int" in kinds or "float" in kinds):
        may_be_number = kind != "str" or "e" in node.value.lower()
        number = read_number(node.value, kinds) if may_be_number else None
        return node.value if number is None and "str" in kinds else number
    if kind == "str" and "str" in kinds:
        return node.value
    if kind == "str" and "list" in kinds:
        return [part for part in (part.strip() for part in node.value.split(",")) if part]
    return None


def construct_collection(node: yaml.Node, kind: str) -> Any:
    """Return a list of texts or a mapping; None for a list of something else."""
    try:
        value = construct(node)
        json.dumps(value, allow_nan=False)  # dates are none of JSON's values, nor is .nan
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise RecipeError(f"can't be read: {str(error).splitlines()[0]}.") from None
    return None if kind == "list" and not all(isinstance(item, str) for item in value) else value


def read_number(text: str, kinds: Sequence[str]) -> int | float | None:
    """Return a number, or None where it is of none of these kinds. YAML takes `2e-4` for text."""
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if re.fullmatch(r"[-+]?[0-9_]+", text):
        return int(text) if "int" in kinds else number
    return number if "float" in kinds else None


def parse_command(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Add the recipe argument to `parser`, and return its arguments and the override words that are left."""
    parser.add_argument("recipe", metavar="RECIPE", help="a .yaml file, such as recipes/tiny.yaml")
    parser.usage = f"{parser.prog} RECIPE [--key value …]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    parser.epilog = list_help()
    arguments, words = parser.parse_known_args(argv)
    return arguments, words


def list_help() -> str:
    """Return the help text on overrides: our own sections in full, TRL's keys by name."""
    lines = ["Each key of the recipe can be overridden: --learning_rate 1e-4, --data.source my.tsv.", ""]
    for section, kind in SECTIONS.items():
        for f in dataclasses.fields(kind):
            lines.append(
                f"  --{section}.{f.name:<16} {f.metadata['help']} (default: {json.dumps(f.default)})"
            )
    lines += ["", "Keys of TRL's ModelConfig and SFTConfig, under their own names:"]
    line = " "
    for key in sorted(key for key in known_keys() if "." not in key):
        if len(line) + len(key) > 110:
            lines.append(line)
            line = " "
        line += f" {key}"
    return "\n".join([*lines, line])


def dump_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)


def export_trl(recipe: Recipe) -> str:
    """Return the recipe's TRL part as YAML: what `trl sft --config` takes, with a data set of its own."""
    values = {key: recipe.trl[key] for key in recipe.trl if key in recipe.given and key != "output_dir"}
    return dump_yaml({"output_dir": str(recipe.output_dir)} | values)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sft.recipe", description="Export a recipe, or list TRL's keys."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="print the plain TRL part of RECIPE, for trl sft --config")
    commands.add_parser("keys", help="print trl_keys.json, made from the installed TRL")
    if sys.argv[1:2] == ["keys"]:
        parser.parse_args()
        lines = [f"{json.dumps(key)}: {json.dumps(spec)}" for key, spec in extract_trl_keys().items()]
        print("{\n" + ",\n".join(lines) + "\n}")
        return
    arguments, words = (
        parse_command(export, sys.argv[2:]) if sys.argv[1:2] == ["export"] else (parser.parse_args(), [])
    )
    print(export_trl(load_recipe(arguments.recipe, words)), end="")


if __name__ == "__main__":
    run_command(main)
