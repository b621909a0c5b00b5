"""The fitted classifier: what it learns from, what it says, and that it is the same each time."""

import pytest

from eval.toxicity import fit_toxicity
from sft.command import InputError
from sft.data import Example, read_corpus
from sft.schema import DataConfig
from sft.splits import split_examples
from sft.storage import PROJECT

SPLITS = split_examples(
    read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples, 0.2, 0.2, 0
)


def test_it_tells_held_out_sentences_from_their_rewrites() -> None:
    model = fit_toxicity(SPLITS["train"])
    accuracy = model.measure_accuracy(SPLITS["validation"] + SPLITS["test"])
    assert accuracy is not None
    assert accuracy > 0.75
    assert model.measure_accuracy([]) is None


def test_style_tells_it_nothing() -> None:
    model = fit_toxicity(SPLITS["train"])
    texts = ["I can't believe it, John.", "You are a damn fool!"]
    worn = ["i can 't believe it , john .", "you are a DAMN fool"]
    assert model.predict(texts) == model.predict(worn)


def test_texts_without_words_are_not_toxic() -> None:
    model = fit_toxicity(SPLITS["train"])
    assert model.predict([]) == []
    assert model.predict(["", "?!", "what a stupid idiot"])[:2] == [0, 0]


@pytest.mark.slow
def test_same_sentences_same_classifier_and_its_name_says_which() -> None:
    one, again, other = (
        fit_toxicity(SPLITS["train"]),
        fit_toxicity(SPLITS["train"]),
        fit_toxicity(SPLITS["train"][1:]),
    )
    texts = [example.toxic for example in SPLITS["test"]]
    assert one.predict(texts) == again.predict(texts)
    assert one.signature == again.signature != other.signature
    assert one.signature.startswith("toxicity|logistic:words(1-2)letters(2-4)|fitted on:")


@pytest.mark.slow
def test_accuracy_is_the_mean_of_both_sides() -> None:
    model = fit_toxicity(SPLITS["train"])
    examples = SPLITS["test"]
    toxic = [value > 0.5 for value in model.predict([example.toxic for example in examples])]
    neutral = [
        value <= 0.5 for value in model.predict([text for example in examples for text in example.references])
    ]
    expected = (sum(toxic) / len(toxic) + sum(neutral) / len(neutral)) / 2
    assert model.measure_accuracy(examples) == pytest.approx(expected)


@pytest.mark.parametrize(
    "texts", [[("you fool", "you")], [("you fool", "we"), ("he lies", "she")], [("?!", ".")]]
)
def test_too_few_sentences_to_fit(texts: list[tuple[str, str]]) -> None:
    with pytest.raises(InputError, match=r"to fit the toxicity classifier on, with too little in common"):
        fit_toxicity([Example(toxic, (neutral,)) for toxic, neutral in texts])
