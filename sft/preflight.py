"""The preflight: all faults of a recipe at once, or what its run would do. Loads no model weights."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sft.augment import make_training_examples
from sft.command import count, quiet_libraries
from sft.data import Corpus, Example, TokenRows, tokenise_pairs
from sft.machine import Machine, find_machine, find_machine_conflicts, settle_precision
from sft.prompt import TEMPLATE
from sft.recipe import parse_recipe
from sft.run_dir import Run, find_training
from sft.schema import DataConfig, Faults, Recipe, RecipeError, RecipeFaults
from sft.splits import SPLIT_RULE, SPLITS, find_leaks, group_sources, hash_examples
from sft.stream import STREAM_RULE, read_splits
from sft.targets import Targets, read_targets

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from sft.memory import Fit
    from sft.model import Base

T = TypeVar("T")
DATA_KEYS = tuple(f"data.{field.name}" for field in dataclasses.fields(DataConfig))
LORA_KEYS = (
    "use_peft",
    "load_in_4bit",
    "load_in_8bit",
    "dtype",
)  # what counting parameters reads beside lora_…
# What is settled by the machine: its memory, with --auto_batch the batch too, and whether its CPU has
# bfloat16.
SETTLED = (
    "activation_checkpointing",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "dtype",
)
AUTO_BATCH = (
    "the largest batch a device that fits into memory by estimate, "
    "with as many a step as give the recipe's batch"
)


@dataclass(frozen=True)
class Preflight:
    """All that training needs apart from the weights, checked."""

    recipe: Recipe
    machine: Machine
    base: "Base"
    config: "PretrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    corpus: Corpus
    splits: dict[str, list[Example]]
    tokens: dict[str, TokenRows]  # for each split
    training_pairs: dict[str, int]  # of `tokens["train"]`, by where they come from
    targets: Targets | None
    parameters: tuple[int, int]  # trainable, all
    fit: "Fit | None"  # into memory, by estimate; None where the model can't be traced without its weights
    asked: dict[str, Any]  # the recipe's own values of SETTLED, before they were settled
    precision_note: str | None  # of a precision that is not the recipe's own, or not this machine's

    def list_notes(self) -> list[str]:
        """Return what a user should know before the run starts."""
        unknown = self.fit is None and self.asked["activation_checkpointing"] is None
        memory_note = (
            f"no estimate of memory for {self.config.model_type}: activation checkpointing is on"
            if unknown
            else None
        )
        return [note for note in (self.precision_note, memory_note, self.fit and self.fit.warn()) if note]

    def resolve_values(self) -> dict[str, Any]:
        """Return the recipe's values with the commits that the Hub's names stand for now."""
        values = self.recipe.values()
        values["model_revision"] = self.base.revision or values["model_revision"]
        values["data"]["revision"] = self.corpus.source.revision
        return values

    def describe(self) -> dict[str, Any]:
        """Return what was found, for other programs."""
        lengths = {split: sorted(rows.lengths) for split, rows in self.tokens.items()}
        return {
            "recipe": self.resolve_values(),
            "base": self.base.describe(),
            "data": self.describe_data(),
            "longest_pair": {split: values[-1] if values else 0 for split, values in lengths.items()},
            "parameters": {"trainable": self.parameters[0], "total": self.parameters[1]},
            "memory_gib": self.fit.describe() if self.fit else None,
        }

    def describe_data(self) -> dict[str, Any]:
        """Return the manifest of the run's data."""
        data = self.recipe.data
        return {
            "source": self.corpus.source.name,
            "revision": self.corpus.source.revision,
            "sha256": self.corpus.source.files,
            "columns": {"toxic": data.toxic, "neutral": data.neutral},
            "cleaning": self.corpus.counts,
            "streaming": data.streaming,
            "split_rule": STREAM_RULE if data.streaming else SPLIT_RULE,
            "split_seed": data.seed,
            "shares": {"validation": data.validation, "test": data.test},
            "splits": {
                split: {
                    "examples": len(examples),
                    "references": sum(len(example.references) for example in examples),
                    "sha256": hash_examples(examples),
                }
                for split, examples in self.splits.items()
            },
            "leaks": len(find_leaks(self.splits)),
            "max_length": self.recipe.trl["max_length"],
            "training_pairs": None if data.streaming else self.training_pairs,
            "targets": self.targets and self.targets.describe() | {"alone": data.targets_only},
            "pairs_too_long": {split: self.tokens[split].too_long for split in ("train", "validation")},
            "longest_answer": self.tokens["train"].longest_answer,
            "prompt": TEMPLATE,
        }


