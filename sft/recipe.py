"""The recipe: a YAML file and command-line overrides -> one frozen, typed object, or all its faults at once.

Training keys are those of TRL's ModelConfig and SFTConfig, flat. Their names, types, defaults and choices stand in
trl_keys.json (`python -m sft.recipe keys` makes it from the installed TRL, a test holds it against it), so that a recipe
is checked in milliseconds, without importing torch.
"""

import argparse
import dataclasses
import difflib
import errno
import functools
import json
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, NoReturn

import yaml

PROJECT = Path(__file__).resolve().parent.parent

# Keys that users still type and that TRL or transformers dropped.
RENAMED = {
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of all steps)",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "evaluation_strategy": "eval_strategy",
    "lora_target": "lora_target_modules",
    "use_4bit": "load_in_4bit",
    "no_cuda": "use_cpu",
    "push_to_hub_model_id": "publish.repo_id",
    "overwrite_output_dir": "the flag --overwrite of sft/run.py",
    "dataset_name": "data.source",
    "dataset_config": "data.source",
    "dataset_train_split": "data.split",
    "dataset_test_split": "data.test (a share of the source sentences)",
}
# TRL keys that would do nothing here, or harm.
_PUBLISH = "the trainer never pushes, as its push uploads a pickle with the token; use python -m publish.run"
_TOKENS = "rows are formatted and tokenised by sft/data.py"
REFUSED = {
    "push_to_hub": _PUBLISH,
    "hub_token": "a token does not belong in a recipe; log in with `hf auth login` or set HF_TOKEN",
    "hub_model_id": _PUBLISH + " and publish.repo_id",
    "hub_private_repo": _PUBLISH + " and publish.private",
    "hub_strategy": _PUBLISH,
    "hub_always_push": _PUBLISH,
    "hub_revision": _PUBLISH,
    "dataset_text_field": _TOKENS,
    "dataset_kwargs": _TOKENS,
    "dataset_num_proc": _TOKENS,
    "chat_template_path": "the prompt is plain text (sft/prompt.py), and new tokens break LoRA on BLOOM",
    "assistant_only_loss": "rows are prompt and answer; the loss on the answer alone is completion_only_loss, the default",
    "eval_packing": "validation rows are never packed",
    "remove_unused_columns": _TOKENS,
    "label_names": _TOKENS,
    "truncation_mode": "a row that is longer than max_length is left out and counted, never cut",
    "include_for_metrics": "the trainer computes the loss alone; BLEU, ROUGE and chrF come from eval/run.py",
    "batch_eval_metrics": "the trainer computes the loss alone; BLEU, ROUGE and chrF come from eval/run.py",
    "prediction_loss_only": "the trainer computes the loss alone; BLEU, ROUGE and chrF come from eval/run.py",
    "disable_tqdm": "progress is shown with rich",
    "do_train": "sft/run.py trains, eval/run.py evaluates",
    "do_eval": "sft/run.py trains, eval/run.py evaluates; the validation loss is eval_strategy",
    "do_predict": "sft/run.py trains, eval/run.py evaluates",
    "local_rank": "the launcher sets it",
    "save_only_model": "such a checkpoint can't be resumed",
    "model_init_kwargs": "the model is loaded by load_in_4bit, dtype, attn_implementation and model_revision",
    "trust_remote_code": "a base that brings code of its own is not supported; BLOOM and Phi-2 bring none",
    "parallelism_config": "it belongs in the file given to accelerate launch --config_file",
}
POSITIVE = {
    "lora_r", "lora_alpha", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "eval_steps", "save_steps",
    "per_device_eval_batch_size", "gradient_accumulation_steps", "logging_steps", "adam_epsilon", "save_total_limit",
    "eval.batch_size", "eval.num_beams", "eval.max_new_tokens",
}  # fmt: skip
NOT_NEGATIVE = {
    "warmup_steps", "weight_decay", "max_grad_norm", "eval_delay", "seed", "data_seed", "dataloader_num_workers",
    "neftune_noise_alpha", "data.seed", "data.swaps", "data.inserts", "eval.samples",
}  # fmt: skip
BELOW_ONE = {"lora_dropout", "label_smoothing_factor", "adam_beta1", "adam_beta2", "data.validation", "data.test"}
KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict", NoneType: "null", tuple: "list"}
KIND_NAMES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list of texts",
    "dict": "a mapping",
    "null": "null",
}


