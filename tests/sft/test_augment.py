"""Training pairs: made of the training split alone, the same each time, and nothing that is held out."""

from collections import Counter
from dataclasses import replace

from sft.augment import find_stand_ins, insert_words, make_training_examples, swap_words
from sft.data import Example, normalise
from sft.lexicon import find_listed, fit_lexicon, split_words
from sft.schema import DataConfig

LEXICON = ("crud", "darn", "heck")
EXAMPLES = [
    Example(f"{rude} number {i} is here", (f"number {i} is here",)) for i in range(40) for rude in LEXICON
]
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
    pairs = insert_words(EXAMPLES, LEXICON, {}, 1.5, seed=0)
    assert 150 < len(pairs) < 210
    rewrites = {reference for example in EXAMPLES for reference in example.references}
    numbers = set()
    for pair in pairs:
        (reference,) = pair.references
        assert reference in rewrites
        numbers.add(len(find_listed(pair.toxic, LEXICON)))
        assert " ".join(word for word in pair.toxic.split(" ") if word not in LEXICON) == reference
    assert numbers == {1, 2}
    assert pairs == insert_words(EXAMPLES, LEXICON, {}, 1.5, seed=0)
    assert insert_words(EXAMPLES, (), {}, 1, seed=0) == insert_words(EXAMPLES, LEXICON, {}, 0, seed=0) == []
    counts = Counter(
        word
        for pair in insert_words(EXAMPLES, LEXICON, {}, 20, seed=0)
        for word in find_listed(pair.toxic, LEXICON)
    )
    assert max(counts.values()) < 1.2 * min(counts.values()), "each word of the list is as frequent"


def test_words_that_people_write_for_listed_ones_are_found() -> None:
    examples = [Example(f"i darn you {i}", (f"i know you {i}", f"i know you well {i}")) for i in range(3)]
    examples += [
        Example("the heck of it", ("the pain of it",)),
        Example("crud all over there", ("nothing there at all",)),
    ]
    examples += [Example(f"a crud {i} there", (f"a heck {i} there",)) for i in range(3)]
    assert find_stand_ins(examples, LEXICON) == {"know": ["darn"]}, (
        "once is chance, and a listed word is no better"
    )
    examples.append(Example("the heck of them", ("the pain of them",)))
    assert find_stand_ins(examples, LEXICON) == {"know": ["darn"], "pain": ["heck"]}
    rare = [*examples, *(Example(f"heck , {i}", (f"{i}",)) for i in range(200))]
    assert find_stand_ins(rare, LEXICON) == {"know": ["darn"]}, "two of two hundred is chance, too"


def test_listed_words_are_put_where_people_write_others_for_them() -> None:
    example = Example("x", ("i Know you",))
    sources = {pair.toxic for pair in insert_words([example], LEXICON, {"know": ["darn"]}, 50, seed=0)}
    assert "i darn you" in sources
    assert all(
        pair.references == example.references
        for pair in insert_words([example], LEXICON, {"know": ["darn"]}, 9, seed=0)
    )
    assert any("Know" in source for source in sources), "beside the others, too"


def test_the_closest_rewrite_is_the_one_with_the_sentences_own_words() -> None:
    example = Example(
        "darn it , come here now", ("Could you please come over?", "it , come here now", "It, come here")
    )
    splits = {"train": [*EXAMPLES, example], "validation": [], "test": []}
    made = make_training_examples(splits, replace(DATA, closest=True, swaps=0, inserts=0))
    assert made == {
        "split": [*EXAMPLES, Example(example.toxic, ("it , come here now",))],
        "swaps": [],
        "inserts": [],
    }
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
