"""Anybody's outputs, scored without a model: a file of predictions against a file of references."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.data import SUFFIXES, Example, clean_text, count, decode_file, hash_examples, normalise, read_corpus, read_table
from sft.recipe import DataConfig, InputError
from sft.run_dir import hash_file, read_json_lines


def read_predictions(path: Path) -> list[str]:
    """Return a text for each line, trimmed; of a .jsonl file, its `prediction`. An empty line is an empty prediction.

    Raises:
        InputError: no such file, not UTF-8, or a line of a .jsonl file without a text under `prediction`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a text a line, or a .jsonl file with `prediction`.")
    if path.suffix != ".jsonl":
        return [line.strip() for line in decode_file(path).removesuffix("\n").split("\n")]
    predictions = []
    for number, line in enumerate(read_json_lines(path), start=1):
        text = line.get("prediction") if isinstance(line, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{path}:{number}: found no text under `prediction`. Expected one on each line.")
        predictions.append(text.strip())
    return predictions


def read_references(path: Path) -> list[Example]:
    """Return the rows of a corpus file as they stand, none left out; of a file that is no corpus, a reference for each line.

    A run's own test.jsonl or predictions.jsonl will do, too. Rows without a toxic sentence have "" there.

    Raises:
        InputError: no such file, not readable as what its name says, or a row without reference.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a corpus ({', '.join(SUFFIXES)}), or a reference a line.")
    if path.suffix not in SUFFIXES:
        rows = [("", [line]) for line in decode_file(path).removesuffix("\n").split("\n")]
    elif path.suffix == ".jsonl" and "references" in next(iter(read_json_lines(path)), {}):
        rows = [(line["toxic"], line["references"]) for line in read_json_lines(path)]
    else:
        rows = read_table(DataConfig(source=str(path))).rows
    examples = [Example(clean_text(toxic), tuple(filter(None, map(clean_text, texts)))) for toxic, texts in rows]
    empty = [number for number, example in enumerate(examples, start=1) if not example.references]
    if empty:
        raise InputError(f"{path}: row {empty[0]} has no reference, nor have {len(empty) - 1} others. Expected one at least.")
    return examples


def score_files(predictions: Path, references: Path, train: str | None) -> dict[str, Any]:
    """Return the scores of a file of predictions, laid out as in results.json.

    Args:
        predictions, references: see `read_predictions` and `read_references`; row belongs to row.
        train: a corpus to fit the toxicity classifier and the word list on, without what it shares with the references;
            without it there are no scores of toxicity.

    Raises:
        InputError: a file can't be read, or the files have not the same number of rows.
    """
    from eval.results import complete_outputs, describe_scores
    from eval.toxicity import fit_toxicity

    texts, examples = read_predictions(predictions), read_references(references)
    if len(texts) != len(examples):
        raise InputError(
            f"{predictions}: {count(len(texts), 'prediction')}, but {references} has {count(len(examples), 'row')}. "
            "Expected a prediction for each row, in the same order; an empty line stands for an empty one."
        )
    model = None
    if train:
        fresh = leave_out(read_corpus(DataConfig(source=train)).examples, examples)
        if not fresh:
            raise InputError(f"{train}: nothing is left of it without the rows of {references}. Expected another corpus.")
        model = fit_toxicity(fresh)
    sources = [example.toxic for example in examples]
    baselines = ("delete", "copy") if all(sources) else ()
    outputs = complete_outputs({"predictions": texts}, sources, model, baselines)
    scores, _ = describe_scores(examples, outputs, model)
    files = {path.name: hash_file(path) for path in (predictions, references)}
    return {"data": {"rows": len(examples), "sha256": hash_examples(examples), "files": files}, **scores}


def leave_out(examples: Sequence[Example], seen: Sequence[Example]) -> list[Example]:
    """Return the examples that share no sentence with `seen`."""
    texts = {normalise(text) for example in seen for text in (example.toxic, *example.references)}
    return [example for example in examples if texts.isdisjoint(map(normalise, (example.toxic, *example.references)))]


def print_file_scores(results: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
        return
    from eval.report import print_scores

    print_scores(results, f"{results['data']['rows']:,} rows")
