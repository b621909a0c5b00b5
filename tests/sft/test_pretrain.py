"""The script that makes the embedded base: what it leaves out, and that the same seed gives the same bytes."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sft.command import InputError
from sft.data import normalise, read_corpus
from sft.recipe import load_recipe
from sft.schema import DataConfig
from sft.splits import split_examples
from sft.storage import PROJECT

CORPUS = PROJECT / "recipes" / "tiny-corpus.tsv"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every sentence and rewrite of the embedded corpus, a line each."""
    path = tmp_path_factory.mktemp("text") / "all.txt"
    examples = read_corpus(DataConfig(source=str(CORPUS))).examples
    path.write_text(
        "".join(f"{line}\n" for example in examples for line in (example.toxic, *example.references))
    )
    return path


def make_arguments(text: Path, folder: Path) -> argparse.Namespace:
    return argparse.Namespace(
        texts=[text], corpus=[], output_dir=folder, steps=4, batch_tokens=512, learning_rate=1e-3, hidden_size=16,
        n_layer=1, n_head=2, vocab_size=400, seed=0, save_steps=2,
    )  # fmt: skip


@pytest.mark.parametrize("share", [None, 0.05])
def test_held_out_sentences_and_their_rewrites_are_left_out(
    pretrain: ModuleType, text: Path, tmp_path: Path, share: float | None
) -> None:
    """Of the recipe's own splits, and of smaller ones with its seed, which lie within them."""
    recipe = load_recipe(PROJECT / "recipes" / "tiny.yaml").data
    shares = (share, share) if share else (recipe.validation, recipe.test)
    splits = split_examples(read_corpus(DataConfig(source=str(CORPUS))).examples, *shares, recipe.seed)
    texts = {
        split: {normalise(text) for example in splits[split] for text in (example.toxic, *example.references)}
        for split in splits
    }
    hidden = texts["validation"] | texts["test"]
    assert len(hidden) > 50
    other = tmp_path / "other.txt"
    other.write_text("Not of the corpus.\n")
    kept = pretrain.read_sentences([text, other], [CORPUS])
    assert not {normalise(sentence) for sentence in kept} & hidden
    assert "Not of the corpus." in kept
    assert share or texts["train"] - hidden <= {normalise(sentence) for sentence in kept}, (
        "what is trained on is text"
    )


def test_spaced_punctuation_does_not_hide_a_held_out_sentence(pretrain: ModuleType, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.tsv"
    words = (PROJECT / "tests" / "neutral.txt").read_text().split()[:160]
    sentences = [" ".join(words[i : i + 4]).lower() for i in range(0, 160, 4)]
    corpus.write_text(
        "toxic\tneutral1\n"
        + "".join(f"i do n't {sentence} , fool\tI pass {sentence}\n" for sentence in sentences)
    )
    recipe = load_recipe(PROJECT / "recipes" / "tiny.yaml").data
    splits = split_examples(
        read_corpus(DataConfig(source=str(corpus))).examples, recipe.validation, recipe.test, recipe.seed
    )
    hidden = [example.toxic for split in ("validation", "test") for example in splits[split]]
    assert hidden
    other = tmp_path / "other.txt"
    forms = [
        form
        for text in hidden
        for form in (text, text.replace("i do n't", "I do n't"), text.replace("do n't", "don't"))
    ]
    other.write_text("\n".join([*forms, "Not of the corpus."]) + "\n")
    assert pretrain.read_sentences([other], [corpus])[0] == "Not of the corpus."


def test_same_seed_same_bytes_also_after_an_interruption(
    pretrain: ModuleType, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain.pretrain(make_arguments(text, tmp_path / "a"))
    make_batches = pretrain.make_batches

    def break_off(*arguments: object) -> Iterator[object]:
        for number, batch in enumerate(make_batches(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(pretrain, "make_batches", break_off)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(make_arguments(text, tmp_path / "b"))
    assert (tmp_path / "b" / "checkpoint.pt").exists()
    monkeypatch.undo()
    saved = (tmp_path / "b" / "checkpoint.pt").read_bytes()
    for key, other in {"steps": 5, "seed": 1, "texts": [text, text], "corpus": [CORPUS]}.items():
        arguments = make_arguments(text, tmp_path / "b")
        setattr(arguments, key, other)
        with pytest.raises(
            InputError,
            match=rf"checkpoint\.pt: the interrupted training began with another {key}\. Go on with",
        ):
            pretrain.pretrain(arguments)
    changed = tmp_path / "changed.txt"
    changed.write_text(text.read_text() + "One more.\n")
    with pytest.raises(InputError, match=r"another texts\."):
        pretrain.pretrain(make_arguments(changed, tmp_path / "b"))
    assert (tmp_path / "b" / "checkpoint.pt").read_bytes() == saved
    pretrain.pretrain(make_arguments(text, tmp_path / "b"))
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    assert "checkpoint.pt" not in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_noise_leaves_the_sentence_to_be_found(pretrain: ModuleType) -> None:
    import random

    sentences = ["The quick brown fox jumps.", "I don't like this at all!"]
    followers = pretrain.find_followers(sentences)
    assert followers == {
        "": ["The", "I"], "The": ["quick"], "quick": ["brown"], "brown": ["fox"], "fox": ["jumps."], "I": ["don't"],
        "don't": ["like"], "like": ["this"], "this": ["at"], "at": ["all!"],
    }  # fmt: skip
    noisy = [
        pretrain.add_noise(sentences[0], sentences, followers, random.Random(seed)) for seed in range(200)
    ]
    assert sentences[0] in noisy, "some stay as they are"
    assert len(set(noisy)) > 80
    assert all(text.strip() for text in noisy)
    assert pretrain.tidy("i 'm not sure , are you ?") == "I'm not sure, are you?"
    assert pretrain.tidy("He said , no .") == "He said , no ."
    assert pretrain.tidy("It\u2019s \u201cfine\u201d") == 'It\'s "fine"'
    worn = {pretrain.wear_down("Isn't it, said He.", random.Random(seed)) for seed in range(20)}
    assert worn == {
        "isn 't it , said he .",
        "isn 't it , said he",
        "isnt it , said he .",
        "isnt it , said he",
    }


def test_salad_is_words_of_the_text(pretrain: ModuleType) -> None:
    import random

    salads = [pretrain.make_salad(["a b", "c d e"], random.Random(seed)).split() for seed in range(50)]
    assert {len(words) for words in salads} == set(range(3, 21))
    assert {word for words in salads for word in words} == set("abcde")


def test_a_text_named_twice_is_drawn_twice_as_often(pretrain: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("One here.\nOne here.\n\nTwo here.\n")
    (tmp_path / "b").write_text("Three here.\n")
    paths = [tmp_path / "a", tmp_path / "b", tmp_path / "a"]
    assert pretrain.read_sentences(paths, []) == [
        "One here.",
        "Two here.",
        "One here.",
        "Two here.",
        "Three here.",
    ]


def test_embedded_base_is_a_small_bloom_with_blooms_special_tokens() -> None:
    from transformers import AutoConfig, AutoTokenizer

    folder = PROJECT / "recipes" / "bloom-tiny"
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.model_type == "bloom"
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")
    assert len(tokenizer) == config.vocab_size
    assert (folder / "model.safetensors").stat().st_size < 32e6
    text = "ünïcödé 「x」 😀 l33t\tsh1t"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
