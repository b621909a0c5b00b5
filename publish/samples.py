"""Samples of what an adapter writes, as they are published: chosen by a hash, listed words masked."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from eval.report import choose_samples, format_samples
from eval.results import GENERATED
from sft.data import clean_text
from sft.lexicon import WORD, find_listed, normalise_word

SAMPLES = 3
EXAMPLES = (
    "disguised swearing",
    "shouting",
    "clean sentences",
)  # groups of eval/stress.py whose first case is shown


def mask_listed(text: str, lexicon: Collection[str]) -> str:
    """Return the text with each listed word's letters after the first as asterisks."""

    def mask(match: re.Match[str]) -> str:
        return match[0][0] + "*" * (len(match[0]) - 1) if normalise_word(match[0]) in lexicon else match[0]

    return WORD.sub(mask, text)


def choose_examples(results: Mapping[str, Any], lexicon: Collection[str]) -> list[tuple[str, str]]:
    """Return texts with their rewrites, one for each of EXAMPLES; none where no stress cases were evaluated.

    They are shown as they are, since the widget and the code need real texts: so none with a listed word,
    unless all have.
    """
    groups = [group for name in EXAMPLES for group in results["stress"] if group["group"] == name]
    cases = [[(clean_text(case["text"]), case["output"]) for case in group["cases"]] for group in groups]
    harmless = [
        [pair for pair in pairs if not any(find_listed(text, lexicon) for text in pair)] for pairs in cases
    ]
    return [pairs[0] for pairs in (harmless if any(harmless) else cases) if pairs]


def mask_samples(predictions: Sequence[Mapping[str, Any]], lexicon: Collection[str]) -> list[list[str]]:
    """Return the samples of the card: toxic, rewritten and human text of some lines of predictions.jsonl."""
    return [
        [mask_listed(text, lexicon) for text in (line["toxic"], line["prediction"], line["references"][0])]
        for line in choose_samples(predictions, SAMPLES)
    ]


def write_samples(
    predictions: Sequence[Mapping[str, Any]], lexicon: Collection[str], number: int, source: str
) -> str:
    """Return samples.md with the listed words masked, as on the card; the run's own has them in full."""
    lines = []
    for line in predictions:
        masked = {
            name: mask_listed(line[name], lexicon)
            for name in ("toxic", "prediction", *GENERATED)
            if name in line
        }
        references = [mask_listed(reference, lexicon) for reference in line["references"]]
        lines.append({**line, **masked, "references": references})
    text = format_samples(lines, number, source)
    return f"{text}\nWords of the run's word list are masked.\n"
