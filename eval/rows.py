"""The rows that an evaluation scores: a split of the run, or a file without what the run has seen."""

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import Data
from sft.command import Refusal, RunError, count
from sft.data import Corpus, Example, clean_text, read_corpus
from sft.files import DataError, check_delimited, decode_file, describe_absence, open_text
from sft.run_dir import Run
from sft.schema import DataConfig
from sft.source import Source
from sft.splits import Links, find_leaks, hash_examples
from sft.storage import hash_file

UNREWRITTEN_COLUMNS = (
    "INPUT:toxic_comment",
    "OUTPUT:reasons",
)  # of ParaDetox's file, as its annotation tool wrote it
MOST_UNREWRITTEN = 1_000
SHOTS = 4

Splits = Mapping[str, Sequence[Example]]  # train, validation, test


@dataclass(frozen=True)
class EvalRows:
    """The examples, what results.json says of them, and the folder that the evaluation is written to."""

    examples: list[Example]
    data: Data
    folder: Path


def read_splits(run: Run) -> dict[str, list[Example]]:
    """Return all splits of the run, after comparing them with each other, whatever the manifest says.

    Raises:
        Refusal: see `Run.splits`; or a sentence is in two of them.
    """
    if leaks := find_leaks(run.splits):
        raise Refusal(
            f"{run.manifest_path.parent}: the splits leak: {leaks[0]}, and {len(leaks) - 1} more. "
            "Expected those that sft/run.py writes. Train again: accelerate launch sft/run.py "
            f"{run.recipe_path} --overwrite"
        )
    return run.splits


def choose_shots(examples: Sequence[Example]) -> list[Example]:
    """Return the examples that a few-shot prompt begins with: chosen by their id, a hash."""
    return sorted(examples, key=lambda example: example.id)[:SHOTS]


def choose_rows(run: Run, splits: Splits, source: str | None, split: str, limit: int | None) -> EvalRows:
    """Return the rows to evaluate: all of a split, or of a file; or the first `limit` of them.

    Of a file, sentences that the run trained on or chose its settings by, and those near to them, are left
    out and counted.

    Raises:
        InputError: see `read_source` and `find_seen`; or no rows are left.
    """
    manifest = run.manifest
    if source is None:
        examples, left_out = list(splits[split]), 0
        if not examples:
            raise RunError(f"{run.root}: its {split} split is empty.")
        origin = Source(manifest["source"], manifest["revision"], manifest["sha256"])
        folder = run.eval if split == "test" else run.eval / split
    else:
        seen, corpus = find_seen(run, splits, "--source"), read_source(run, source)
        origin, examples = corpus.source, [example for example in corpus.examples if not seen.hold(example)]
        left_out = len(corpus.examples) - len(examples)
        if not examples:
            raise DataError(
                f"{source}: the run trained on all of it ({count(left_out, 'sentence')}), so a score would "
                "mean "
                "nothing. Without --source, the run's own test split is evaluated."
            )
        # By content: two files of one name, or one that changed, do not overwrite each other's scores.
        folder = run.eval / "sources" / f"{Path(source).resolve().stem}-{hash_examples(examples)[:8]}"
    whole = len(examples)
    if limit is not None and limit < whole:
        examples = examples[:limit]
        name = f"first-{limit}"
        folder = folder.with_name(f"{folder.name}-{name}") if source else run.eval / f"{split}-{name}"
    data = Data(
        source=origin.name,
        revision=origin.revision,
        files=origin.files,
        split=split if source is None else None,
        left_out_as_seen=left_out,
        rows=len(examples),
        rows_of=whole,
        sha256=hash_examples(examples),
        splits=list_splits(run),
    )
    return EvalRows(examples, data, folder)


def list_splits(run: Run) -> dict[str, str] | None:
    """Return the SHA-256 of each split; None where nobody can say what the adapter's teacher has seen."""
    taught = run.manifest["targets"]
    return None if taught and taught["teacher"]["has_seen"] == "unknown" else run.split_hashes


def read_source(run: Run, source: str) -> Corpus:
    """Read a file by the column names of the run's recipe, or else by ParaDetox's layouts."""
    data = run.recipe.data
    try:
        return read_corpus(dataclasses.replace(data, source=source, revision=None))
    except DataError as error:
        if error.key not in ("data.toxic", "data.neutral"):
            raise
        return read_corpus(DataConfig(source=source, quoting=data.quoting))