class InputError(ValueError):
    """Bad input: says what was found, what is expected, where, and how to mend it. Commands print it and exit with `status`.

    `report` is what a command with --json says beside the error.
    """

    status = 2

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = dict(report or {})


class RecipeError(InputError):
    """One fault of a recipe, or of what it names; `key` says which key mends it, if one does."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class RecipeFaults(InputError):
    """All faults of a recipe: one line each, ready to print."""

    def __init__(self, lines: Sequence[str], status: int = InputError.status) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)
        self.status = status


@dataclass
class Faults:
    """The faults found so far: a line each, and the keys that they are about."""

    lines: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    status: int = InputError.status  # the highest of the faults'

    def add(self, place: str, key: str, message: str) -> None:
        """Add a fault; a place that is a flag names the key already."""
        self.keys.add(key)
        self.lines.append(f"{place}: {message}" if place == f"--{key}" else f"{place}: {key}: {message}")


def describe(text: str, default: Any) -> Any:
    """Return a dataclass field with a default and the line of help that `--help` prints."""
    return field(default=default, metadata={"help": text})


BASELINES = ("copy", "delete", "base", "few_shot", "human")
PROTOCOLS = ("paradetox-2022", "pan-2024", "pan-2025")  # of eval/protocols.py


@dataclass(frozen=True)
class DataConfig:
    source: str = describe("a Hub id, or a .tsv, .csv, .jsonl or .parquet file, or a folder of them", "")
    revision: str | None = describe("branch, tag or commit of a Hub data set; null: the newest, recorded in the run", None)
    split: str = describe("the part of a Hub data set or folder to read; our own split follows", "train")
    toxic: str | None = describe("column of the toxic sentence; null: found by ParaDetox's layouts", None)
    neutral: tuple[str, ...] | None = describe("columns of its rewrites; null: found by ParaDetox's layouts", None)
    validation: float = describe("share of the source sentences for validation", 0.05)
    test: float = describe("share of the source sentences for test", 0.05)
    closest: bool = describe("train on one rewrite of each sentence alone: the closest to it without its listed words", False)
    swaps: float = describe("further training pairs for each pair, with its rude words swapped for others of the word list", 0.0)
    inserts: float = describe("further training pairs for each pair: its rewrite, and listed words put into it as source", 0.0)
    targets: str | None = describe("a teacher's rewrites of the training sentences, made by eval/distil.py, to learn", None)
    targets_only: bool = describe("learn a sentence's target in place of its human rewrites; false: beside them", True)
    seed: int = describe("seed of the split; apart from `seed`, so that runs with other seeds share a test split", 0)
    streaming: bool = describe("read the rows during training, for corpora that do not fit in memory; needs max_steps", False)
    cache: bool = describe("keep what was read, made and tokenised in the user's cache folder, by content; false: anew", True)


@dataclass(frozen=True)
class EvalConfig:
    batch_size: int = describe("sentences generated at a time on each process", 64)
    num_beams: int = describe("beams; 1 is greedy", 1)
    merge_adapter: bool = describe(
        "for generation, merge the adapter into the base: on a CPU, or where the base is not in 4 or 8 bit; faster", True
    )
    prefix_caching: bool = describe(
        "in generation, compute what all prompts begin with once, and a prompt once for all its beams; faster", True
    )
    max_new_tokens: int | None = describe("longest answer in tokens; null: the longest of the training data", None)
    samples: int = describe("rows in samples.md", 20)
    stress: bool = describe("rewrite the inputs of eval/stress.py too: disguised swearing, shouting, clean sentences", True)
    baselines: tuple[str, ...] = describe(
        "what is scored beside the adapter, of copy, delete, base, few_shot and human",
        BASELINES,
    )
    protocols: tuple[str, ...] = describe(f"the field's own scores, with models from the Hub: {', '.join(PROTOCOLS)}", ())
    pins: tuple[str, ...] = describe("commits of the protocols' models, each as model@commit; none: the newest, recorded", ())


@dataclass(frozen=True)
class PublishConfig:
    repo_id: str | None = describe("the adapter's repository on the Hub, owner/name", None)
    private: bool = describe("whether that repository is private", True)
    license: str | None = describe("licence of the adapter: the base model's, where it covers derivatives", None)
    data_license: str | None = describe("licence of the training data", None)
    emissions_country: str | None = describe(
        "country of the power grid, as three letters (ISO 3166), such as FRA: then codecarbon estimates what the training emits "
        "(pip install -e '.[emissions]')",
        None,
    )


SECTIONS: dict[str, type] = {"data": DataConfig, "eval": EvalConfig, "publish": PublishConfig}


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    `trl` holds a value for each key of TRL's ModelConfig and SFTConfig that is not refused; `given` names the keys
    that the file or an override set; `places` says where ("recipes/tiny.yaml:3" or "--lora_r").
    """

    name: str
    trl: Mapping[str, Any]
    data: DataConfig
    eval: EvalConfig
    publish: PublishConfig
    given: frozenset[str]
    places: Mapping[str, str] = field(compare=False)

    @property
    def output_dir(self) -> Path:
        """The run directory: `output_dir`, or runs/<name of the recipe file>."""
        return Path(self.trl["output_dir"] or f"runs/{self.name}")

    def values(self) -> dict[str, Any]:
        """Return every value as plain YAML types, in the layout of a recipe file."""
        values = {"output_dir": str(self.output_dir)} | {key: value for key, value in self.trl.items() if key != "output_dir"}
        for section in SECTIONS:
            values[section] = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in dataclasses.asdict(getattr(self, section)).items()
            }
        return values

    def change(self, **values: Any) -> "Recipe":
        """Return the recipe with other values for some of TRL's keys."""
        return dataclasses.replace(self, trl=MappingProxyType(dict(self.trl) | values))

    def report(self, error: RecipeError, faults: Faults) -> None:
        """Add an error to `faults`, at the place where its key was set; one fault a key is enough."""
        faults.status = max(faults.status, error.status)
        if error.key is None:
            faults.lines.append(str(error))
        elif error.key not in faults.keys:
            faults.add(self.places.get(error.key, self.places[""]), error.key, str(error))


