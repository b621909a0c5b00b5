"""The rows that an evaluation scores: a split of the run, or a file of the user's without what the run has seen."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.command import Refusal, RunError, count
from sft.data import Corpus, Example, clean_text, read_corpus
from sft.files import DataError, check_delimited, decode_file, describe_absence, open_text
from sft.run_dir import Run
from sft.schema import DataConfig
from sft.splits import Links, find_leaks, hash_examples
from sft.storage import hash_file

UNREWRITTEN_COLUMNS = ("INPUT:toxic_comment", "OUTPUT:reasons")  # of ParaDetox's file, as its annotation tool wrote it
MOST_UNREWRITTEN = 1_000
SHOTS = 4


@dataclass(frozen=True)
class EvalRows:
    """The examples, what results.json says of them, and the folder that the evaluation is written to."""

    examples: list[Example]
    description: dict[str, Any]
    folder: Path


def check_leaks(run: Run) -> None:
    """Hold the splits against one another, whatever the manifest says of them.

    Raises:
        Refusal: a sentence stands in two of them.
    """
    if leaks := find_leaks(run.splits):
        raise Refusal(
            f"{run.manifest_path.parent}: the splits leak: {leaks[0]}, and {len(leaks) - 1} more. "
            f"Expected those that sft/run.py writes. Train again: accelerate launch sft/run.py {run.recipe_path} --overwrite"
        )


def choose_rows(run: Run, source: str | None, split: str, limit: int | None) -> EvalRows:
    """Return the rows to evaluate: all of a split, or of a file; or the first `limit` of them.

    Of a file, sentences that the run trained on or chose its settings by are left out, and those near to them, and counted.

    Raises:
        InputError: see `Run.splits`, `check_leaks`, `read_source` and `find_seen`; or no rows are left.
    """
    check_leaks(run)
    manifest = run.manifest
    description: dict[str, Any]
    if source is None:
        examples = run.splits[split]
        if not examples:
            raise RunError(f"{run.root}: its {split} split is empty.")
        description = {key: manifest[key] for key in ("source", "revision")}
        description |= {"files": manifest["sha256"], "split": split, "left_out_as_seen": 0}
        folder = run.eval if split == "test" else run.eval / split
    else:
        seen = find_seen(run, "--source")
        corpus = read_source(run, source)
        examples = [example for example in corpus.examples if not seen.hold(example)]
        left_out = len(corpus.examples) - len(examples)
        if not examples:
            raise DataError(
                f"{source}: the run trained on all of it ({count(left_out, 'sentence')}), so a score would mean nothing. "
                "Without --source, the run's own test split is evaluated."
            )
        description = {"source": corpus.source.name, "revision": corpus.source.revision, "files": corpus.source.files}
        description |= {"split": None, "left_out_as_seen": left_out}
        # By content: two files of one name, or one that changed, do not overwrite each other's scores.
        folder = run.eval / "sources" / f"{Path(source).resolve().stem}-{hash_examples(examples)[:8]}"
    whole = len(examples)
    if limit is not None and limit < whole:
        examples = examples[:limit]
        name = f"first-{limit}"
        folder = folder.with_name(f"{folder.name}-{name}") if source else run.eval / f"{split}-{name}"
    description |= {"rows": len(examples), "rows_of": whole, "sha256": hash_examples(examples)}
    taught = manifest["targets"]
    if not taught or taught["teacher"]["has_seen"] != "unknown":  # else nobody can say what the adapter has not seen
        description["splits"] = {name: part["sha256"] for name, part in manifest["splits"].items()}
    return EvalRows(examples, description, folder)


def choose_shots(examples: Sequence[Example]) -> list[Example]:
    """Return the examples that a few-shot prompt begins with: chosen by their id, a hash."""
    return sorted(examples, key=lambda example: example.id)[:SHOTS]


def read_source(run: Run, source: str) -> Corpus:
    """Read a file by the column names of the run's recipe or, where it has not these, by ParaDetox's layouts."""
    data = run.recipe.data
    try:
        return read_corpus(dataclasses.replace(data, source=source, revision=None))
    except DataError as error:
        if error.key not in ("data.toxic", "data.neutral"):
            raise
        return read_corpus(DataConfig(source=source))


def find_seen(run: Run, flag: str) -> Links:
    """Return the links of all that the run trained on or chose its settings by: they hold what its splits keep together.

    Raises:
        RunError: it was trained on a stream, which nobody has kept.
    """
    if run.manifest.get("streaming"):
        raise RunError(
            f"{run.root}: its training rows were streamed, and not kept, so what it has seen of another file can't be told. "
            f"Without {flag}, the run's own test split is evaluated."
        )
    return Links([example for name in ("train", "validation") for example in run.splits[name]])


@dataclass(frozen=True)
class Unrewritten:
    """Sentences that annotators could not rewrite: a line of unrewritten.jsonl each, and what results.json says of them."""

    lines: list[dict[str, Any]]  # id, toxic, reasons
    description: dict[str, Any]


def choose_unrewritten(run: Run, path: Path) -> Unrewritten:
    """Return the sentences of a file without rewrites, but what `find_seen` holds; of many, those of the smallest hashes.

    Raises:
        InputError: see `read_unrewritten` and `find_seen`; or the run has seen all of them.
    """
    seen, sentences = find_seen(run, "--unrewritten"), read_unrewritten(path)
    fresh = {toxic: reasons for toxic, reasons in sentences.items() if not seen.hold(Example(toxic, ()))}
    if not fresh:
        raise DataError(f"{path}: the run trained on all of it ({count(len(sentences), 'sentence')}). Expected other sentences.")
    chosen = sorted((Example(toxic, ()) for toxic in fresh), key=lambda example: example.id)[:MOST_UNREWRITTEN]
    lines = [{"id": example.id, "toxic": example.toxic, "reasons": fresh[example.toxic]} for example in chosen]
    description = {"source": path.name, "file": hash_file(path), "rows": len(lines), "rows_of": len(fresh)}
    description |= {"sha256": hash_examples(chosen), "left_out_as_seen": len(sentences) - len(fresh)}
    return Unrewritten(lines, description)


def read_unrewritten(path: Path) -> dict[str, list[str]]:
    """Return the cleaned sentences of ParaDetox's file of those not rewritten, with the annotators' reasons; or a text a line.

    Raises:
        DataError: no such file, not UTF-8, without sentences, or a .tsv file of other columns or with broken rows.
    """
    if not path.is_file():
        expected = "sentences without rewrites: a text a line, or ParaDetox's .tsv file"
        raise DataError(f"{path}: {describe_absence(path)}. Expected {expected}.")
    sentences: dict[str, list[str]] = {}
    if path.suffix != ".tsv":
        sentences = {clean_text(line): [] for line in decode_file(path).splitlines()}
    else:
        header = check_delimited(path)
        missing = [name for name in UNREWRITTEN_COLUMNS if name not in header]
        if missing:
            expected = " and ".join(UNREWRITTEN_COLUMNS)
            raise DataError(
                f"{path}: no column {missing[0]!r}; it has {', '.join(header)}. Expected {expected}, or a text a line."
            )
        with open_text(path) as stream:
            for number, row in enumerate(csv.DictReader(stream, delimiter="\t"), start=1):
                text, given = (row[name] or "" for name in UNREWRITTEN_COLUMNS)
                try:  # both cells are JSON; a text without quotes stands for itself
                    text = json.loads(text) if text.startswith('"') else text
                    reasons = sorted(reason for reason, holds in json.loads(given or "{}").items() if holds)
                except (ValueError, AttributeError):
                    raise DataError(
                        f"{path}: row {number}: found {text[:40]!r} and {given[:40]!r}, expected a JSON text and a JSON object."
                    ) from None
                sentences[clean_text(text)] = reasons
    sentences.pop("", None)
    if not sentences:
        raise DataError(f"{path}: no sentence in it. Expected one a line at least.")
    return sentences
