"""Corpora that do not fit in memory: one pass chooses the held-out sentences; training reads the rows.

What is held does not grow with the corpus: HELD_OUT sentences for validation and as many for test, and SAMPLE
training sentences, which the word list, the toxicity classifier and the estimate of memory go by.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft.data import Corpus, Example, clean_rows, normalise, read_corpus, tokenise_pairs
from sft.files import find_columns, stream_rows
from sft.schema import DataConfig
from sft.source import Table, check_unchanged, find_files
from sft.splits import SPLITS, Links, hash_fraction, split_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELD_OUT = 2_000
SAMPLE = 10_000
WINDOW = 8_192  # training rows that are shuffled with one another
STREAM_RULE = (
    "streamed: blake2b(seed, words of the source sentence) as a fraction in [0, 1): "
    "below `test` it is test, below `test + validation` validation, "
    f"of each the {HELD_OUT:,} sentences with the smallest fractions. "
    "Of the rest, a sentence trains unless it is linked with one held out: the same words, "
    "one word of difference in sentences of more than six, or one a rewrite of the other. "
    "So with validation sentences that are linked with a test sentence. "
    f"The training split that is kept is a sample of {SAMPLE:,} sentences."
)


class Smallest:
    """The sentences with the smallest fractions of those offered; rows of the same words are one sentence."""

    def __init__(self, size: int) -> None:
        self.size, self.limit = size, 1.0
        self.kept: dict[str, tuple[float, dict[str, dict[str, None]]]] = {}

    def offer(self, fraction: float, key: str, example: Example) -> None:
        if fraction > self.limit:
            return
        rewrites = self.kept.setdefault(key, (fraction, {}))[1].setdefault(example.toxic, {})
        rewrites.update(dict.fromkeys(example.references))
        if len(self.kept) > 2 * self.size:
            self.prune()

    def prune(self) -> None:
        if len(self.kept) > self.size:
            self.limit = sorted(fraction for fraction, _ in self.kept.values())[self.size - 1]
            self.kept = {key: value for key, value in self.kept.items() if value[0] <= self.limit}

    def examples(self) -> list[Example]:
        """Return them in the order in which they came."""
        self.prune()
        return [
            Example(toxic, tuple(rewrites))
            for _, texts in self.kept.values()
            for toxic, rewrites in texts.items()
        ]


def read_splits(config: DataConfig) -> tuple[Corpus, dict[str, list[Example]]]:
    """Read the data set that a recipe names, whole or streamed, and split it.

    Of a streamed one the corpus holds what is kept of it, and its counts are of all rows; there a sentence
    that comes again far behind is counted, and trained on, again.

    Raises:
        DataError: see `sft.data.read_corpus`.
    """
    if not config.streaming:
        corpus = read_corpus(config)
        return corpus, split_examples(corpus.examples, config.validation, config.test, config.seed)
    return read_streamed_splits(config)


def read_streamed_splits(config: DataConfig) -> tuple[Corpus, dict[str, list[Example]]]:
    """Read all rows once, and keep the held-out sentences and a sample of the others."""
    path, paths, source = find_files(config)
    columns = find_columns(paths, config)
    counts: Counter[str] = Counter()
    kept = {"train": Smallest(SAMPLE), "validation": Smallest(HELD_OUT), "test": Smallest(HELD_OUT)}
    for rows in stream_rows(paths, columns, config.quoting):
        chunk = clean_rows(Table(source, rows))
        counts.update(chunk.counts)
        for example in chunk.examples:
            key = normalise(example.toxic)
            fraction = hash_fraction(key, config.seed)
            bounds = {"test": config.test, "validation": config.test + config.validation, "train": 1.0}
            split = next(name for name, bound in bounds.items() if fraction < bound)
            if (
                split == "train"
            ):  # the sample goes by a fraction of its own, so that it is one of all training sentences
                fraction = hash_fraction(f"sample {key}", config.seed)
            kept[split].offer(fraction, key, example)
    check_unchanged(path, paths, source)
    found: dict[str, list[Example]] = {"test": kept["test"].examples()}
    for split in ("validation", "train"):
        links = Links([example for held_out in found.values() for example in held_out])
        found[split] = [example for example in kept[split].examples() if not links.hold(example)]
    splits = {split: found[split] for split in SPLITS}
    return Corpus(source, [e for split in SPLITS for e in splits[split]], dict(counts), columns), splits


@dataclass(frozen=True)
class RowSettings:
    """How training rows are made of a stream."""

    max_length: int | None  # tokens of a row
    completion_only: bool
    batch_size: int | None  # rows of like lengths together, in batches of that many; None: as they come
    seed: int


def stream_training_rows(
    config: DataConfig,
    corpus: Corpus,
    held_out: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    settings: RowSettings,
) -> Iterator[dict[str, list[int]]]:
    """Yield the rows of `tokenise_pairs` without end, epoch after epoch, shuffled within WINDOW rows.

    Raises:
        DataError: the files are no longer those of `corpus`.
    """
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    path, paths = find_files(config)[:2]
    check_unchanged(path, paths, corpus.source)
    links = Links(held_out)

    def read_epoch() -> Iterator[dict[str, list[int]]]:
        for rows in stream_rows(paths, corpus.columns, config.quoting):
            chunk = clean_rows(Table(corpus.source, rows)).examples
            chunk = [example for example in chunk if not links.hold(example)]
            yield from tokenise_pairs(chunk, tokenizer, settings.max_length, settings.completion_only).rows

    for epoch in itertools.count():
        rows = read_epoch()
        for number in itertools.count():
            window = list(itertools.islice(rows, WINDOW))
            if not window:
                break
            if settings.batch_size is None:
                random.Random(f"{settings.seed}\n{epoch}\n{number}").shuffle(window)
                yield from window
                continue
            generator = torch.Generator().manual_seed(
                (settings.seed * 1_000_003 + epoch) * 1_000_003 + number
            )
            lengths = [len(row["input_ids"]) for row in window]
            yield from (
                window[index]
                for index in get_length_grouped_indices(lengths, settings.batch_size, generator=generator)
            )
