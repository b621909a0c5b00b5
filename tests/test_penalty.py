"""The word penalty: who pays, for what, and that nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eval.baselines import find_listed, normalise_word, split_words
from eval.generate import find_adapter, load_rewriter
from eval.penalty import WordPenalty
from sft.run_dir import read_json, read_json_lines

WORDS = ("damn", "stupid", "cant")


@pytest.fixture(scope="module")
def penalty() -> WordPenalty:
    return WordPenalty(AutoTokenizer.from_pretrained("recipes/bloom-tiny"), WORDS, 2.5)


def charge(penalty: WordPenalty, text: str) -> torch.Tensor:
    """Return what each next token costs behind `text`."""
    ids = torch.tensor([penalty.tokenizer(text, add_special_tokens=False)["input_ids"]])
    return -penalty(ids, torch.zeros(1, 8192))[0]


@pytest.mark.parametrize("text", ["this damn", "Damn", "so STUPID", "\nstupid", "it is DaMn", "they can 't", "they can't"])
def test_ending_a_listed_word_costs(penalty: WordPenalty, text: str) -> None:
    costs = charge(penalty, text)
    tokenizer = penalty.tokenizer
    for ending in (" it", ".", "\n", "!", " "):
        assert costs[tokenizer(ending, add_special_tokens=False)["input_ids"][0]] == 2.5
    assert costs[tokenizer.eos_token_id] == 2.5
    assert costs[tokenizer("ity", add_special_tokens=False)["input_ids"][0]] == 0


@pytest.mark.parametrize(
    "text", ["this dam", "damned", "stupidity", "damn good", "damn.", "damn ", "### Rewritten:\n", "", "un\ndamn it"]
)
def test_other_words_cost_nothing(penalty: WordPenalty, text: str) -> None:
    assert not charge(penalty, text or " ").any()


def test_rows_pay_for_themselves_alone(penalty: WordPenalty) -> None:
    tokenizer = penalty.tokenizer
    ids = torch.tensor(tokenizer(["that is damn", "that is good"], padding=True, padding_side="left")["input_ids"])
    scores = torch.zeros(2, 8192)
    paid = penalty(ids, scores)
    assert paid[0].min() == -2.5
    assert not paid[1].any()
    assert not scores.any()  # the model's own are as they were


@pytest.mark.parametrize("word", ["Damn", "can't", "can 't", "CAN’T", "stupid"])
def test_words_are_those_of_the_word_list(penalty: WordPenalty, word: str) -> None:
    assert split_words(word) == [normalise_word(word)]
    assert normalise_word(word) in WORDS
    assert charge(penalty, f"they {word}").any()


def test_outputs_lose_what_they_pay_for(mini_run: Path) -> None:
    """The miniature model writes what it likes; the words that it likes best are listed here."""
    adapter = find_adapter(str(mini_run))
    texts = [line["toxic"] for line in read_json_lines(mini_run / "eval" / "predictions.jsonl")]
    plain = replace(adapter.settings, listed_penalty=0.0, listed_words=())
    before = load_rewriter(replace(adapter, settings=plain)).rewrite(texts)
    words = sorted({word for text in before for word in split_words(text)})
    assert words
    costly = replace(plain, listed_penalty=50.0, listed_words=words)
    after = load_rewriter(replace(adapter, settings=costly)).rewrite(texts)
    held = [sum(len(find_listed(text, words)) for text in rewrites) for rewrites in (before, after)]
    assert held[1] < 0.2 * held[0]
    unpenalised = load_rewriter(replace(adapter, settings=costly), penalised=False)
    assert unpenalised.rewrite(texts) == before
    assert not unpenalised.processors
    assert not load_rewriter(replace(adapter, settings=costly), tuned=False).processors


def test_results_say_what_it_changes(mini_run: Path) -> None:
    results = read_json(mini_run / "eval" / "results.json")
    assert results["generation"]["listed_penalty"] == 4
    assert results["generation"]["listed_words"]
    assert "unpenalised" in results["systems"]
    assert "unpenalised" in results["differences"]