def find_seen(run: Run, splits: Splits, flag: str) -> Links:
    """Return the links of all that the run trained on or chose its settings by.

    Raises:
        RunError: it was trained on a stream, which nobody has kept.
    """
    if run.manifest.get("streaming"):
        raise RunError(
            f"{run.root}: its training rows were streamed, and not kept, so what it has seen of another "
            "file can't be "
            f"told. Without {flag}, the run's own test split is evaluated."
        )
    return Links([example for name in ("train", "validation") for example in splits[name]])


@dataclass(frozen=True)
class UnrewrittenRows:
    """Sentences that annotators could not rewrite: lines of unrewritten.jsonl, and a part of results.json."""

    lines: list[dict[str, Any]]  # id, toxic, reasons
    description: dict[str, Any]  # of `eval.results.Unrewritten`, all but the scores


def choose_unrewritten(run: Run, splits: Splits, path: Path) -> UnrewrittenRows:
    """Return the sentences of a file that `find_seen` does not hold; of many, those of the smallest hashes.

    Raises:
        InputError: see `read_unrewritten` and `find_seen`; or the run has seen all of them.
    """
    seen, sentences = find_seen(run, splits, "--unrewritten"), read_unrewritten(path)
    fresh = {toxic: reasons for toxic, reasons in sentences.items() if not seen.hold(Example(toxic, ()))}
    if not fresh:
        known = count(len(sentences), "sentence")
        raise DataError(f"{path}: the run trained on all of it ({known}). Expected other sentences.")
    chosen = sorted((Example(toxic, ()) for toxic in fresh), key=lambda example: example.id)[
        :MOST_UNREWRITTEN
    ]
    lines = [
        {"id": example.id, "toxic": example.toxic, "reasons": fresh[example.toxic]} for example in chosen
    ]
    description = {"source": path.name, "file": hash_file(path), "rows": len(lines), "rows_of": len(fresh)}
    description |= {"sha256": hash_examples(chosen), "left_out_as_seen": len(sentences) - len(fresh)}
    return UnrewrittenRows(lines, description)


def read_unrewritten(path: Path) -> dict[str, list[str]]:
    """Return the cleaned sentences of ParaDetox's .tsv file, with the annotators' reasons, or a text a line.

    Raises:
        DataError: no such file, not UTF-8, without sentences, or a .tsv file of other columns or with broken
            rows.
    """
    if not path.is_file():
        expected = "sentences without rewrites: a text a line, or ParaDetox's .tsv file"
        raise DataError(f"{path}: {describe_absence(path)}. Expected {expected}.")
    if path.suffix == ".tsv":
        sentences = read_annotations(path)
    else:
        sentences = {clean_text(line): [] for line in decode_file(path).split("\n")}
    sentences.pop("", None)
    if not sentences:
        raise DataError(f"{path}: no sentence in it. Expected one a line at least.")
    return sentences


def read_annotations(path: Path) -> dict[str, list[str]]:
    """Return the sentences, with their reasons, of a file as ParaDetox's annotation tool wrote it."""
    header = check_delimited(path)
    missing = [name for name in UNREWRITTEN_COLUMNS if name not in header]
    if missing:
        expected = " and ".join(UNREWRITTEN_COLUMNS)
        raise DataError(
            f"{path}: no column {missing[0]!r}; it has {', '.join(header)}. Expected {expected}, or a text "
            "a line."
        )
    sentences = {}
    with open_text(path) as stream:
        for number, row in enumerate(csv.DictReader(stream, delimiter="\t"), start=1):
            text, given = (row[name] or "" for name in UNREWRITTEN_COLUMNS)
            try:  # both cells are JSON; a text without quotes stands for itself
                text = json.loads(text) if text.startswith('"') else text
                reasons = sorted(reason for reason, holds in json.loads(given or "{}").items() if holds)
            except (ValueError, AttributeError):
                raise DataError(
                    f"{path}: row {number}: found {text[:40]!r} and {given[:40]!r}, expected a JSON text "
                    "and a JSON object."
                ) from None
            sentences[clean_text(text)] = reasons
    return sentences
