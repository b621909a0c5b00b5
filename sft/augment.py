"""Further training pairs, made from the training split alone: its toxic sentences with other listed words."""

import random
import re
from collections.abc import Sequence

from eval.baselines import WORD, fit_lexicon, normalise_word, split_words
from sft.data import Example


def swap_words(examples: Sequence[Example], swaps: float, seed: int) -> list[Example]:
    """Return new pairs: each sentence and rewrite `swaps` times on average, with other listed words in the sentence.

    Each listed word that the rewrite does not keep gives way to one drawn from the whole list (`fit_lexicon`, fitted on
    `examples`), so that rare words of the list are learnt as often as frequent ones. Pairs without such a word give none.
    """
    lexicon = fit_lexicon(examples)
    pairs = []
    for example in examples:
        for reference in example.references:
            rng = random.Random(f"{seed}\n{example.toxic}\n{reference}")
            replaced = set(lexicon).difference(split_words(reference))

            def swap(match: re.Match[str], rng: random.Random = rng, replaced: set[str] = replaced) -> str:
                return rng.choice(lexicon) if normalise_word(match[0]) in replaced else match[0]

            swapped = [WORD.sub(swap, example.toxic) for _ in range(int(swaps + rng.random()))]
            pairs += [Example(toxic, (reference,)) for toxic in swapped if toxic != example.toxic]
    return pairs
