"""The preflight, printed: python -m sft.check RECIPE [--key value …]"""

import argparse
import json
import statistics
from typing import TYPE_CHECKING, Any

from sft.command import count, run_command
from sft.files import CHUNK
from sft.preflight import AUTO_BATCH, Preflight, inspect_recipe
from sft.recipe import dump_yaml, parse_command
from sft.splits import SPLITS, hash_examples
from sft.targets import Targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DESCRIPTION = (
    "The preflight: all faults of a recipe at once, or what its run would do. Loads no model weights."
)


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
    console.print(
        f"source    {escape(source.name)}" + (f" at {source.revision}" if source.revision else ""),
        highlight=False,
    )
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
        table.add_row(
            label, f"{corpus.counts[key]:,}", style="bold" if key in ("examples", "references") else ""
        )
    console.print(table)
    per_sentence = [len(example.references) for example in corpus.examples]
    spread = ", ".join(f"{per_sentence.count(n):,} with {n}" for n in sorted(set(per_sentence)))
    console.print(f"rewrites a sentence: {spread}", highlight=False)
    if recipe.data.streaming:
        console.print(
            f"streamed: merged and duplicate rows are looked for within {CHUNK:,} rows. "
            "What follows tells of the sentences held out, and of a sample of those trained on.",
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
            figures = (
                lengths[0],
                int(statistics.median(lengths)),
                lengths[int(len(lengths) * 0.95)],
                lengths[-1],
            )
            lengths_table.add_row(split, *map(str, figures))
    console.print(table)
    console.print(lengths_table)
    trained = preflight.training_pairs
    if trained["swaps"] or trained["inserts"] or preflight.recipe.data.closest:
        origins = (
            f"{trained['split']:,} of the split, {trained['swaps']:,} by data.swaps, "
            f"{trained['inserts']:,} by data.inserts"
        )
        console.print(
            f"trained on: {sum(trained.values()):,} pairs; {origins} (the lengths above are of these)"
        )
    if preflight.targets:
        for line in describe_targets(
            preflight.targets, len(preflight.splits["train"]), recipe.data.targets_only
        ):
            console.print(escape(line), highlight=False)
    console.print("leak check: passed. No source sentence, nor a rewrite that is one, stands in two splits.")
    console.print(
        f"max_length {recipe.trl['max_length']}: longer pairs are left out of training; "
        "an answer is never cut.",
        highlight=False,
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
    console.print(
        f"trainable parameters: {trainable:,} ({trainable / total:.2%} of {total:,})", highlight=False
    )

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
    console.print(
        preflight.fit.warn() or f"fits, with {batch}, activation checkpointing {checkpointing}",
        highlight=False,
    )


def describe_targets(targets: Targets, sentences: int, alone: bool) -> list[str]:
    """Return lines on who has taught what."""
    told = targets.describe()
    teacher = told["teacher"]
    how = "in place of" if alone else "beside"
    lines = [
        f"targets: {told['file']}, sha256 {targets.sha256}: {told['sentences']:,} of "
        f"{count(sentences, 'training sentence')}, "
        f"learnt {how} their human rewrites; {told['from_people']:,} of them are a human rewrite",
        f"teacher: {teacher['name']}, adapter sha256 {teacher['adapter']['sha256']}, "
        f"base {teacher['base']['name']}; "
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
    parser = argparse.ArgumentParser(prog="python -m sft.check", description=DESCRIPTION)
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
