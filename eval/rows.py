"""The rows that an evaluation scores: a split of the run, or a file of the user's without what the run has seen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.data import DataError, Example, count, hash_examples, normalise, read_corpus
from sft.recipe import DataConfig
from sft.run_dir import Refusal, RunDir, RunError, read_json, read_json_lines


@dataclass(frozen=True)
class EvalRows:
    """The examples, what results.json says of them, and the folder that the evaluation is written to."""

    examples: list[Example]
    description: dict[str, Any]
    folder: Path


def read_split(run: RunDir, split: str) -> list[Example]:
    """Return a split of the run, held against the hash in its manifest.

    Raises:
        Refusal: the file was changed after the run wrote it.
    """
    path = run.split(split)
    examples = [Example(line["toxic"], tuple(line["references"])) for line in read_json_lines(path)]
    if hash_examples(examples) != read_json(run.manifest)["splits"][split]["sha256"]:
        raise Refusal(f"{path}: not the {split} split that the run was made with: its hash is not the manifest's.")
    return examples


def choose_rows(run: RunDir, source: str | None, split: str, limit: int | None) -> EvalRows:
    """Return the rows to evaluate: all of a split, or of a file; or the first `limit` of them.

    Of a file, sentences that the run trained on or chose its settings by are left out, and counted.
    """
    manifest = read_json(run.manifest)
    description: dict[str, Any]
    if source is None:
        examples = read_split(run, split)
        if not examples:
            raise RunError(f"{run.root}: its {split} split is empty.")
        description = {key: manifest[key] for key in ("source", "revision")}
        description |= {"files": manifest["sha256"], "split": split, "left_out_as_seen": 0}
        folder = run.eval if split == "test" else run.eval / split
    elif manifest.get("streaming"):
        raise RunError(
            f"{run.root}: its training rows were streamed, and not kept, so what it has seen of {source} can't be told. "
            "Without --source, the run's own test split is evaluated."
        )
    else:
        corpus = read_corpus(DataConfig(source=source))
        splits = ("train", "validation")
        seen = {normalise(text) for name in splits for e in read_split(run, name) for text in (e.toxic, *e.references)}
        examples = [example for example in corpus.examples if normalise(example.toxic) not in seen]
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
    return EvalRows(examples, description, folder)
