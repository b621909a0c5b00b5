"""What is trained on: the training split's pairs, or the closest of each sentence, and pairs made of them.

The lexicon here is the word list that the delete baseline has too, fitted on the training split alone.
"""

import difflib
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from sft.data import Example, normalise
from sft.lexicon import WORD, delete_listed, fit_lexicon, normalise_word, split_words
from sft.schema import DataConfig
from sft.targets import Targets

STANDS = 0.015  # see find_stand_ins


def make_training_examples(
    splits: Mapping[str, Sequence[Example]], data: DataConfig, targets: Targets | None = None
) -> dict[str, list[Example]]:
    """Return the examples trained on, by where they come from: `split`, `swaps` and `inserts`.

    A sentence with a target has it in place of its rewrites, or beside them where `data.targets_only` is
    false. None of those made here has a sentence that is in the other splits, as a source or as a rewrite.
    """
    train = list(splits["train"])
    if not (data.closest or data.swaps or data.inserts or targets):
        return {"split": train, "swaps": [], "inserts": []}
    lexicon = fit_lexicon(train)
    texts = targets.texts if targets else {}
    chosen = [
        choose_closest(example, lexicon)
        if data.closest and not (data.targets_only and example.id in texts)
        else example
        for example in train
    ]
    chosen = [add_target(example, texts.get(example.id), data.targets_only) for example in chosen]
    held_out = {
        normalise(text)
        for split in ("validation", "test")
        for example in splits[split]
        for text in (example.toxic, *example.references)
    }
    made = {
        "swaps": swap_words(chosen, lexicon, data.swaps, data.seed),
        "inserts": insert_words(chosen, lexicon, find_stand_ins(train, lexicon), data.inserts, data.seed),
    }
    return {"split": chosen} | {
        name: [pair for pair in pairs if normalise(pair.toxic) not in held_out]
        for name, pairs in made.items()
    }


def add_target(example: Example, target: str | None, alone: bool) -> Example:
    """Return the example with its target, if it has one, in place of its rewrites or behind them."""
    if target is None:
        return example
    return Example(example.toxic, (target,) if alone else tuple(dict.fromkeys((*example.references, target))))


def choose_closest(example: Example, lexicon: Sequence[str]) -> Example:
    """Return the example with one rewrite: that with most tokens of the sentence without listed words."""
    if len(example.references) == 1:
        return example
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenise: Callable[[str], str] = Tokenizer13a()
    plain = tokenise(delete_listed(example.toxic, lexicon)).split()

    def measure(reference: str) -> float:
        return difflib.SequenceMatcher(None, plain, tokenise(reference).split(), autojunk=False).ratio()

    return Example(example.toxic, (max(example.references, key=measure),))


def swap_words(examples: Sequence[Example], lexicon: Sequence[str], swaps: float, seed: int) -> list[Example]:
    """Return new pairs: each pair `swaps` times on average, with other listed words in the sentence.

    Each listed word that the rewrite does not keep gives way to one drawn from the whole list, so that rare
    words of the list are learnt as often as frequent ones. Pairs without such a word give none.
    """
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


def find_stand_ins(examples: Sequence[Example], lexicon: Collection[str]) -> dict[str, list[str]]:
    """Return the words that people write in place of listed ones: {"know": ["kno"], "people": ["idiots"]}.

    A word counts where it alone stands in a listed word's place, in rewrites of two sentences at least, of
    which each weighs one, and in STANDS of the sentences that hold the listed word.
    """
    listed, seen = set(lexicon), Counter[str]()
    places: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)  # weight by sentence
    for example in examples:
        words = split_words(example.toxic)
        held = listed.intersection(words)
        seen.update(held)
        for reference in example.references if held else ():
            for word, other in pair_replaced(words, split_words(reference)):
                if word in held and other not in listed:
                    sentences = places[word, other]
                    sentences[example.toxic] = sentences.get(example.toxic, 0) + 1 / len(example.references)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for (word, other), sentences in sorted(places.items()):
        if len(sentences) > 1 and sum(sentences.values()) >= max(1, STANDS * seen[word]):
            found[other].append(word)
    return dict(found)


def pair_replaced(words: Sequence[str], others: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each word that has one other word in its place, with that."""
    for kind, first, last, start, end in difflib.SequenceMatcher(
        None, words, others, autojunk=False
    ).get_opcodes():
        if kind == "replace" and last - first == end - start == 1:
            yield words[first], others[start]


def insert_words(
    examples: Sequence[Example],
    lexicon: Sequence[str],
    stand_ins: Mapping[str, Sequence[str]],
    inserts: float,
    seed: int,
) -> list[Example]:
    """Return new pairs: each rewrite `inserts` times on average, and with one or two listed words in it.

    A listed word is put between two others; or, half of the times where it can be, in the place of one that
    people write for it (see `find_stand_ins`). So a model learns to keep all that is not rude, word for word,
    and to write "know" for "kno" wherever it stands. Each word of the list is as frequent as the others.
    """
    if not lexicon:
        return []
    pairs = []
    for example in examples:
        for reference in example.references:
            rng = random.Random(f"insert\n{seed}\n{example.toxic}\n{reference}")
            for _ in range(int(inserts + rng.random())):
                words = reference.split(" ")
                for _ in range(rng.choice((1, 1, 2))):
                    places = [place for place, word in enumerate(words) if normalise_word(word) in stand_ins]
                    if places and rng.random() < 0.5:
                        place = rng.choice(places)
                        words[place] = rng.choice(stand_ins[normalise_word(words[place])])
                    else:
                        words.insert(rng.randrange(len(words)), rng.choice(lexicon))
                pairs.append(Example(" ".join(words), (reference,)))
    return pairs
