"""An evaluation as one HTML page that needs nothing else: scores, plots, slices, stress and samples."""

import base64
import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.results import GENERATED, Results
from eval.stress import SWEARING
from eval.tables import (
    LABELS,
    describe_differences,
    format_value,
    name_metrics,
    name_system,
    tabulate_ceiling,
    tabulate_protocol,
    tabulate_systems,
    tabulate_unrewritten,
)
from sft.command import show
from sft.lexicon import WORD, normalise_word

TEMPLATE = Path(__file__).parent / "page.html.jinja"
PLOTS = {
    "scores.png": "Scores of each system, with 95 % confidence intervals",
    "loss.png": "Loss during training",
    "lengths.png": "Words of inputs, outputs and human rewrites",
}


def render_page(
    title: str,
    results: Results,
    samples: Sequence[Mapping[str, Any]],
    lexicon: Collection[str],
    plots: Path,
) -> str:
    """Return the page, with the plots that `plots` has, and with swear words masked until clicked."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        finalize=lambda value: show(value) if type(value) is str else value,
    )
    environment.filters |= {"system": name_system, "words": lambda text: mask_words(text, lexicon)}
    images = {
        name: {"title": label, "data": base64.b64encode((plots / name).read_bytes()).decode()}
        for name, label in PLOTS.items()
        if (plots / name).is_file()
    }
    rows = [dict(sample, changes=find_changes(sample["toxic"], sample["prediction"])) for sample in samples]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        results=results,
        systems=tabulate_systems(results),
        apart=tabulate_ceiling(results),
        labels=name_metrics(results.systems),
        all_labels=LABELS,
        differences=describe_differences(results),
        format_value=format_value,
        images=list(images.values()),
        samples=rows,
        generated=GENERATED,
        protocols=[(part, tabulate_protocol(part)) for part in results.protocols],
        unrewritten=tabulate_unrewritten(results.unrewritten) if results.unrewritten else [],
    )


def find_changes(source: str, output: str) -> list[tuple[str, str]]:
    """Return the changes from one text to the other: pairs of "same", "out" or "in" and a piece of text."""
    one, other = source.split(), output.split()
    changes = []
    for kind, begin, end, start, stop in difflib.SequenceMatcher(
        None, one, other, autojunk=False
    ).get_opcodes():
        if kind == "equal":
            changes.append(("same", " ".join(one[begin:end])))
            continue
        if end > begin:
            changes.append(("out", " ".join(one[begin:end])))
        if stop > start:
            changes.append(("in", " ".join(other[start:stop])))
    return changes


def mask_words(text: str, lexicon: Collection[str]) -> list[tuple[str, bool]]:
    """Return the text in pieces, each with whether it is a listed word or one that a stress case marks."""
    spans = [match.span() for match in WORD.finditer(text) if normalise_word(match[0]) in lexicon]
    spans += [match.span() for match in SWEARING.finditer(text)]
    pieces, place = [], 0
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if end > place:
            pieces += [(text[place:start], False), (text[max(place, start) : end], True)]
            place = end
    return [(piece, masked) for piece, masked in [*pieces, (text[place:], False)] if piece]
