"""Pairs with swapped words: made of the training split alone, the same each time, and never of words the rewrite keeps."""

from eval.baselines import fit_lexicon, split_words
from sft.augment import swap_words
from sft.data import Example

EXAMPLES = [
    Example(f"{rude} number {i} is here", (f"number {i} is here",)) for i in range(40) for rude in ("darn", "crud", "heck")
]


def test_listed_words_are_swapped_for_any_of_the_list() -> None:
    assert fit_lexicon(EXAMPLES) == ("crud", "darn", "heck")
    pairs = swap_words(EXAMPLES, 1, seed=0)
    assert 60 < len(pairs) < 100, "a third of the draws gives the sentence itself"
    sources = {example.toxic for example in EXAMPLES}
    assert all(pair.toxic in sources for pair in pairs), "only the listed word has changed"
    for pair in pairs:
        assert split_words(pair.toxic)[1:] == split_words(pair.references[0])
    assert pairs == swap_words(EXAMPLES, 1, seed=0)
    assert pairs != swap_words(EXAMPLES, 1, seed=1)


def test_swaps_is_a_mean_number_a_pair() -> None:
    assert swap_words(EXAMPLES, 0, seed=0) == []
    assert 25 < len(swap_words(EXAMPLES, 0.5, seed=0)) < 55
    assert 130 < len(swap_words(EXAMPLES, 2, seed=0)) < 190


def test_words_that_the_rewrite_keeps_stay() -> None:
    kept = Example("darn this crud", ("darn this",))
    for pair in swap_words([*EXAMPLES, kept], 5, seed=0):
        if "this" in pair.toxic:
            assert pair.toxic.startswith("darn this ")
            assert pair.references == kept.references
