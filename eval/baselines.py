"""What an adapter is compared with: the input copied or without listed words, and the base with few shots."""

import functools
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from sft.data import Example

# "can't", and the "can 't" of ParaDetox, are one word; a quoted word after a space is none with the one
# before it.
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+| ['’](?:t|s|m|d|re|ve|ll)\b)*", re.IGNORECASE)
# Share of the training sentences that hold a word, for it to be listed; and five of them at least.
SEEN = 0.001
# Most human rewrites that hold a word, for each toxic sentence that does; a sentence's rewrites count as one.
KEPT = 0.3
SHOTS = 4


@functools.lru_cache(2**16)  # a corpus of 18,000 pairs asks 580,000 times, of few words
def normalise_word(word: str) -> str:
    """Return a match of WORD as a word list has it: in lower case, without apostrophes."""
    return re.sub(r"[ '’]", "", word.lower())


def split_words(text: str) -> list[str]:
    return [normalise_word(match[0]) for match in WORD.finditer(text)]


def fit_lexicon(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the words, in order, that are frequent in toxic sentences and rare in human rewrites.

    The list is as good as its examples: some words in it are harmless, and toxicity without a listed word
    goes unseen.
    """
    toxic: Counter[str] = Counter()
    neutral: defaultdict[str, float] = defaultdict(float)
    for example in examples:
        toxic.update(set(split_words(example.toxic)))
        for reference in example.references:
            for word in set(split_words(reference)):
                neutral[word] += 1 / len(example.references)
    least = max(5, SEEN * len(examples))
    return tuple(
        sorted(word for word, times in toxic.items() if times >= least and neutral[word] <= KEPT * times)
    )


def hash_lexicon(lexicon: Collection[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lexicon)).encode()).hexdigest()


def choose_shots(examples: Sequence[Example]) -> list[Example]:
    """Return the examples that a few-shot prompt begins with: chosen by their id, a hash."""
    return sorted(examples, key=lambda example: example.id)[:SHOTS]


def find_listed(text: str, lexicon: Collection[str]) -> list[str]:
    """Return the listed words of a text, as often as they stand in it."""
    return [word for word in split_words(text) if word in lexicon]


def delete_listed(text: str, lexicon: Collection[str]) -> str:
    """Return the text without its listed words."""
    return " ".join(
        WORD.sub(lambda match: "" if normalise_word(match[0]) in lexicon else match[0], text).split()
    )
