"""The word list: fitted on the training split; texts with and without its words."""

from sft.data import Example
from sft.lexicon import delete_listed, find_listed, fit_lexicon, split_words
from sft.schema import DataConfig
from sft.storage import PROJECT

TRAIN = [
    Example("you fucking liar", ("You are lying.", "you lie")),
    Example("what a fucking day", ("What a day!",)),
    Example("FUCKING hell , it can 't work", ("It can't work.", "it cant work")),
    Example("fucking fucking good", ("good", "Good fucking day")),
    Example("a fucking good day , damn", ("a good day", "A good damn day")),
    *[Example(f"damn good day {word}", ("good day",)) for word in "wxyz"],
    *[Example(f"damn , i can 't {word}", ("I can't",)) for word in "wxyz"],
]


def test_words_are_compared_without_case_apostrophes_and_punctuation() -> None:
    assert split_words("Can't, CAN 'T (it's) so-called snake_case f*ck 3rd") == [
        "cant", "cant", "its", "so", "called", "snake", "case", "f", "ck", "3rd",
    ]  # fmt: skip
    assert split_words("he said 'fuck you' , don’t ! i 'm") == ["he", "said", "fuck", "you", "dont", "im"]


def test_lexicon_holds_what_is_frequent_in_toxic_text_and_rare_in_rewrites() -> None:
    # In five and nine sentences, and kept in half a rewrite; "good" and "cant" are kept; the others are too rare.
    assert fit_lexicon(TRAIN) == ("damn", "fucking")
    assert fit_lexicon(TRAIN[:8]) == ("fucking",)
    assert fit_lexicon([Example("damn", ("Damn",))] * 3 + [Example("damn", ("ok",))] * 7) == ("damn",)
    assert fit_lexicon([Example("damn", ("Damn",))] * 4 + [Example("damn", ("ok",))] * 6) == ()
    assert fit_lexicon([]) == ()


def test_listed_words_are_deleted_and_nothing_else() -> None:
    lexicon = frozenset(fit_lexicon(TRAIN))
    assert delete_listed("What a Fucking day, damn!", lexicon) == "What a day, !"
    assert delete_listed("fucking damn", lexicon) == ""
    assert delete_listed("i can 't , café ☕", lexicon) == "i can 't , café ☕"
    assert find_listed("Damn, unfucking FUCKING damn", lexicon) == ["damn", "fucking", "damn"]
    assert find_listed(delete_listed("Damn, what the fucking-damn _damn_ day", lexicon), lexicon) == []


def test_embedded_corpus_gives_a_list_of_rude_words() -> None:
    from sft.data import read_corpus
    from sft.splits import split_examples

    config = DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))
    lexicon = fit_lexicon(split_examples(read_corpus(config).examples, 0.1, 0.1, 0)["train"])
    assert {"fucking", "shit", "idiot", "damn", "crap"} <= set(lexicon)
    assert not {"the", "you", "is", "good", "people", "dont", "cant"} & set(lexicon)
    assert lexicon == tuple(sorted(set(lexicon)))
