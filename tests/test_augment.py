"""Training pairs: made of the training split alone, the same each time, and nothing that is held out."""

from dataclasses import replace

from sft.augment import insert_words, make_training_examples, swap_words
from sft.data import Example, normalise
from sft.lexicon import find_listed, fit_lexicon, split_words
from sft.schema import DataConfig

LEXICON = ("crud", "darn", "heck")
EXAMPLES = [Example(f"{rude} number {i} is here", (f"number {i} is here",)) for i in range(40) for rude in LEXICON]
DATA = DataConfig(source="", swaps=1, inserts=1)


def test_listed_words_are_swapped_for_any_of_the_list() -> None:
    assert fit_lexicon(EXAMPLES) == LEXICON
    pairs = swap_words(EXAMPLES, LEXICON, 1, seed=0)
    assert 60 < len(pairs) < 100, "a third of the draws gives the sentence itself"
    sources = {example.toxic for example in EXAMPLES}
    assert all(pair.toxic in sources for pair in pairs), "only the listed word has changed"
    for pair in pairs:
        assert split_words(pair.toxic)[1:] == split_words(pair.references[0])
    assert pairs == swap_words(EXAMPLES, LEXICON, 1, seed=0)
    assert pairs != swap_words(EXAMPLES, LEXICON, 1, seed=1)


def test_swaps_is_a_mean_number_a_pair() -> None:
    assert swap_words(EXAMPLES, LEXICON, 0, seed=0) == []
    assert 25 < len(swap_words(EXAMPLES, LEXICON, 0.5, seed=0)) < 55
    assert 130 < len(swap_words(EXAMPLES, LEXICON, 2, seed=0)) < 190


def test_words_that_the_rewrite_keeps_stay() -> None:
    kept = Example("darn this crud", ("darn this",))
    for pair in swap_words([*EXAMPLES, kept], LEXICON, 5, seed=0):
        if "this" in pair.toxic:
            assert pair.toxic.startswith("darn this ")
            assert pair.references == kept.references


def test_inserted_words_are_all_that_is_between_a_source_and_its_rewrite() -> None:
    pairs = insert_words(EXAMPLES, LEXICON, 1.5, seed=0)
    assert 150 < len(pairs) < 210
    rewrites = {reference for example in EXAMPLES for reference in example.references}
    numbers = set()
    for pair in pairs:
        (reference,) = pair.references
        assert reference in rewrites
        numbers.add(len(find_listed(pair.toxic, LEXICON)))
        assert " ".join(word for word in pair.toxic.split(" ") if word not in LEXICON) == reference
    assert numbers == {1, 2}
    assert pairs == insert_words(EXAMPLES, LEXICON, 1.5, seed=0)
    assert insert_words(EXAMPLES, (), 1, seed=0) == insert_words(EXAMPLES, LEXICON, 0, seed=0) == []


def test_the_closest_rewrite_is_the_one_with_the_sentences_own_words() -> None:
    example = Example("darn it , come here now", ("Could you please come over?", "it , come here now", "It, come here"))
    splits = {"train": [*EXAMPLES, example], "validation": [], "test": []}
    made = make_training_examples(splits, replace(DATA, closest=True, swaps=0, inserts=0))
    assert made == {"split": [*EXAMPLES, Example(example.toxic, ("it , come here now",))], "swaps": [], "inserts": []}
    assert make_training_examples(splits, DataConfig(source=""))["split"] == splits["train"]


def test_no_made_sentence_is_held_out() -> None:
    held_out = [Example("Heck, number 3 is here!", ("number 3",)), Example("x", ("number crud 5 is here",))]
    splits = {"train": EXAMPLES, "validation": held_out[:1], "test": held_out[1:]}
    data = replace(DATA, swaps=6, inserts=6)
    banned = {"heck number 3 is here", "number crud 5 is here"}
    free = make_training_examples(splits | {"validation": [], "test": []}, data)
    assert banned <= {normalise(pair.toxic) for name in ("swaps", "inserts") for pair in free[name]}
    made = make_training_examples(splits, data)
    assert banned.isdisjoint(normalise(pair.toxic) for name in ("swaps", "inserts") for pair in made[name])
