"""The preflight: all faults of a recipe at once, or what its run would do. Loads no model weights."""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft.data import SPLIT_RULE, SPLITS, Corpus, Example, count, find_leaks, hash_examples, read_corpus, split_examples
from sft.data import tokenise_pairs
from sft.prompt import TEMPLATE
from sft.recipe import Recipe, RecipeError, RecipeFaults, dump_yaml, parse_command, parse_recipe, run_command

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from sft.model import Base

Rows = list[dict[str, list[int]]]


@dataclass(frozen=True)
class Preflight:
    """All that training needs apart from the weights, checked."""

    recipe: Recipe
    base: "Base"
    config: "PretrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"
    corpus: Corpus
    splits: dict[str, list[Example]]
    rows: dict[str, Rows]  # tokenised pairs of train and validation
    too_long: dict[str, int]  # pairs of train and validation that max_length leaves out
    parameters: tuple[int, int]  # trainable, all

    def describe_data(self) -> dict[str, Any]:
        """Return the manifest of the run's data."""
        data = self.recipe.data
        return {
            "source": self.corpus.source.name,
            "revision": self.corpus.source.revision,
            "sha256": self.corpus.source.files,
            "columns": {"toxic": data.toxic, "neutral": data.neutral},
            "cleaning": self.corpus.counts,
            "split_rule": SPLIT_RULE,
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
            "pairs_too_long": self.too_long,
            "longest_answer": max(sum(label != -100 for label in row["labels"]) for row in self.rows["train"]),
            "prompt": TEMPLATE,
        }


def inspect_recipe(path: str, overrides: Sequence[str]) -> Preflight:
    """Check a recipe, its data and its model together.

    Raises:
        RecipeFaults: with a line for each fault that was found.
    """
    recipe, faults = parse_recipe(path, overrides)
    faulty = {line.split(": ")[1] for line in faults if ": " in line} | {line.split(": ")[0] for line in faults}

    def attempt(step: Any, *keys: str) -> Any:
        """Run a step unless a key that it reads is faulty already, and collect its fault."""
        if any(key in faulty or f"--{key}" in faulty for key in keys):
            return None
        try:
            return step()
        except RecipeError as error:
            faults.append(recipe.locate(error))
            return None

    data_keys = [key for key in recipe.values()["data"]]
    splits_keys = [f"data.{key}" for key in data_keys]
    corpus = attempt(lambda: read_corpus(recipe.data), *splits_keys)
    splits = attempt(lambda: split_corpus(corpus, recipe), *splits_keys) if corpus else None

    from sft.model import count_parameters, find_hardware_conflicts, find_model_conflicts, load_config, load_tokenizer
    from sft.model import resolve_base

    trl = recipe.trl
    quiet_libraries()
    faults += [recipe.locate(error) for error in find_hardware_conflicts(recipe) if error.key not in faulty]
    base = attempt(lambda: resolve_base(trl["model_name_or_path"], trl["model_revision"]), "model_name_or_path", "model_revision")
    config = attempt(lambda: load_config(base, trl["trust_remote_code"])) if base else None
    tokenizer = (
        attempt(lambda: load_tokenizer(base, trl["pad_token"], trl["eos_token"], trl["trust_remote_code"])) if base else None
    )
    if config is not None and tokenizer is not None:
        known = set(faults)
        found = [recipe.locate(error) for error in find_model_conflicts(recipe, config, tokenizer) if error.key not in faulty]
        faults += [line for line in found if line not in known]
    parameters = None
    if config is not None:
        lora = [key for key in trl if key.startswith("lora_") or key in ("use_peft", "load_in_4bit", "load_in_8bit", "dtype")]
        parameters = attempt(lambda: count_parameters(recipe, config), *lora)
    rows: dict[str, Rows] = {}
    too_long: dict[str, int] = {}
    if splits and tokenizer is not None:
        for split in ("train", "validation"):
            scored = trl["completion_only_loss"] is not False
            rows[split], too_long[split] = tokenise_pairs(splits[split], tokenizer, trl["max_length"], scored)
        if not rows["train"]:
            error = RecipeError(f"found {trl['max_length']}, and every training pair is longer. Raise it.", "max_length")
            faults.append(recipe.locate(error))
    if faults:
        raise RecipeFaults(faults)
    return Preflight(recipe, base, config, tokenizer, corpus, splits, rows, too_long, parameters)


def split_corpus(corpus: Corpus, recipe: Recipe) -> dict[str, list[Example]]:
    """Split as the recipe says, and refuse splits that are empty or that leak."""
    data = recipe.data
    splits = split_examples(corpus.examples, data.validation, data.test, data.seed)
    wanted = ["train", "test"] + (["validation"] if data.validation else [])
    for split in wanted:
        if not splits[split]:
            raise RecipeError(
                f"{count(len(corpus.examples), 'sentence')} of {corpus.source.name} left none for {split} "
                f"(validation {data.validation:g}, test {data.test:g}). Give more data or larger shares.",
                "data.source" if split == "train" else f"data.{split}",
            )
    if leaks := find_leaks(splits):
        raise RecipeError(f"the splits leak: {leaks[0]}, and {len(leaks) - 1} more.", "data.source")
    return splits


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

    table = Table("split", "sentences", "pairs", "pairs too long", "tokens a row: min", "median", "p95", "max", "sha256")
    for split in SPLITS:
        examples = preflight.splits[split]
        rows = preflight.rows.get(split, [])
        lengths = sorted(len(row["input_ids"]) for row in rows)
        cells = [lengths[0], int(statistics.median(lengths)), lengths[int(len(lengths) * 0.95)], lengths[-1]] if lengths else ["-"] * 4
        pairs = sum(len(example.references) for example in examples)
        cut = preflight.too_long.get(split, "-")
        table.add_row(split, f"{len(examples):,}", f"{pairs:,}", str(cut), *map(str, cells), hash_examples(examples)[:12])
    console.print(table)
    console.print("leak check: passed; no source sentence, and no rewrite that is a source, stands in two splits")
    console.print(f"max_length {recipe.trl['max_length']}: longer pairs are left out, an answer is never cut", highlight=False)

    console.rule("three rows: prompt (not scored), answer (scored), end")
    for row in preflight.rows["train"][:3]:
        console.print(colour_tokens(row, preflight.tokenizer), highlight=False)
        console.print()

    console.rule("model")
    trainable, total = preflight.parameters
    base = preflight.base
    where = f"at {base.revision}" if base.revision else "a local folder"
    console.print(f"{escape(base.name)}, {where}: {total - trainable:,} parameters, frozen", highlight=False)
    console.print(f"trainable parameters: {trainable:,} ({trainable / total:.2%} of {total:,})", highlight=False)


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
    arguments, words = parse_command(parser)
    print_preflight(inspect_recipe(arguments.recipe, words))


if __name__ == "__main__":
    run_command(main)
