"""Metrics against the command lines of sacrebleu and rouge_score, to the last printed digit, and against pinned values."""

import csv
from pathlib import Path

import pytest
from conftest import PARADETOX, needs_paradetox, run_python

from eval.metrics import compute_scores
from sft.data import Example, read_corpus
from sft.recipe import PROJECT, DataConfig


def corrupt(examples: list[Example]) -> list[str]:
    """Return "predictions" of every kind: copies, human rewrites, halves, empty ones, and some with odd characters."""
    predictions = []
    for number, example in enumerate(examples):
        words = example.toxic.split()
        kinds = [
            example.toxic,
            example.references[-1],
            " ".join(words[: len(words) // 2]),
            "",
            example.toxic.upper() + " ! é 「x」",
        ]
        predictions.append(kinds[number % len(kinds)])
    return predictions


def check_against_command_lines(examples: list[Example], folder: Path) -> None:
    predictions, references = corrupt(examples), [example.references for example in examples]
    scores = compute_scores(predictions, references, ())
    width = max(map(len, references))
    (folder / "predictions").write_text("".join(text + "\n" for text in predictions))
    names = []
    for number in range(width):
        names.append(folder / f"references{number}")
        # The command line takes an empty line for an empty reference; the first reference again changes nothing.
        lines = [refs[number] if number < len(refs) else refs[0] for refs in references]
        names[-1].write_text("".join(line + "\n" for line in lines))

    for metric in ("bleu", "chrf"):
        command = ["-m", "sacrebleu", *names, "-i", folder / "predictions", "-m", metric, "-w", 10]
        done = run_python(*command, "-b")
        assert done.returncode == 0, done.stderr
        assert f"{scores[metric].value:.10f}" == done.stdout.strip()
        # The command line counts the reference files, the metric says that their number varies.
        text = run_python(*command, "-f", "text").stdout
        signature = text.split("|", 2)[2].partition(" = ")[0]
        assert scores[metric].signature.partition("|")[2] == signature

    # rouge_score's command line knows one reference: the best of its F-measures is the multi-reference score.
    best: dict[str, list[float]] = {}
    for number, name in enumerate(names):
        done = run_python(
            "-m", "rouge_score.rouge", f"--target_filepattern={name}", f"--prediction_filepattern={folder / 'predictions'}",
            f"--output_filename={folder / 'rouge.csv'}", "--noaggregate",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with (folder / "rouge.csv").open() as stream:
            for row, fields in enumerate(csv.DictReader(stream)):
                if number < len(references[row]):
                    for kind in ("rouge1", "rouge2", "rougeL"):
                        value = float(fields[f"{kind}-F"])
                        best.setdefault(kind, [0.0] * len(references))
                        best[kind][row] = max(best[kind][row], value)
    for kind, values in best.items():
        # Each of the command line's figures is rounded to six digits.
        assert scores[kind].value == pytest.approx(sum(values) / len(values), abs=6e-7)


def test_equal_to_the_command_lines_on_the_embedded_corpus(tmp_path: Path) -> None:
    corpus = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv")))
    check_against_command_lines(corpus.examples, tmp_path)


@needs_paradetox
def test_equal_to_the_command_lines_on_real_paradetox(tmp_path: Path) -> None:
    check_against_command_lines(read_corpus(DataConfig(source=str(PARADETOX))).examples[:2000], tmp_path)


def test_pinned_values() -> None:
    predictions = ["that was a bad movie .", "please stop talking", ""]
    references = [["That was a bad movie.", "that was a poor movie ."], ["Please stop talking."], ["nonsense"]]
    scores = compute_scores(predictions, references, ["bad", "rude"])
    assert {name: round(score.value, 4) for name, score in scores.items()} == {
        "bleu": 63.9315,
        "chrf": 79.108,
        "rouge1": 0.6667,
        "rouge2": 0.6667,
        "rougeL": 0.6667,
        "listed": 0.3333,
    }
    assert scores["bleu"].signature == "nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    assert scores["listed"].signature == "listed|words:2|sha256:71294fa2|aggregate:mean"


def test_perfect_and_hopeless() -> None:
    perfect = compute_scores(["a b c d e"], [["x", "a b c d e"]], ())
    assert [round(score.value, 6) for score in perfect.values()] == [100, 100, 1, 1, 1]
    hopeless = compute_scores(["", ""], [["a b c d"], ["e f g h"]], ())
    assert [score.value for score in hopeless.values()] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([], []), (["a"], []), (["a"], [[]]), (["a"], [["b"], ["c"]])],
    ids=["none", "no", "empty", "more"],
)
def test_rows_that_do_not_match(predictions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="expected as many rows of references as predictions"):
        compute_scores(predictions, references, ())
