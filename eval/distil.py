"""Rewrite a run's training sentences with a teacher: accelerate launch eval/distil.py TEACHER [--run RUN_DIR]

What a student then learns with `data.targets`: sequence-level knowledge distillation (Kim and Rush 2016).
"""

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.results import RESULTS, read_results
from eval.rows import read_splits
from sft.command import InputError, Refusal, RunError, count, parse_count, run_command
from sft.data import Example
from sft.lexicon import find_listed
from sft.prompt import TEMPLATE
from sft.run_dir import Run, open_run, share_run
from sft.splits import Links
from sft.storage import name_path
from sft.targets import holds_targets, is_line, write_targets

if TYPE_CHECKING:
    from eval.adapter import Adapter
    from eval.toxicity import ToxicityModel

BEAMS = 8
# Chosen on ParaDetox's validation split (tests/benchmarks/RESULTS.md). One nat a token is a lot: a teacher's
# second choice is mostly 0.05 to 0.2 below its first.
HARMLESS = 0.2  # weight of the log of (1 - toxicity)
LISTED = 0.5  # nats, for each word of the word list
RULE = f"mean log-likelihood of a token + {HARMLESS} log(1 - toxicity) - {LISTED} a listed word"
LEAST = 1e-3  # of 1 - toxicity, so that its logarithm is finite


