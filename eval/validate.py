"""Compare the metrics that need no references with people: python -m eval.validate FILE [--train SOURCE]"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.command import InputError, run_command
from sft.data import Example, normalise, read_corpus
from sft.files import decode_file, describe_absence
from sft.schema import DataConfig
from sft.storage import PROJECT

TEXTS = ("system", "toxic", "output")
JUDGEMENTS = ("toxicity_pairwise", "content", "fluency")
# What each metric is compared with; all of them are also compared with the product of the judgements.
AGAINST = {
    "toxicity": "toxicity_pairwise",
    "listed": "toxicity_pairwise",
    "chrf_source": "content",
    "joint": "joint",
}
SEED, RESAMPLES = 0, 300


@dataclass(frozen=True)
class Judged:
    """One system's output for a sentence, and people's JUDGEMENTS of it, each in 0 to 1, more is better."""

    system: str
    toxic: str
    output: str
    judgements: Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.validate",
        description="Print how well each metric ranks systems, and sentences, as people do: Spearman's "
        "rank correlation, "
        "with 95 % bootstrap intervals over the source sentences.",
    )
    parser.add_argument(
        "file", metavar="FILE", help=f"a .tsv file with the columns {', '.join((*TEXTS, *JUDGEMENTS))}"
    )
    parser.add_argument(
        "--train", metavar="SOURCE", default=str(PROJECT / "recipes" / "tiny-corpus.tsv"),
        help="the corpus that the classifier and the word list are fitted on (default: the embedded one)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    judged = read_judged(Path(arguments.file))
    corpus = read_corpus(DataConfig(source=arguments.train))
    seen = {normalise(row.toxic) for row in judged}
    train = [example for example in corpus.examples if normalise(example.toxic) not in seen]
    validation = validate(judged, train, len(corpus.examples) - len(train))
    if arguments.json:
        print(json.dumps(validation))
    else:
        print_validation(validation)


def read_judged(path: Path) -> list[Judged]:
    """Read a file of human judgements.

    Raises:
        InputError: it is not there, lacks a column, or holds a judgement that is no number in 0 to 1.
    """
    import csv
    import io

    if not path.is_file():
        raise InputError(f"{path}: {describe_absence(path)}. Expected a .tsv file of human judgements.")
    reader = csv.DictReader(io.StringIO(decode_file(path)), delimiter="\t")
    missing = [name for name in (*TEXTS, *JUDGEMENTS) if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}. Found: {', '.join(reader.fieldnames or ()) or 'none'}."
        )
    judged = []
    for row in reader:
        try:
            values = {name: float(row[name]) for name in JUDGEMENTS}
        except (TypeError, ValueError):
            values = {}
        if not values or not all(0 <= value <= 1 for value in values.values()):
            found = ", ".join(f"{name} {row[name]!r}" for name in JUDGEMENTS)
            raise InputError(f"{path}:{reader.line_num}: found {found}. Expected numbers from 0 to 1.")
        judged.append(Judged(row["system"] or "", row["toxic"] or "", row["output"] or "", values))
    if len({row.system for row in judged}) < 3:
        raise InputError(
            f"{path}: {len(judged)} rows. Expected those of three systems at least: two have no rank "
            "correlation."
        )
    return judged


def score_outputs(train: Sequence[Example], toxic: Sequence[str], outputs: Sequence[str]) -> dict[str, Any]:
    """Return each metric's sentence scores, shape (rows,), turned so that more is better."""
    from eval.metrics import compute_joint, compute_kept, compute_listed
    from eval.toxicity import fit_toxicity

    model = fit_toxicity(train)
    kept = compute_kept(outputs, toxic)
    scores = [*compute_joint(outputs, kept, model), compute_listed(outputs, model.lexicon), kept[0]]
    sentences = {score.name: score.sentences for score in scores}
    return {
        name: 1 - sentences[name] if name in ("toxicity", "listed") else sentences[name] for name in AGAINST
    }