# ------------------------------------------------------------------------------------------------------- loading


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
        tell_once(f"{place}: data.targets left out: they are for the recipe's own data, and --data.source names other data")
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
        name=name_run(path), trl=MappingProxyType(values), given=frozenset(nodes), places=MappingProxyType(places), **sections
    )
    for conflict in find_conflicts(recipe):
        recipe.report(conflict, faults)
    return recipe, faults


def name_run(path: Path) -> str:
    """Return the recipe's name; a run's own recipe.yaml goes by the name of its folder."""
    return path.resolve().parent.name if path.name == "recipe.yaml" else path.stem


@functools.cache
def known_keys() -> dict[str, dict[str, Any]]:
    """Return for each key its kinds of value, default, and choices if it has any; sections' keys are dotted."""
    keys = json.loads((Path(__file__).parent / "trl_keys.json").read_text())
    keys = {key: spec for key, spec in keys.items() if key not in REFUSED and key not in RENAMED}
    # The newest whole checkpoint of the run directory, not a path: a run goes on with nothing but its own.
    keys["resume_from_checkpoint"] = {"kinds": ["bool"], "default": False}
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            keys[f"{section}.{f.name}"] = {"kinds": list_kinds(hints[f.name]), "default": f.default}
    return keys


def list_kinds(hint: Any) -> list[str]:
    """Return the kinds of value that a type annotation accepts: "int", "null", …"""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, UnionType):
        return list(dict.fromkeys(kind for part in typing.get_args(hint) for kind in list_kinds(part)))
    if origin is typing.Literal:
        return list(dict.fromkeys(KINDS[type(value)] for value in typing.get_args(hint)))
    return [KINDS[base] for base in (origin or hint,) if base in KINDS]