@dataclass
class Inspection:
    """A recipe, and the faults found in it so far; a step that needs a faulty one's result is left out."""

    recipe: Recipe
    faults: Faults

    def attempt(self, step: Callable[[], T], keys: Iterable[str] = ()) -> T | None:
        """Return a step's result; None where a key that it reads is faulty, or where it finds a fault."""
        if self.faults.keys.isdisjoint(keys):
            try:
                return step()
            except RecipeError as error:
                self.recipe.report(error, self.faults)
        return None


@dataclass(frozen=True)
class ModelFound:
    """What is known of the base without its weights; None for what has a fault."""

    base: "Base | None"
    config: "PretrainedConfig | None"
    tokenizer: "PreTrainedTokenizerBase | None"
    parameters: tuple[int, int] | None  # trainable, all


@dataclass(frozen=True)
class RowsFound:
    """What is trained on and validated with; empty where it has a fault."""

    tokens: dict[str, TokenRows]
    pairs: dict[str, int]
    targets: Targets | None


def inspect_recipe(
    path: str, overrides: Sequence[str], auto_batch: bool = False, overwrite: bool = False
) -> Preflight:
    """Check a recipe, its data and its model together, and settle what the recipe leaves to the machine.

    An interrupted run that is resumed, and not overwritten, stays as it was settled when it began.

    Raises:
        RecipeFaults: with a line for each fault that was found.
    """
    recipe, faults = parse_recipe(path, overrides)
    inspection = Inspection(recipe, faults)
    corpus, splits = inspection.attempt(lambda: read_checked_splits(recipe), DATA_KEYS) or (None, None)
    quiet_libraries()
    machine = find_machine(recipe)
    model = inspect_model(inspection, machine)
    rows = inspect_rows(inspection, splits, model.tokenizer)
    if faults.lines:
        raise RecipeFaults(faults.lines, faults.status)
    assert corpus and splits, "data that failed without a fault"
    assert model.base and model.config and model.parameters, "a model that failed without a fault"
    assert model.tokenizer is not None, "a tokenizer that failed without a fault"

    from sft.memory import settle_memory

    began = None if overwrite else recall_settled(recipe)
    if began:
        recipe, asked = began
        lacking = settle_precision(recipe, machine)[1]
        note = lacking and "this CPU does not compute in bfloat16, as the interrupted run does: slow"
    else:
        asked = {key: recipe.trl[key] for key in SETTLED}
        recipe, note = settle_precision(recipe, machine)
    weights = model.parameters[1] - model.parameters[0]
    train = rows.tokens["train"].rows
    recipe, fit = settle_memory(recipe, model.config, train, weights, machine, auto_batch and not began)
    return Preflight(
        recipe=recipe,
        machine=machine,
        base=model.base,
        config=model.config,
        tokenizer=model.tokenizer,
        corpus=corpus,
        splits=splits,
        tokens=rows.tokens,
        training_pairs=rows.pairs,
        targets=rows.targets,
        parameters=model.parameters,
        fit=fit,
        asked=asked,
        precision_note=note,
    )