@dataclass(frozen=True)
class Candidate:
    """A rewrite of a sentence, by the teacher or by a person, with what it is chosen by."""

    text: str
    likelihood: float  # by the teacher: mean of the tokens and the end, in nats
    toxicity: float  # 0 to 1, by the classifier fitted on the run's training split
    listed: int  # words of the list fitted on it

    def score(self) -> float:
        harmless = math.log(max(LEAST, 1 - self.toxicity))
        return self.likelihood + HARMLESS * harmless - LISTED * self.listed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="accelerate launch eval/distil.py",
        description="Rewrite the training sentences of a run with a teacher, "
        "and write the targets that another training learns "
        "with data.targets. Of each sentence's rewrites, the beams' and people's, the best is taken, by: "
        + RULE
        + ".",
    )
    parser.add_argument(
        "teacher", metavar="TEACHER", help="a finished run, or a published adapter's Hub id, of any base"
    )
    parser.add_argument(
        "--run", metavar="RUN_DIR", help="the run whose training sentences are rewritten (default: TEACHER)"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: RUN_DIR/targets.jsonl")
    help_beams = f"beams of the search, and so rewrites to choose from (default: {BEAMS})"
    parser.add_argument("--num_beams", metavar="N", type=parse_count, default=BEAMS, help=help_beams)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()
    if arguments.num_beams < 2:
        parser.error("--num_beams: found 1, expected 2 or more: with one there is nothing to choose from")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.run is None and not Path(arguments.teacher).is_dir():
        raise InputError(
            f"{arguments.teacher} is no run here. "
            "Name the run whose training sentences it rewrites: --run RUN_DIR."
        )
    with share_run(arguments.run or arguments.teacher) as run:
        distil(run, arguments)


def distil(run: Run, arguments: argparse.Namespace) -> None:
    """Rewrite the run's training sentences with the teacher, and write the targets chosen of the rewrites."""
    output = arguments.output or run.root / "targets.jsonl"
    check_output(output)
    examples = read_splits(run)["train"]
    if run.manifest["streaming"]:
        raise RunError(
            f"{run.root}: its training rows were streamed, and not kept. "
            "Expected a run without data.streaming."
        )

    from eval.adapter import find_adapter
    from eval.generate import load_rewriter, name_journal
    from eval.toxicity import fit_toxicity
    from sft.machine import join_processes

    adapter = find_adapter(arguments.teacher)
    seen = check_teacher(arguments.teacher, adapter, run)
    state = join_processes()
    journal = output.with_name(f".{output.name}.unfinished")
    name = name_journal(adapter, True, arguments.num_beams, run.split_hashes["train"])
    rewriter = load_rewriter(adapter)
    texts = [example.toxic for example in examples]
    beams = rewriter.propose(texts, arguments.num_beams, "rewriting", journal / f"{name}-beams")
    offered = [offer_texts(example, found) for example, found in zip(examples, beams, strict=True)]
    pairs = [
        (example.toxic, text) for example, texts in zip(examples, offered, strict=True) for text in texts
    ]
    likelihoods = rewriter.measure_likelihood(pairs, "weighing", journal / f"{name}-likelihoods")
    if state.is_main_process:
        model = fit_toxicity(examples)
        rows = choose_targets(examples, offered, likelihoods, model)
        header = describe_targets(arguments.teacher, adapter, run, seen, arguments.num_beams, model)
        header["from_people"] = sum(row["by"] == "people" for row in rows)
        write_targets(output, header, rows)
        shutil.rmtree(journal, ignore_errors=True)
        print_outcome(output, header, rows, arguments.json)
    state.wait_for_everyone()
    state.destroy_process_group()


def check_output(path: Path) -> None:
    """Raise where the targets file would replace something else."""
    if path.is_dir() or (path.exists() and not holds_targets(path)):
        found = "a folder" if path.is_dir() else "a file that holds no targets"
        raise InputError(
            f"{path}: {found}. Name another with --output; only an older targets file is replaced."
        )


def check_teacher(name: str, adapter: "Adapter", run: Run) -> str:
    """Return what the teacher has seen of the run's validation and test sentences: nothing, or unknown.

    A run shows what it was trained on. A published adapter's results.json names its splits by their hashes:
    the same ones, or nobody knows.

    Raises:
        Refusal: it was trained on some of them, or on sentences near to them.
    """
    if not Path(name).is_dir():
        told = read_results(adapter.folder / RESULTS).data.splits
        return "nothing held out" if told == run.split_hashes else "unknown"
    teacher = open_run(name)
    manifest = teacher.manifest
    if manifest["streaming"]:
        return "unknown"
    seen = Links(teacher.splits["train"])
    for split in ("validation", "test"):
        known = [example.toxic for example in run.splits[split] if seen.hold(example)]
        if known:
            raise Refusal(
                f"{name}: it was trained on {count(len(known), 'sentence')} of the {split} split of "
                f"{run.root}, or near copies, "
                f"such as {known[0]!r}: its student's scores would mean nothing. "
                "Expected one of the same data.seed and shares."
            )
    taught = manifest["targets"]
    return taught["teacher"]["has_seen"] if taught else "nothing held out"


def offer_texts(example: Example, beams: Sequence[str]) -> list[str]:
    """Return what a target is chosen from: the rewrites by the teacher and people, without the sentence."""
    return [
        text
        for text in dict.fromkeys((*beams, *example.references))
        if text != example.toxic and is_line(text)
    ]


def choose_targets(
    examples: Sequence[Example],
    offered: Sequence[Sequence[str]],
    likelihoods: Sequence[float],
    model: "ToxicityModel",
) -> list[dict[str, Any]]:
    """Return a line of the targets file for each example that has a rewrite to learn."""
    flat = [text for texts in offered for text in texts]
    listed = [len(find_listed(text, model.lexicon)) for text in flat]
    values = iter(zip(flat, likelihoods, model.predict(flat), listed, strict=True))
    rows = []
    for example, texts in zip(examples, offered, strict=True):
        candidates = [Candidate(*next(values)) for _ in texts]
        if candidates:
            best = max(candidates, key=Candidate.score)  # the first of equals
            toxicity = round(best.toxicity, 4)
            scores = {"likelihood": best.likelihood, "toxicity": toxicity, "listed": best.listed}
            by = "people" if best.text in example.references else "teacher"
            rows.append({"id": example.id, "target": best.text, "by": by, "scores": scores})
    return rows


def describe_targets(
    name: str, adapter: "Adapter", run: Run, seen: str, beams: int, model: "ToxicityModel"
) -> dict[str, Any]:
    """Return the header: who has taught, how, and which run's sentences."""
    manifest = run.manifest
    called = name_path(Path(name)) if Path(name).is_dir() else f"{name}@{adapter.folder.name}"
    teacher = {
        "name": called,
        "adapter": adapter.hashes,
        "base": adapter.base.describe(),
        "quantization": adapter.quantization,
        "num_beams": beams,
        "max_new_tokens": adapter.settings.max_new_tokens,
        "has_seen": seen,
    }
    return {
        "teacher": teacher,
        "rule": f"{RULE}, of {beams} beams and people's; {model.signature}",
        "source": {key: manifest[key] for key in ("source", "revision", "sha256")},
        "splits": run.split_hashes,
        "prompt": TEMPLATE,
    }


def print_outcome(path: Path, header: dict[str, Any], rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        outcome = {"targets": str(path), "sentences": len(rows), "from_people": header["from_people"]}
        print(json.dumps(outcome | {"teacher": header["teacher"]}))
        return
    print(
        f"targets: {path}: {count(len(rows), 'sentence')}, "
        f"of which {header['from_people']:,} have a human rewrite as target"
    )
    if header["teacher"]["has_seen"] == "unknown":
        print(
            "whether the teacher was trained on validation or test sentences of this run is unknown; "
            "the student's card says so"
        )
    print(f"next: accelerate launch sft/run.py RECIPE --data.targets {path}")


if __name__ == "__main__":
    run_command(main)