def read_nodes(path: Path, faults: Faults) -> list[tuple[str, str, yaml.Node]]:
    """Return (dotted key, "file:line", node) for each value of a recipe file."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in (PROJECT / "recipes").glob("*.yaml")], n=1)
        hint = f" Did you mean recipes/{near[0]}?" if near else ""
        raise RecipeFaults([f"{path}: no such recipe.{hint}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeFaults([f"{path}: can't be read as UTF-8 text: {error}"]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeFaults([f"{path}:{line}: not YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise RecipeFaults([f"{path}: not YAML: {str(error).splitlines()[0]}"]) from None
    if root is None:
        raise RecipeFaults([f"{path}: the recipe is empty. Expected at least model_name_or_path and data: source."])
    if not isinstance(root, yaml.MappingNode):
        raise RecipeFaults([f"{path}:1: found {KIND_NAMES[kind_of(root)]}, expected keys with values, such as lora_r: 16."])
    return list(walk_mapping(root, "", path, faults))


def walk_mapping(root: yaml.MappingNode, prefix: str, path: Path, faults: Faults) -> Iterator[tuple[str, str, yaml.Node]]:
    seen: dict[str, int] = {}
    for key_node, node in root.value:
        line = key_node.start_mark.line + 1
        place, key = f"{path}:{line}", f"{prefix}{key_node.value}"
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
    """Return (key, flag, node) for command-line words: `--key value`, `--key=value`, `--key a b` (a list), `--key`."""
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
        if len(values) == 1 and set(kinds) <= {"str", "null"} and values[0] not in ("null", "~"):
            # Nothing but a text will do: "my file #1.tsv", "!" and "2024" are taken as they are.
            found.append((key, flag, yaml.ScalarNode("tag:yaml.org,2002:str", values[0], style="'")))
            continue
        text = "true" if not values else values[0] if len(values) == 1 else json.dumps(values, ensure_ascii=False)
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            node = None
        if node is None or (isinstance(node, yaml.MappingNode) and not text.startswith("{")):
            # A text that only looks like YAML, such as "a: b" or one with a leading quote.
            node = yaml.ScalarNode("tag:yaml.org,2002:str", text, style="'")
        found.append((key, flag, node))
    return found


def refuse_key(key: str) -> str | None:
    """Return what is wrong with a key, or None for a known one."""
    if key in known_keys():
        return None
    if key in RENAMED:
        return f"this key is gone; use {RENAMED[key]}."
    if key in REFUSED:
        return f"not taken here: {REFUSED[key]}."
    names = [*known_keys(), *RENAMED]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not near:
        near = [name for name in names if name.endswith(f".{key}")][:1]
    if near and near[0] in RENAMED:
        return f"unknown key. The nearest one, {near[0]}, is gone; use {RENAMED[near[0]]}."
    return f"unknown key. Did you mean {near[0]}?" if near else "unknown key. `python -m sft.check --help` lists all keys."


def kind_of(node: yaml.Node) -> str:
    return {"map": "dict", "seq": "list"}.get(tag := node.tag.rpartition(":")[2], tag if tag in KIND_NAMES else "str")


def show(node: yaml.Node) -> str:
    value = node.value if isinstance(node, yaml.ScalarNode) else construct(node)
    return repr(value) if kind_of(node) == "str" else f"{value if value != '' else 'nothing'}"


def construct(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def read_value(key: str, node: yaml.Node) -> Any:
    """Return a node's value in the type that `key` wants.

    Raises:
        RecipeError: wrong type, not among the choices, or out of range.
    """
    if not node.tag.startswith("tag:yaml.org,2002:"):
        raise RecipeError(f"found the YAML tag {node.tag}, expected a plain value.")
    spec = known_keys()[key]
    kinds, kind = spec["kinds"], kind_of(node)
    expected = " or ".join(KIND_NAMES[k] for k in kinds)
    choices = spec.get("choices")
    if choices:
        expected = " or ".join([", ".join(choices), *(["null"] if "null" in kinds else [])])
    value: Any
    if kind == "null" and "null" in kinds:
        return None
    if kind == "bool" and "bool" not in kinds and "str" in kinds:
        value = node.value  # `eval_strategy: no` is false to YAML 1.1
    elif kind == "bool" and "bool" in kinds:
        value = construct(node)
    elif kind in ("str", "int", "float") and ("int" in kinds or "float" in kinds):
        value = read_number(node.value, kinds) if kind != "str" or "e" in node.value.lower() else None
        if value is None and "str" in kinds:
            value = node.value
    elif kind == "str" and "str" in kinds:
        value = node.value
    elif kind == "str" and "list" in kinds:
        value = [part for part in (part.strip() for part in node.value.split(",")) if part]
    elif kind in kinds and kind in ("list", "dict"):
        try:
            value = construct(node)
        except yaml.YAMLError as error:
            raise RecipeError(f"can't be read: {str(error).splitlines()[0]}.") from None
        if kind == "list" and not all(isinstance(item, str) for item in value):
            value = None
    else:
        value = None
    if value is None:
        raise RecipeError(f"found {show(node)}, expected {expected}.")
    if choices and value not in choices and not (kind == "bool" and "bool" in kinds):
        raise RecipeError(f"found {show(node)}, expected {expected}.")
    check_range(key, value)
    return tuple(value) if "." in key and isinstance(value, list) else value


def read_number(text: str, kinds: Sequence[str]) -> int | float | None:
    """Return a number, or None where it is not one of these kinds. YAML takes `2e-4` for text, users do not."""
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    if re.fullmatch(r"[-+]?[0-9_]+", text):
        return int(text) if "int" in kinds else number
    return number if "float" in kinds else None


def check_range(key: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    for keys, fits, expected in (
        (POSITIVE, value > 0, "more than 0"),
        (NOT_NEGATIVE, value >= 0, "0 or more"),
        (BELOW_ONE, 0 <= value < 1, "at least 0 and below 1"),
    ):
        if key in keys and not fits:
            raise RecipeError(f"found {value}, expected {expected}.")
    if key == "max_length" and value < 16:
        raise RecipeError(f"found {value}, expected at least 16 tokens (the prompt alone takes a dozen), or null.")


# -------------------------------------------------------------------------------------------------------- rules


def find_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    """Yield the faults that need two keys to see, or a look at what is there; none needs the network or torch."""
    trl, data = recipe.trl, recipe.data
    if not trl["model_name_or_path"]:
        yield RecipeError("is missing. Expected a Hub id or a folder, such as bigscience/bloom-560m.", "model_name_or_path")
    if not data.source:
        yield RecipeError("is missing. Expected a Hub id, a file or a folder, such as s-nlp/paradetox.", "data.source")
    if trl["load_in_4bit"] and trl["load_in_8bit"]:
        yield RecipeError("4 bit and 8 bit at once. Keep one.", "load_in_8bit")
    for key in ("load_in_4bit", "load_in_8bit"):
        if trl[key] and not trl["use_peft"]:
            yield RecipeError("quantised weights can't be trained without LoRA. Add use_peft: true.", key)
    if not trl["use_peft"]:
        for key in sorted(recipe.given):
            if key.startswith("lora_"):
                yield RecipeError("has no effect without use_peft: true.", key)
                break
        if not (trl["load_in_4bit"] or trl["load_in_8bit"]):
            yield RecipeError("this project trains adapters. Expected true.", "use_peft")
    if trl["bf16"] and trl["fp16"]:
        yield RecipeError("bf16 and fp16 at once. Keep one.", "fp16")
    if trl["load_in_4bit"] and trl["dtype"] == "auto":
        yield RecipeError("'auto' names no compute type for 4-bit weights. Expected bfloat16 or float32.", "dtype")
    if data.validation + data.test >= 1:
        yield RecipeError(
            f"validation {data.validation:g} and test {data.test:g} leave nothing to train on. Their sum must stay below 1.",
            "data.validation" if data.validation > data.test else "data.test",
        )
    if data.test == 0:
        yield RecipeError("without test sentences no score can be believed. Expected a share above 0.", "data.test")
    if data.validation == 0 and trl["eval_strategy"] != "no":
        yield RecipeError("needs validation sentences, and data.validation is 0.", "eval_strategy")
    if data.streaming:
        if trl["max_steps"] <= 0:
            yield RecipeError("a stream has no end. Expected the number of steps.", "max_steps")
        for key, value in (
            ("packing", trl["packing"]),
            *((f"data.{n}", getattr(data, n)) for n in ("closest", "swaps", "inserts", "targets")),
        ):
            if value:
                yield RecipeError("needs the whole corpus in memory, and data.streaming is true. Keep one.", key)
    if trl["load_best_model_at_end"] and trl["eval_strategy"] == "no":
        yield RecipeError("needs eval_strategy: steps or epoch.", "load_best_model_at_end")
    if data.neutral is not None and (not data.neutral or data.toxic in data.neutral):
        yield RecipeError("expected at least one column, and not the toxic one.", "data.neutral")
    if data.neutral and not data.toxic:
        yield RecipeError("names the rewrites' columns, but data.toxic does not name the sentence's.", "data.neutral")
    for name in recipe.eval.baselines:
        if name not in BASELINES:
            yield RecipeError(f"found {name!r}, expected some of {', '.join(BASELINES)}.", "eval.baselines")
    for name in recipe.eval.protocols:
        if name not in PROTOCOLS:
            yield RecipeError(f"found {name!r}, expected some of {', '.join(PROTOCOLS)}.", "eval.protocols")
    for pin in recipe.eval.pins:
        if not all(pin.partition("@")):
            yield RecipeError(f"found {pin!r}, expected model@commit, such as owner/name@0123abc.", "eval.pins")
    if recipe.publish.repo_id and not re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.publish.repo_id):
        yield RecipeError(f"found {recipe.publish.repo_id!r}, expected owner/name.", "publish.repo_id")
    if recipe.publish.emissions_country and not re.fullmatch("[A-Z]{3}", recipe.publish.emissions_country):
        message = f"found {recipe.publish.emissions_country!r}, expected a country's three letters (ISO 3166), such as FRA."
        yield RecipeError(message, "publish.emissions_country")


def find_path(name: str) -> Path | None:
    """Return the file or folder of this name, from the working directory or else from the project's root, or None."""
    for path in (Path(name).expanduser(), PROJECT / name):
        if path.exists():
            return path
    return None


