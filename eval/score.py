"""Score anybody's outputs: python -m eval.score --predictions FILE --references FILE [--train SOURCE]"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.command import InputError, count, run_command
from sft.data import Example, clean_text, normalise, read_corpus
from sft.files import SUFFIXES, decode_file, describe_absence, is_unicode, read_json_rows
from sft.schema import DataConfig
from sft.source import read_table
from sft.splits import Links, hash_examples
from sft.storage import hash_file

if TYPE_CHECKING:
    from eval.results import FileResults


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m eval.score",
        description="Print the scores of anybody's outputs with 95 % intervals, beside the input copied "
        "and people.",
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        type=Path,
        required=True,
        help="a text a line, or .jsonl with `prediction`",
    )
    parser.add_argument(
        "--references",
        metavar="FILE",
        type=Path,
        required=True,
        help="their rows, in order: a corpus, or a reference a line",
    )
    train_help = "a corpus to fit the toxicity classifier and the word list on"
    parser.add_argument("--train", metavar="SOURCE", help=train_help)
    parser.add_argument(
        "--json", action="store_true", help="print JSON, laid out as results.json, instead of a table"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    results = score_files(arguments.predictions, arguments.references, arguments.train)
    if arguments.json:
        print(json.dumps(results.to_json(), indent=2))
        return

    from eval.tables import print_scores

    print_scores(results, f"{results.data.rows:,} rows")
    if left_out := results.data.left_out_of_train:
        print(
            f"{count(left_out, 'sentence')} left out of the training of the classifier, as among these "
            "rows or near to one."
        )


def score_files(predictions: Path, references: Path, train: str | None) -> "FileResults":
    """Return the scores of a file of predictions.

    Args:
        predictions, references: see `read_predictions`, `read_references` and `align_rows`.
        train: a corpus to fit the toxicity classifier and the word list on, without what it shares with the
            references; without it there are no scores of toxicity.

    Raises:
        InputError: a file can't be read, or the files have not the same rows.
    """
    from eval.results import FileData, FileResults
    from eval.scoring import complete_outputs, score_outputs
    from eval.toxicity import fit_toxicity

    texts, examples = align_rows(predictions, references)
    # By name, or by path where both have one name.
    same = predictions.name == references.name
    files = {str(path) if same else path.name: hash_file(path) for path in (predictions, references)}
    model, left_out = None, None
    if train:
        corpus = read_corpus(DataConfig(source=train)).examples
        fresh = leave_out(corpus, examples)
        if not fresh:
            raise InputError(
                f"{train}: nothing is left of it without the rows of {references}. Expected another corpus."
            )
        model, left_out = fit_toxicity(fresh), len(corpus) - len(fresh)
    sources = [example.toxic for example in examples]
    baselines = ("delete", "copy") if all(sources) else ()
    outputs = complete_outputs({"predictions": texts}, sources, model, baselines)
    scores, _ = score_outputs(examples, outputs, model)
    data = FileData(len(examples), hash_examples(examples), files, left_out)
    return FileResults(data=data, **vars(scores))


def read_predictions(path: Path) -> list[str]:
    """Return a trimmed text for each line, also for an empty one; of a .jsonl file, its `prediction`.

    Raises:
        InputError: no such file, not UTF-8, or a line of a .jsonl file without a text under `prediction`.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: {describe_absence(path)}. Expected a text a line, or a .jsonl file with `prediction`."
        )
    if path.suffix != ".jsonl":
        return read_lines(path)
    predictions = []
    for number, line in read_json_rows(path):
        text = line.get("prediction") if isinstance(line, dict) else None
        if not isinstance(text, str) or not is_unicode(text):
            raise InputError(f"{path}:{number}: found no text under `prediction`. Expected one on each line.")
        predictions.append(text.strip())
    return predictions


def read_lines(path: Path) -> list[str]:
    """Return the trimmed lines; a system may have answered nothing at all, so they may all be empty."""
    return [line.strip() for line in decode_file(path, may_be_blank=True).removesuffix("\n").split("\n")]