def inspect_model(inspection: Inspection, machine: Machine) -> ModelFound:
    """Find the base, and check the recipe against it, this machine and TRL."""
    from sft.model import (
        build_sft_config,
        count_parameters,
        find_model_conflicts,
        load_config,
        load_tokenizer,
        resolve_base,
    )

    recipe, attempt = inspection.recipe, inspection.attempt
    trl = recipe.trl
    name, revision = "model_name_or_path", "model_revision"
    base = attempt(lambda: resolve_base(trl[name], trl[revision]), (name, revision))
    config = attempt(lambda: load_config(base)) if base else None
    tokenizer = attempt(lambda: load_tokenizer(base, trl["pad_token"], trl["eos_token"])) if base else None
    if config is not None and tokenizer is not None:
        for error in find_model_conflicts(recipe, config, tokenizer):
            recipe.report(error, inspection.faults)
    for error in find_machine_conflicts(recipe, machine):
        recipe.report(error, inspection.faults)
    lora_keys = [key for key in trl if key.startswith("lora_") or key in LORA_KEYS]
    parameters = attempt(lambda: count_parameters(recipe, config), lora_keys) if config is not None else None
    attempt(lambda: build_sft_config(recipe, Run(recipe.output_dir), machine), trl)
    return ModelFound(base, config, tokenizer, parameters)


def inspect_rows(
    inspection: Inspection,
    splits: Mapping[str, list[Example]] | None,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> RowsFound:
    """Make the training pairs, and tokenise them and the other splits."""
    recipe = inspection.recipe
    trl, name = recipe.trl, recipe.data.targets
    targets = inspection.attempt(lambda: read_targets(name, splits), DATA_KEYS) if name and splits else None
    if not splits or tokenizer is None or (name and not targets):
        return RowsFound({}, {}, targets)
    made = make_training_examples(splits, recipe.data, targets)
    pairs = {
        origin: sum(len(example.references) for example in examples) for origin, examples in made.items()
    }
    sources = {**splits, "train": [example for examples in made.values() for example in examples]}
    options = trl["max_length"], trl["completion_only_loss"] is not False
    tokens = {split: tokenise_pairs(sources[split], tokenizer, *options) for split in SPLITS}
    for split in ("train", "validation"):
        if splits[split] and not tokens[split].rows:
            message = f"found {trl['max_length']}, and every {split} pair is longer. Expected more tokens."
            recipe.report(RecipeError(message, "max_length"), inspection.faults)
    return RowsFound(tokens, pairs, targets)


def recall_settled(recipe: Recipe) -> tuple[Recipe, dict[str, Any]] | None:
    """Return the recipe settled as the run that is there to resume, and what that run's recipe asked for.

    A value that is neither left open nor what the run's own recipe asked for stays: find_start (sft/train.py)
    refuses it. None where no run goes on.
    """
    if not recipe.trl["resume_from_checkpoint"]:
        return None
    run = find_training(recipe.output_dir, overwrite=False, resume=True)
    if not run.is_run():
        return None
    if not run.is_finished() and run.last_checkpoint() is None:
        return None
    asked = dict.fromkeys(SETTLED) | run.environment.get("asked", {})
    began = run.recipe.trl
    return recipe.change(
        **{key: began[key] for key in SETTLED if recipe.trl[key] in (None, asked[key])}
    ), asked


def read_checked_splits(recipe: Recipe) -> tuple[Corpus, dict[str, list[Example]]]:
    """Read and split as the recipe says, and refuse splits that are empty or that leak."""
    data = recipe.data
    corpus, splits = read_splits(data)
    wanted = ["train", "test"] + (["validation"] if data.validation else [])
    for split in wanted:
        if not splits[split]:
            found = f"{count(len(corpus.examples), 'sentence')} of {corpus.source.name}"
            groups = len(set(group_sources(corpus.examples)))
            if groups < len(corpus.examples):
                found += f", in {count(groups, 'group')} of near copies and rewrites, which stay together,"
            raise RecipeError(
                f"{found} left none for {split} (validation {data.validation:g}, test {data.test:g}). "
                "Give more data, of more kinds, or larger shares.",
                "data.source" if split == "train" else f"data.{split}",
            )
    if leaks := find_leaks(splits):
        raise RecipeError(f"the splits leak: {leaks[0]}, and {len(leaks) - 1} more.", "data.source")
    return corpus, splits
