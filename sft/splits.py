"""Splits without leaks: sentences that are linked stay together, and the outcome is checked."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from sft.data import Example, normalise

SPLITS = ("train", "validation", "test")
# Sentences that differ by a single word count as near-duplicates from this many shared words on. Below it,
# short insults ("what a jerk", "what a fool") would all be one group.
NEAR_DUPLICATE_WORDS = 6
SPLIT_RULE = (
    "by source sentence: blake2b(seed, words of the group's first sentence) as a fraction in [0, 1): "
    "below `test` it is test, below `test + validation` validation, else train. "
    "One group: sources with the same words (case, punctuation and spacing aside), sources of more than "
    f"{NEAR_DUPLICATE_WORDS} words that differ by one word, and a source that is a rewrite of another."
)


def split_examples(
    examples: Sequence[Example], validation: float, test: float, seed: int
) -> dict[str, list[Example]]:
    """Split by groups of linked source sentences (see `SPLIT_RULE`); each split keeps the file's order."""
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for example, group in zip(examples, group_sources(examples), strict=True):
        place = hash_fraction(normalise(examples[group].toxic), seed)
        splits["test" if place < test else "validation" if place < test + validation else "train"].append(
            example
        )
    return splits


def hash_fraction(key: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on `key` and `seed` alone."""
    digest = hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def group_sources(examples: Sequence[Example]) -> list[int]:
    """Return, for each example, the index of the first example of its group.

    The first in file order stands for the group, so that appended rows move a row only where they link two
    groups.
    """
    parent = list(range(len(examples)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[str, int] = {}
    for index, example in enumerate(examples):
        for key in link_keys(example.toxic):
            a, b = find(first.setdefault(key, index)), find(index)
            parent[max(a, b)] = min(a, b)
    for index, example in enumerate(examples):
        for reference in example.references:
            source = first.get(normalise(reference))
            if source is not None:
                a, b = find(source), find(index)
                parent[max(a, b)] = min(a, b)
    return [find(index) for index in range(len(examples))]


def link_keys(text: str) -> Iterator[str]:
    """Yield the keys of which two linked sources share one: the words, and the words with one left out.

    Two sentences that differ by a word replaced, added or dropped share such a key (the deletion
    neighbourhood of Bocek et al. 2007, over words).
    """
    words = normalise(text).split()
    yield " ".join(words)
    if len(words) > NEAR_DUPLICATE_WORDS:
        for index in range(len(words)):
            yield " ".join([*words[:index], *words[index + 1 :]])


class Links:
    """Says whether a sentence is linked with one of these examples, as `group_sources` links them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.sources = {key for example in examples for key in link_keys(example.toxic)}
        self.rewrites = {normalise(reference) for example in examples for reference in example.references}

    def hold(self, example: Example) -> bool:
        return (
            normalise(example.toxic) in self.rewrites
            or any(key in self.sources for key in link_keys(example.toxic))
            or any(normalise(reference) in self.sources for reference in example.references)
        )


def find_leaks(splits: dict[str, list[Example]]) -> list[str]:
    """Return one line for each source sentence that stands in two splits, as itself or as another's rewrite.

    Written apart from `group_sources` on purpose: it looks at the outcome, whatever rule made the splits.
    """
    places: dict[str, set[str]] = defaultdict(set)
    for split, examples in splits.items():
        for example in examples:
            for text in (example.toxic, *example.references):
                places[normalise(text)].add(split)
    sources = dict.fromkeys(normalise(example.toxic) for examples in splits.values() for example in examples)
    return [
        f"{key!r} stands in {' and '.join(sorted(places[key]))}" for key in sources if len(places[key]) > 1
    ]


def hash_examples(examples: Iterable[Example]) -> str:
    """Return the SHA-256 of examples with their references, in order: the name of a split in every report."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.toxic, *example.references], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