def read_references(path: Path) -> list[Example]:
    """Return the rows of a corpus file, none left out; of another file, a reference for each line.

    A run's own test.jsonl or predictions.jsonl will do, too. Without toxic sentences, each row has "" there.

    Raises:
        InputError: no such file, not readable as what its name says, a row without reference, or some without
            toxic sentence.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: {describe_absence(path)}. Expected a corpus ({', '.join(SUFFIXES)}), or a reference "
            "a line."
        )
    if path.suffix not in SUFFIXES:
        rows = [("", [line]) for line in read_lines(path)]
    elif path.suffix == ".jsonl" and any(
        isinstance(line, dict) and "references" in line for _, line in read_json_rows(path)
    ):
        rows = [read_row(path, number, line) for number, line in read_json_rows(path)]
    else:
        rows = read_table(DataConfig(source=str(path))).rows
    examples = [
        Example(clean_text(toxic), tuple(filter(None, map(clean_text, texts)))) for toxic, texts in rows
    ]
    empty = [number for number, example in enumerate(examples, start=1) if not example.references]
    if empty:
        raise InputError(
            f"{path}: row {empty[0]} has no reference, nor have {len(empty) - 1} others. Expected one at "
            "least."
        )
    bare = [number for number, example in enumerate(examples, start=1) if not example.toxic]
    if 0 < len(bare) < len(examples):
        raise InputError(
            f"{path}: row {bare[0]} has no toxic sentence, and others have. Expected one in each row, or "
            "in none."
        )
    return examples


def read_row(path: Path, number: int, line: Any) -> tuple[str, list[str]]:
    """Return the toxic sentence and the references of a .jsonl line; one reference needs no list."""
    toxic, references = (
        (line.get("toxic") or "", line.get("references")) if isinstance(line, dict) else ("", None)
    )
    texts = [references] if isinstance(references, str) else references
    if not isinstance(texts, list) or not all(
        isinstance(text, str) and is_unicode(text) for text in (toxic, *texts)
    ):
        raise InputError(
            f'{path}:{number}: expected an object such as {{"toxic": "…", "references": ["…", "…"]}}.'
        )
    return toxic, texts


def read_keys(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the number, `id` and `toxic` of each line of a .jsonl file; nothing of another file."""
    rows = read_json_rows(path) if path.suffix == ".jsonl" else ()
    return [
        (number, {name: line[name] for name in ("id", "toxic") if line.get(name)}) for number, line in rows
    ]


def align_rows(predictions: Path, references: Path) -> tuple[list[str], list[Example]]:
    """Return a prediction for each example. Rows of one toxic sentence are one example: it counts once.

    Row belongs to row; or, where toxic sentences have several rows, a prediction to each sentence, by its
    first one.

    Raises:
        InputError: a file can't be read, or they have not the same rows.
    """
    texts, examples = read_predictions(predictions), read_references(references)
    groups = group_rows(examples)
    if len(texts) not in (len(examples), len(groups)):
        raise InputError(
            f"{predictions}: {count(len(texts), 'prediction')}, but {references} has "
            f"{count(len(examples), 'row')}. "
            "Expected a prediction for each row, in the same order; an empty line stands for an empty one."
        )
    keys = [{"id": example.id, "toxic": example.toxic} if example.toxic else {} for example in examples]
    for row, (_, own) in zip(keys, read_keys(references), strict=False):
        row |= own
    if len(texts) < len(examples):
        check_rows(predictions, references, [keys[first] for first, *_ in groups])
    else:
        check_rows(predictions, references, keys)
        texts = [choose_text(predictions, texts, group) for group in groups]
    return texts, [merge_rows([examples[index] for index in group]) for group in groups]


def group_rows(examples: Sequence[Example]) -> list[list[int]]:
    """Return the indices of the rows of each toxic sentence, in order; a row without one stands alone."""
    groups: dict[Any, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.toxic or index, []).append(index)
    return list(groups.values())


def merge_rows(examples: Sequence[Example]) -> Example:
    """Return examples of one toxic sentence as one."""
    return Example(
        examples[0].toxic, tuple(dict.fromkeys(text for example in examples for text in example.references))
    )


def choose_text(path: Path, texts: Sequence[str], row: Sequence[int]) -> str:
    """Return the prediction of a toxic sentence from those of its rows.

    Raises:
        InputError: they differ.
    """
    other = next((index for index in row if texts[index] != texts[row[0]]), None)
    if other is not None:
        raise InputError(
            f"{path}: rows {row[0] + 1} and {other + 1} are of one toxic sentence, and their predictions "
            "differ. "
            "Expected one prediction a sentence: the same in each of its rows, or a line for each sentence."
        )
    return texts[row[0]]


def check_rows(predictions: Path, references: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Compare the sentence, or else the id, that each line of the predictions has with that of its row.

    Raises:
        InputError: a line is of another row.
    """
    for (number, line), row in zip(read_keys(predictions), rows, strict=False):
        name = next((name for name in ("toxic", "id") if name in line and name in row), None)
        if name and clean_text(str(line[name])) != clean_text(str(row[name])):
            raise InputError(
                f"{predictions}:{number}: found `{name}` {line[name]!r}, but the row of {references} has "
                f"{row[name]!r}. "
                "Expected the predictions of these rows, in the same order."
            )


def leave_out(examples: Sequence[Example], seen: Sequence[Example]) -> list[Example]:
    """Return the examples that share no sentence with `seen`, nor are linked with one as if of one split."""
    texts = {normalise(text) for example in seen for text in (example.toxic, *example.references)}
    links = Links(seen)
    return [
        example
        for example in examples
        if texts.isdisjoint(map(normalise, (example.toxic, *example.references))) and not links.hold(example)
    ]


if __name__ == "__main__":
    run_command(main)