def name_path(path: Path) -> str:
    """Return the name that a local file or folder is published under: its path in the project, else its name alone.

    An absolute path says nothing to another reader, and holds a user's name.
    """
    resolved = path.resolve()
    return str(resolved.relative_to(PROJECT)) if resolved.is_relative_to(PROJECT) else resolved.name


# --------------------------------------------------------------------------------------------------- command line


def parse_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
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
            lines.append(f"  --{section}.{f.name:<16} {f.metadata['help']} (default: {json.dumps(f.default)})")
    lines += ["", "Keys of TRL's ModelConfig and SFTConfig, under their own names:"]
    line = " "
    for key in sorted(key for key in known_keys() if "." not in key):
        if len(line) + len(key) > 110:
            lines.append(line)
            line = " "
        line += f" {key}"
    return "\n".join([*lines, line])


def parse_count(text: str) -> int:
    """Return a whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def is_main_process() -> bool:
    """Say whether this is the main one of the processes that a launcher has started; known before they have joined."""
    return os.environ.get("RANK", "0") == "0"


@functools.cache
def tell_once(text: str) -> None:
    """Print a line on standard error, from the main process alone, and the same line once."""
    if is_main_process():
        print(text, file=sys.stderr)


def exit_with(error: InputError) -> NoReturn:
    """Print a fault on standard error, from the main process alone, and exit with its status.

    A command that was asked for JSON gets it on standard output, too.
    """
    if is_main_process():
        print(f"error: {error}" if "\n" not in str(error) else f"errors:\n{error}", file=sys.stderr)
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error), "status": error.status} | error.report))
    raise SystemExit(error.status)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a fault ends it with one clear message and its status (2: bad input), without a traceback."""
    try:
        main()
    except InputError as error:
        exit_with(error)
    except BrokenPipeError:  # the reader of our output has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR):
            raise
        exit_with(InputError(f"{error.filename or 'a file'}: can't be written or read: {error.strerror}."))
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted: started again, the same command goes on, or says how", file=sys.stderr)
        raise SystemExit(130) from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=110)


