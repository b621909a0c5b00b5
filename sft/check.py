"""The preflight: all faults of a recipe at once, or what its run would do. Loads no model weights."""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sft.augment import make_training_examples
from sft.data import (
    CHUNK,
    SPLIT_RULE,
    SPLITS,
    Corpus,
    Example,
    TokenRows,
    count,
    find_leaks,
    group_sources,
    hash_examples,
    tokenise_pairs,
)
from sft.prompt import TEMPLATE
from sft.recipe import Recipe, RecipeError, RecipeFaults, dump_yaml, load_recipe, parse_command, parse_recipe, run_command
from sft.run_dir import RunDir, read_json
from sft.stream import STREAM_RULE, read_splits
from sft.targets import Targets, read_targets

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from sft.memory import Fit
    from sft.model import Base

T = TypeVar("T")
# What is settled by the machine: its memory, with --auto_batch the batch too, and whether its CPU has bfloat16.
SETTLED = ("activation_checkpointing", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "dtype")
AUTO_BATCH = "the largest batch a device that fits into memory by estimate, with as many a step as give the recipe's batch"


@dataclass(frozen=True)
class Preflight:
    """All that training needs apart from the weights, checked."""

    recipe: Recipe
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
        memory_note = f"no estimate of memory for {self.config.model_type}: activation checkpointing is on" if unknown else None
        return [note for note in (self.precision_note, memory_note, self.fit and self.fit.warn()) if note]

    def resolve_values(self) -> dict[str, Any]:
        """Return the recipe's values with the commits that the Hub's names stand for: the same run tomorrow."""
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


def inspect_recipe(path: str, overrides: Sequence[str], auto_batch: bool = False, overwrite: bool = False) -> Preflight:
    """Check a recipe, its data and its model together, and settle what the recipe leaves to the machine.

    An interrupted run that is resumed, and not overwritten, stays as it was settled when it began.

    Raises:
        RecipeFaults: with a line for each fault that was found.
    """
    recipe, faults = parse_recipe(path, overrides)

    def attempt(step: Callable[[], T], keys: Iterable[str] = ()) -> T | None:
        """Return a step's result; None where a key that it reads is faulty already, or where it found a fault itself."""
        if faults.keys.isdisjoint(keys):
            try:
                return step()
            except RecipeError as error:
                recipe.report(error, faults)
        return None

    trl = recipe.trl
    data_keys = [f"data.{f.name}" for f in dataclasses.fields(recipe.data)]
    corpus, splits = attempt(lambda: read_checked_splits(recipe), data_keys) or (None, None)

    from sft.memory import settle_memory
    from sft.model import (
        build_sft_config,
        count_parameters,
        find_machine_conflicts,
        find_model_conflicts,
        load_config,
        load_tokenizer,
        resolve_base,
        settle_precision,
    )

    quiet_libraries()
    base_keys = ("model_name_or_path", "model_revision")
    base = attempt(lambda: resolve_base(trl["model_name_or_path"], trl["model_revision"]), base_keys)
    config = attempt(lambda: load_config(base)) if base else None
    tokenizer = attempt(lambda: load_tokenizer(base, trl["pad_token"], trl["eos_token"])) if base else None
    conflicts = list(find_model_conflicts(recipe, config, tokenizer)) if config is not None and tokenizer is not None else []
    for error in [*conflicts, *find_machine_conflicts(recipe)]:
        recipe.report(error, faults)
    lora_keys = [key for key in trl if key.startswith("lora_") or key in ("use_peft", "load_in_4bit", "load_in_8bit", "dtype")]
    parameters = attempt(lambda: count_parameters(recipe, config), lora_keys) if config is not None else None
    attempt(lambda: build_sft_config(recipe, RunDir(recipe.output_dir)), trl)
    tokens: dict[str, TokenRows] = {}
    training_pairs: dict[str, int] = {}
    name = recipe.data.targets
    targets = attempt(lambda: read_targets(name, splits), data_keys) if name and splits else None
    if splits and tokenizer is not None and (targets or not name):
        scored = trl["completion_only_loss"] is not False
        made = make_training_examples(splits, recipe.data, targets)
        training_pairs = {name: sum(len(example.references) for example in examples) for name, examples in made.items()}
        rows = splits | {"train": [example for examples in made.values() for example in examples]}
        options = trl["max_length"], scored, recipe.data.cache
        tokens = {split: tokenise_pairs(rows[split], tokenizer, *options) for split in SPLITS}
        for split in ("train", "validation"):
            if splits[split] and not tokens[split].rows:
                message = f"found {trl['max_length']}, and every {split} pair is longer. Expected more tokens."
                recipe.report(RecipeError(message, "max_length"), faults)
    if faults.lines:
        raise RecipeFaults(faults.lines, faults.status)
    assert base and corpus and splits and parameters and config, "a step that failed without a fault"
    began = None if overwrite else recall_settled(recipe)
    if began:
        recipe, asked = began
        note = settle_precision(recipe)[1] and "this CPU does not compute in bfloat16, as the interrupted run does: slow"
    else:
        asked = {key: trl[key] for key in SETTLED}
        recipe, note = settle_precision(recipe)
    weights = parameters[1] - parameters[0]
    recipe, fit = settle_memory(recipe, config, tokens["train"].rows, weights, auto_batch and not began)
    return Preflight(
        recipe, base, config, tokenizer, corpus, splits, tokens, training_pairs, targets, parameters, fit, asked, note
    )