def correlate(one: Any, other: Any, systems: Any, sources: Any) -> dict[str, tuple[float, float, float]]:
    """Return Spearman's rho with its 95 % interval, by system (of the systems' means) and by sentence.

    Args:
        one, other: a metric's and people's scores of each output, shape (rows,).
        systems, sources: the number of each row's system and source sentence, shape (rows,).
    """
    import numpy as np
    from scipy.stats import spearmanr

    def compute(weights: Any) -> tuple[float, float]:
        totals = np.bincount(systems, weights)
        means = [np.bincount(systems, weights * values) / totals for values in (one, other)]
        drawn = np.repeat(np.arange(len(one)), weights.astype(int))
        return float(spearmanr(*means).statistic), float(spearmanr(one[drawn], other[drawn]).statistic)

    generator, number = np.random.default_rng(SEED), sources.max() + 1
    draws = [
        np.bincount(generator.integers(number, size=number), minlength=number)[sources]
        for _ in range(RESAMPLES)
    ]
    values = np.array([compute(draw.astype(float)) for draw in draws])
    low, high = np.nanpercentile(values, [2.5, 97.5], axis=0)
    return {
        kind: (value, float(low[column]), float(high[column]))
        for column, (kind, value) in enumerate(
            zip(("system", "sentence"), compute(np.ones(len(one))), strict=True)
        )
    }


def validate(judged: Sequence[Judged], train: Sequence[Example], left_out: int) -> dict[str, Any]:
    """Return each metric's rank correlations with people, and the systems it puts below three free ones."""
    import numpy as np

    from sft.lexicon import delete_listed, fit_lexicon

    lexicon = frozenset(fit_lexicon(train))
    names, systems = np.unique([row.system for row in judged], return_inverse=True)
    texts, sources = np.unique([row.toxic for row in judged], return_inverse=True)
    free = {"copy": [*texts], "delete": [delete_listed(text, lexicon) for text in texts]}
    free["half"] = [" ".join(words[: len(words) // 2]) for words in map(str.split, free["delete"])]
    toxic = [row.toxic for row in judged] + [*texts] * len(free)
    outputs = [row.output for row in judged] + [text for rewrites in free.values() for text in rewrites]
    people = {name: np.array([row.judgements[name] for row in judged]) for name in JUDGEMENTS}
    people["joint"] = np.prod(list(people.values()), axis=0)
    metrics = []
    for metric, scores in score_outputs(train, toxic, outputs).items():
        scores, *parts = np.split(scores, [len(judged) + number * len(texts) for number in range(len(free))])
        means = np.bincount(systems, scores) / np.bincount(systems)
        below = {label: int(sum(means < part.mean())) for label, part in zip(free, parts, strict=True)}
        for judgement in dict.fromkeys((AGAINST[metric], "joint")):
            found = correlate(scores, people[judgement], systems, sources)
            rho = {
                kind: dict(zip(("value", "low", "high"), values, strict=True))
                for kind, values in found.items()
            }
            metrics.append({"metric": metric, "people": judgement, "spearman": rho, "systems_below": below})
    counts = {"systems": len(names), "sentences": len(texts), "outputs": len(judged)}
    return counts | {"fitted_on": len(train), "left_out": left_out, "metrics": metrics}


def print_validation(validation: Mapping[str, Any]) -> None:
    """Print a line for each metric and judgement."""
    from rich.table import Table

    from sft.terminal import Terminal

    console = Terminal()
    console.print(
        f"{validation['systems']} systems, {validation['sentences']} sentences, {validation['outputs']:,} "
        "outputs. "
        f"Fitted on {validation['fitted_on']:,} sentences; {validation['left_out']} left out, as they are "
        "judged here.",
        highlight=False,
    )
    table = Table(
        "metric",
        "people's",
        "by system",
        "by sentence",
        "below a copy",
        "below cut words",
        "below half of it",
    )
    for line in validation["metrics"]:
        rho = [line["spearman"][kind] for kind in ("system", "sentence")]
        cells = [f"{score['value']:+.2f} [{score['low']:+.2f}, {score['high']:+.2f}]" for score in rho]
        below = [f"{number} of {validation['systems']}" for number in line["systems_below"].values()]
        table.add_row(line["metric"], line["people"], *cells, *below)
    console.print(table)


if __name__ == "__main__":
    run_command(main)