def export_trl(recipe: Recipe) -> str:
    """Return the recipe's TRL part as YAML: what `trl sft --config` takes, together with a data set of its own."""
    values = {key: recipe.trl[key] for key in recipe.trl if key in recipe.given and key != "output_dir"}
    return dump_yaml({"output_dir": str(recipe.output_dir)} | values)


def extract_trl_keys() -> dict[str, dict[str, Any]]:
    """Return each key of the installed TRL's ModelConfig and SFTConfig with its kinds of value, default and choices."""
    import enum

    from trl import ModelConfig, SFTConfig

    keys: dict[str, dict[str, Any]] = {}
    for owner in (ModelConfig, SFTConfig):
        hints = typing.get_type_hints(owner)
        for f in dataclasses.fields(owner):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            kinds = list_kinds(hints[f.name])
            if default is None and "null" not in kinds:
                kinds.append("null")
            keys[f.name] = {"kinds": kinds, "default": default.value if isinstance(default, enum.Enum) else default}
            choices = f.metadata.get("choices")
            for part in typing.get_args(hints[f.name]):
                if isinstance(part, type) and issubclass(part, enum.Enum) and "list" not in kinds:
                    choices = [member.value for member in part]
            if choices:
                keys[f.name]["choices"] = sorted(choices)
    return keys


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sft.recipe", description="Export a recipe, or list TRL's keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="print the plain TRL part of RECIPE, for trl sft --config")
    commands.add_parser("keys", help="print trl_keys.json, made from the installed TRL")
    if sys.argv[1:2] == ["keys"]:
        parser.parse_args()
        lines = [f"{json.dumps(key)}: {json.dumps(spec)}" for key, spec in extract_trl_keys().items()]
        print("{\n" + ",\n".join(lines) + "\n}")
        return
    arguments, words = parse_command(export, sys.argv[2:]) if sys.argv[1:2] == ["export"] else (parser.parse_args(), [])
    print(export_trl(load_recipe(arguments.recipe, words)), end="")


if __name__ == "__main__":
    run_command(main)