def recall_settled(recipe: Recipe) -> tuple[Recipe, dict[str, Any]] | None:
    """Return the recipe settled as the interrupted run that it goes on from, and what that run's recipe asked for.

    A value that is neither left open nor what the run's own recipe asked for stays: find_start (sft/train.py) refuses it.
    None where no run goes on.
    """
    run = RunDir(recipe.output_dir)
    if not recipe.trl["resume_from_checkpoint"] or not run.is_run() or run.is_finished() or run.last_checkpoint() is None:
        return None
    asked = dict.fromkeys(SETTLED) | read_json(run.environment).get("asked", {})
    began = load_recipe(run.recipe).trl
    return recipe.change(**{key: began[key] for key in SETTLED if recipe.trl[key] in (None, asked[key])}), asked


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


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and their notes to developers out of our output; warnings and errors stay."""
    import logging
    import warnings

    # Deprecations inside trl and peft, and bitsandbytes' advice to install an optional package, are not the user's.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
    for name in ("bitsandbytes", "transformers.integrations.bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


# ------------------------------------------------------------------------------------------------------- printing


def print_preflight(preflight: Preflight) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.syntax import Syntax
    from rich.table import Table

    console = Console()
    recipe, corpus = preflight.recipe, preflight.corpus
    console.rule("recipe, resolved")
    if preflight.precision_note:
        console.print(preflight.precision_note, style="yellow")
    console.print(Syntax(dump_yaml(recipe.values()), "yaml", background_color="default", word_wrap=True))

    console.rule("data")
    source = corpus.source
    console.print(f"source    {escape(source.name)}" + (f" at {source.revision}" if source.revision else ""), highlight=False)
    for name, digest in source.files.items():
        console.print(f"          {escape(name)}  sha256 {digest}", highlight=False)
    labels = {
        "rows": "rows read",
        "pairs": "pairs in them",
        "changed_text": "cells changed by Unicode NFC or white space",
        "empty_toxic": "rows dropped: no toxic sentence",
        "empty_neutral": "rows dropped: no rewrite",
        "merged_rows": "rows merged into an earlier row's sentence",
        "duplicate_pairs": "pairs dropped: the same pair stands earlier",
        "identical_pairs": "pairs dropped: both sides the same",
        "no_reference_left": "sentences dropped: no rewrite left",
        "examples": "sentences left",
        "references": "rewrites left",
    }
    table = Table(show_header=False, box=None)
    for key, label in labels.items():
        table.add_row(label, f"{corpus.counts[key]:,}", style="bold" if key in ("examples", "references") else "")
    console.print(table)
    per_sentence = [len(example.references) for example in corpus.examples]
    spread = ", ".join(f"{per_sentence.count(n):,} with {n}" for n in sorted(set(per_sentence)))
    console.print(f"rewrites a sentence: {spread}", highlight=False)
    if recipe.data.streaming:
        console.print(
            f"streamed: merged and duplicate rows are looked for within {CHUNK:,} rows. What follows tells of the sentences "
            "held out, and of a sample of those trained on.",
            highlight=False,
        )

    table = Table("split", "sentences", "pairs", "too long", "sha256", title="splits by source sentence")
    lengths_table = Table("split", "min", "median", "p95", "max", title="tokens a pair: prompt, answer, end")
    for split in SPLITS:
        examples = preflight.splits[split]
        pairs = sum(len(example.references) for example in examples)
        too_long = f"{preflight.tokens[split].too_long:,}"
        table.add_row(split, f"{len(examples):,}", f"{pairs:,}", too_long, hash_examples(examples)[:16])
        if lengths := sorted(preflight.tokens[split].lengths):
            figures = lengths[0], int(statistics.median(lengths)), lengths[int(len(lengths) * 0.95)], lengths[-1]
            lengths_table.add_row(split, *map(str, figures))
    console.print(table)
    console.print(lengths_table)
    trained = preflight.training_pairs
    if trained["swaps"] or trained["inserts"] or preflight.recipe.data.closest:
        origins = f"{trained['split']:,} of the split, {trained['swaps']:,} by data.swaps, {trained['inserts']:,} by data.inserts"
        console.print(f"trained on: {sum(trained.values()):,} pairs; {origins} (the lengths above are of these)")
    if preflight.targets:
        for line in describe_targets(preflight.targets, len(preflight.splits["train"]), recipe.data.targets_only):
            console.print(escape(line), highlight=False)
    console.print("leak check: passed. No source sentence, nor a rewrite that is one, stands in two splits.")
    console.print(
        f"max_length {recipe.trl['max_length']}: longer pairs are left out of training; an answer is never cut.", highlight=False
    )

    console.rule("three rows: prompt (not scored), answer (scored), end")
    for row in preflight.tokens["train"].rows[:3]:
        console.print(colour_tokens(row, preflight.tokenizer), highlight=False)
        console.print()

    console.rule("model")
    trainable, total = preflight.parameters
    base = preflight.base
    where = f"at {base.revision}" if base.revision else "a local folder"
    console.print(f"{escape(base.name)}, {where}: {total - trainable:,} parameters, frozen", highlight=False)
    console.print(f"trainable parameters: {trainable:,} ({trainable / total:.2%} of {total:,})", highlight=False)

    console.rule("memory at the peak, by estimate")
    trl = recipe.trl
    checkpointing = "on" if trl["activation_checkpointing"] else "off"
    if preflight.fit is None:
        console.print(f"none for this architecture; activation checkpointing {checkpointing}")
        return
    table = Table(show_header=False, box=None)
    labels = {
        "libraries": "Python and its libraries",
        "weights": "weights",
        "adapter": "adapter and optimizer",
        "activations": "activations",
        "rest": "logits, gradients, buffers, gaps",
        "loading": "weights file, while it is loaded",
        "peak": "peak",
        "available": "available",
    }
    for key, size in preflight.fit.describe().items():
        table.add_row(labels[key], f"{size:.2f} GiB", style="bold" if key == "peak" else "")
    console.print(table)
    batch = f"batches of {trl['per_device_train_batch_size']}, {trl['gradient_accumulation_steps']} a step"
    console.print(preflight.fit.warn() or f"fits, with {batch}, activation checkpointing {checkpointing}", highlight=False)


def describe_targets(targets: Targets, sentences: int, alone: bool) -> list[str]:
    """Return lines on who has taught what."""
    told = targets.describe()
    teacher = told["teacher"]
    how = "in place of" if alone else "beside"
    lines = [
        f"targets: {told['file']}, sha256 {targets.sha256}: {told['sentences']:,} of {count(sentences, 'training sentence')}, "
        f"learnt {how} their human rewrites; {told['from_people']:,} of them are a human rewrite",
        f"teacher: {teacher['name']}, adapter sha256 {teacher['adapter']['sha256']}, base {teacher['base']['name']}; "
        f"chosen by {told['rule']}",
    ]
    if teacher["has_seen"] == "unknown":
        lines.append("whether the teacher was trained on validation or test sentences of this run is unknown")
    return lines


def colour_tokens(row: dict[str, list[int]], tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Return a row as rich text: each token underlaid in turn, prompt dim, scored tokens green."""
    from rich.text import Text

    text = Text()
    for index, (token, label) in enumerate(zip(row["input_ids"], row["labels"], strict=True)):
        shade = "on grey15" if index % 2 else "on grey23"
        piece = tokenizer.decode([token]).replace("\n", "↵\n")
        text.append(piece, style=f"{'bold green' if label != -100 else 'grey70'} {shade}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sft.check", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--auto_batch", action="store_true", help=AUTO_BATCH)
    arguments, words = parse_command(parser)
    preflight = inspect_recipe(arguments.recipe, words, arguments.auto_batch)
    if arguments.json:
        print(json.dumps(preflight.describe()))
    else:
        print_preflight(preflight)


if __name__ == "__main__":
    run_command(main)
