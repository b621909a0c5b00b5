"""Scores as people read them: labels, numbers with their digits, tables and sentences about differences."""

from collections.abc import Mapping

from eval.results import Interval, ProtocolScores, ReportedScore, Scored, Systems, Unrewritten
from sft.command import count

# Those of a table; results.json has more.
LABELS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "toxicity": "toxicity",
    "listed": "listed words",
    "joint": "joint",
}
PRINTED = ("bleu", "chrf", "rougeL", "toxicity", "listed", "joint")  # what fits a terminal of 80 columns
OF_HUNDRED = ("bleu", "chrf")  # on a scale of 0 to 100; the others, of 0 to 1
SHARES = ("listed", "copy_rate")  # printed as percentages
LESS_IS_BETTER = ("toxicity", "listed")
SYSTEMS = {
    "adapter": "this adapter",
    "human": "people",
    "base": "untuned base",
    "few_shot": "few-shot base",
    "delete": "listed words cut",
    "copy": "input copied",
}
REASONS = {
    "all": "all",
    "toxic_content": "what it says is toxic",
    "unclear": "unclear",
    "not_toxic": "not toxic",
    "other_tick": "another reason",
}


def format_value(name: str, value: float) -> str:
    """Return a score with the digits that its metric's own tools print."""
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.1f}" if name in OF_HUNDRED else f"{value:.3f}"


def format_interval(name: str, score: Interval, signed: bool = False) -> str:
    """Return a score or a difference with its interval, such as "61.2 [59.5, 63.0]"."""
    value, low, high = (format_value(name, number) for number in (score.value, score.low, score.high))
    return f"{'+' if signed and score.value > 0 else ''}{value} [{low}, {high}]"


def name_system(system: str) -> str:
    """Return a system's label; other systems, such as the runs of a comparison, go by their own names."""
    return SYSTEMS.get(system, system)


def tabulate_systems(scored: Scored) -> dict[str, Mapping[str, ReportedScore]]:
    """Return the rows of a table by label: the systems' scores, and last those of `tabulate_ceiling`."""
    rows = {name_system(system): scores for system, scores in scored.systems.items() if system != "human"}
    return rows | tabulate_ceiling(scored)


def tabulate_ceiling(scored: Scored) -> dict[str, Mapping[str, ReportedScore]]:
    """Return the scores of people, and of the first system on the same sentences and references, by labels.

    Both are fewer than those of the other systems, and so are scores: people can be compared with no other
    row.
    """
    ceiling = scored.ceiling
    if ceiling is None:
        return {}
    first = next(iter(ceiling.systems))
    return {
        f"{name_system('human')}, on {count(ceiling.rows, 'sentence')}": ceiling.systems["human"],
        f"{name_system(first)}, on these {ceiling.rows:,}": ceiling.systems[first],
    }


def name_metrics(systems: Systems) -> dict[str, str]:
    """Return the labels of the metrics of a table, by their names; those that the first system has."""
    scores = next(iter(systems.values()))
    return {name: label for name, label in LABELS.items() if name in scores}


def describe_differences(scored: Scored) -> list[str]:
    """Return lines such as "BLEU +2.1 [1.3, 2.9] against input copied", of the first system to each other.

    The other metrics whose differences are not significant follow.
    """
    lines = [describe_difference(system, differences) for system, differences in scored.differences.items()]
    if ceiling := scored.ceiling:
        first = next(iter(ceiling.systems))
        bleu = ceiling.systems[first]["bleu"].value
        rows = (
            f" on the {count(ceiling.rows, 'sentence')} with several rewrites, each scored against the others"
        )
        rows += f", where {name_system(first)} has {bleu:.1f}"
        lines.append(describe_difference("human", ceiling.differences["human"], rows))
    return lines


def describe_difference(system: str, differences: Mapping[str, Interval], rows: str = "") -> str:
    bleu = differences["bleu"]
    text = f"BLEU {bleu.value:+.1f} [{bleu.low:.1f}, {bleu.high:.1f}] against {name_system(system)}{rows}"
    noise = {
        name: label
        for name, label in LABELS.items()
        if name in differences and not differences[name].excludes_zero()
    }
    if noise.pop("bleu", None):
        text += " (not significant, the interval holds 0)"
    return f"{text}; inside the noise: {', '.join(noise.values())}" if noise else text


def tabulate_protocol(part: ProtocolScores) -> list[list[str]]:
    """Return the rows of a protocol's table, its head first: as in `tabulate_systems`, with intervals."""
    measures = list(next(iter(part.systems.values())))
    rows = [[part.protocol, *measures]]
    for label, scores in tabulate_systems(part).items():
        rows.append([label, *(format_interval(measure, scores[measure]) for measure in measures)])
    return rows


def tabulate_unrewritten(part: Unrewritten) -> list[list[str]]:
    """Return the rows of the table of sentences that annotators could not rewrite, its head first."""
    head = ["could not be rewritten", "number", "toxicity", "listed words", "copy rate", "joint"]
    rows = [[*head, *(f"joint, {SYSTEMS[name]}" for name in part.slices[0].systems if name != "adapter")]]
    for piece in part.slices:
        scores, *others = piece.systems.values()
        cells = [format_interval("toxicity", scores["toxicity"])]
        cells += [
            format_value(name, scores[name].value) if name in scores else ""
            for name in ("listed", "copy_rate")
        ]
        cells += [format_interval("joint", scores["joint"])]
        cells += [format_value("joint", other["joint"].value) for other in others]
        rows.append([REASONS.get(piece.slice, piece.slice), f"{piece.rows:,}", *cells])
    return rows


def print_scores(scored: Scored, title: str) -> None:
    """Print the table of the systems' scores, and the first one's differences to the others."""
    from rich.table import Table
    from rich.text import Text

    from sft.terminal import Terminal

    console = Terminal()
    labels = {name: label for name, label in name_metrics(scored.systems).items() if name in PRINTED}
    table = Table("", *labels.values(), title=Text(title))
    for label, scores in tabulate_systems(scored).items():
        table.add_row(Text(label), *[format_value(name, scores[name].value) for name in labels])
    console.print(table)
    for difference in describe_differences(scored):
        console.print(difference, highlight=False, markup=False)
