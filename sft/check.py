"""The preflight, printed: python -m sft.check RECIPE [--key value …]"""

import argparse
import json
import statistics
from typing import TYPE_CHECKING

from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from sft.command import count, run_command
from sft.files import CHUNK
from sft.preflight import AUTO_BATCH, Preflight, inspect_recipe
from sft.recipe import dump_yaml, parse_command
from sft.splits import SPLITS, hash_examples
from sft.targets import Targets
from sft.terminal import Terminal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DESCRIPTION = (
    "The preflight: all faults of a recipe at once, or what its run would do. Loads no model weights."
)


COUNTS = {
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
MEMORY = {
    "libraries": "Python and its libraries",
    "weights": "weights",
    "adapter": "adapter and optimizer",
    "activations": "activations",
    "rest": "logits, gradients, buffers, gaps",
    "loading": "weights file, while it is loaded",
    "peak": "peak",
    "available": "available",
}


def print_preflight(preflight: Preflight) -> None:
    console = Terminal(highlight=False)
    console.rule("recipe, resolved")
    if preflight.precision_note:
        console.print(preflight.precision_note, style="yellow")
    values = dump_yaml(preflight.recipe.values())
    console.print(Syntax(values, "yaml", background_color="default", word_wrap=True))
    console.rule("data")
    print_corpus(preflight, console)
    print_splits(preflight, console)
    print_training_rows(preflight, console)
    console.rule("three rows: prompt (not scored), answer (scored), end")
    for row in preflight.tokens["train"].rows[:3]:
        console.print(colour_tokens(row, preflight.tokenizer))
        console.print()
    console.rule("model")
    print_model(preflight, console)
    console.rule("memory at the peak, by estimate")
    print_memory(preflight, console)


def print_corpus(preflight: Preflight, console: Terminal) -> None:
    """Print where the rows are from, and what the cleaning dropped of them."""
    source, counts = preflight.corpus.source, preflight.corpus.counts
    console.print(f"source    {source.name}" + (f" at {source.revision}" if source.revision else ""))
    for name, digest in source.files.items():
        console.print(f"          {name}  sha256 {digest}")
    table = Table(show_header=False, box=None)
    for key, label in COUNTS.items():
        style = "bold" if key in ("examples", "references") else ""
        table.add_row(label, f"{counts[key]:,}", style=style)
    console.print(table)
    per_sentence = [len(example.references) for example in preflight.corpus.examples]
    spread = ", ".join(f"{per_sentence.count(n):,} with {n}" for n in sorted(set(per_sentence)))
    console.print(f"rewrites a sentence: {spread}")
    if preflight.recipe.data.streaming:
        console.print(
            f"streamed: merged and duplicate rows are looked for within {CHUNK:,} rows. "
            "What follows tells of the sentences held out, and of a sample of those trained on."
        )


def print_splits(preflight: Preflight, console: Terminal) -> None:
    """Print sizes, hashes and lengths in tokens of the splits."""
    table = Table("split", "sentences", "pairs", "too long", "sha256", title="splits by source sentence")
    title = "tokens a pair: prompt, answer, end"
    lengths_table = Table("split", "min", "median", "p95", "max", title=title)
    for split in SPLITS:
        examples, tokens = preflight.splits[split], preflight.tokens[split]
        pairs = sum(len(example.references) for example in examples)
        digest = hash_examples(examples)[:16]
        table.add_row(split, f"{len(examples):,}", f"{pairs:,}", f"{tokens.too_long:,}", digest)
        if lengths := sorted(tokens.lengths):
            median, p95 = int(statistics.median(lengths)), lengths[int(len(lengths) * 0.95)]
            lengths_table.add_row(split, *map(str, (lengths[0], median, p95, lengths[-1])))
    console.print(table)
    console.print(lengths_table)


def print_training_rows(preflight: Preflight, console: Terminal) -> None:
    """Print what is trained on beside the split's own pairs, and what is left out."""
    data, trained = preflight.recipe.data, preflight.training_pairs
    if trained["swaps"] or trained["inserts"] or data.closest:
        origins = (
            f"{trained['split']:,} of the split, {trained['swaps']:,} by data.swaps, "
            f"{trained['inserts']:,} by data.inserts"
        )
        pairs = f"{sum(trained.values()):,} pairs"
        console.print(f"trained on: {pairs}; {origins} (the lengths above are of these)", highlight=True)
    if preflight.targets:
        sentences = len(preflight.splits["train"])
        for line in describe_targets(preflight.targets, sentences, data.targets_only):
            console.print(line)
    passed = "leak check: passed. No source sentence, nor a rewrite that is one, stands in two splits."
    console.print(passed, highlight=True)
    length = f"max_length {preflight.recipe.trl['max_length']}"
    console.print(f"{length}: longer pairs are left out of training; an answer is never cut.")


def print_model(preflight: Preflight, console: Terminal) -> None:
    base, (trainable, total) = preflight.base, preflight.parameters
    where = f"at {base.revision}" if base.revision else "a local folder"
    console.print(f"{base.name}, {where}: {total - trainable:,} parameters, frozen")
    console.print(f"trainable parameters: {trainable:,} ({trainable / total:.2%} of {total:,})")


def print_memory(preflight: Preflight, console: Terminal) -> None:
    trl, fit = preflight.recipe.trl, preflight.fit
    checkpointing = f"activation checkpointing {'on' if trl['activation_checkpointing'] else 'off'}"
    if fit is None:
        console.print(f"none for this architecture; {checkpointing}", highlight=True)
        return
    table = Table(show_header=False, box=None)
    for key, size in fit.describe().items():
        table.add_row(MEMORY[key], f"{size:.2f} GiB", style="bold" if key == "peak" else "")
    console.print(table)
    batch = f"batches of {trl['per_device_train_batch_size']}, {trl['gradient_accumulation_steps']} a step"
    console.print(fit.warn() or f"fits, with {batch}, {checkpointing}")


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


def colour_tokens(row: dict[str, list[int]], tokenizer: "PreTrainedTokenizerBase") -> Text:
    """Return a row as rich text: each token underlaid in turn, prompt dim, scored tokens green."""
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

    from sft.rehearsal import rehearse

    rehearse(preflight)
    if arguments.json:
        print(json.dumps(preflight.describe()))
    else:
        print_preflight(preflight)


if __name__ == "__main__":
    run_command(main)
