"""Metrics against the command lines of sacrebleu and rouge_score, to the last printed digit, and against pinned values."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import PARADETOX, needs_paradetox, run_python

from eval.metrics import compute_scores
from eval.toxicity import fit_toxicity
from sft.data import Example, read_corpus
from sft.lexicon import find_listed
from sft.schema import DataConfig
from sft.storage import PROJECT


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
    scores = compute_scores(predictions, references)
    width = max(map(len, references))
    (folder / "predictions").write_text("".join(text + "\n" for text in predictions))
    names = []
    for number in range(width):
        names.append(folder / f"references{number}")
        # The command line takes an empty line for an empty reference; the first reference again changes nothing.
        lines = [refs[number] if number < len(refs) else refs[0] for refs in references]
        names[-1].write_text("".join(line + "\n" for line in lines))

    bleu = [*names, "-m", "bleu"]
    for metric, arguments in (
        ("bleu", bleu),
        ("bleu_first", [names[0], "-m", "bleu"]),
        ("bleu_lower", [*bleu, "-lc"]),
        ("chrf", [*names, "-m", "chrf"]),
    ):
        command = ["-m", "sacrebleu", *arguments, "-i", folder / "predictions", "-w", 10]
        done = run_python(*command, "-b")
        assert done.returncode == 0, done.stderr
        assert f"{scores[metric].value:.10f}" == done.stdout.strip()
        # The command line counts the reference files, the metric says that their number varies.
        text = run_python(*command, "-f", "text").stdout
        signature = text.split("|", 2)[2].partition(" = ")[0]
        assert scores[metric].signature.partition("|")[2] == signature
        sentences = run_python(*command, "-b", "--sentence-level").stdout.split()
        assert [f"{value:.10f}" for value in scores[metric].sentences] == sentences

    # rouge_score's command line knows one reference: the best of its F-measures is the multi-reference score.
    best: dict[str, list[float]] = {}
    first: dict[str, list[float]] = {}
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
                        if number == 0:
                            first.setdefault(f"{kind}_first", []).append(value)
    assert len(best) == len(first) == 3
    for kind, values in (best | first).items():
        # Each of the command line's figures is rounded to six digits.
        assert scores[kind].value == pytest.approx(sum(values) / len(values), abs=6e-7)
        assert scores[kind].sentences == pytest.approx(values, abs=6e-7)


@pytest.mark.slow
def test_equal_to_the_command_lines_on_the_embedded_corpus(tmp_path: Path) -> None:
    corpus = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv")))
    check_against_command_lines(corpus.examples[:1000], tmp_path)


@pytest.mark.slow
@needs_paradetox
def test_equal_to_the_command_lines_on_real_paradetox(tmp_path: Path) -> None:
    check_against_command_lines(read_corpus(DataConfig(source=str(PARADETOX))).examples[:2000], tmp_path)


class Words:
    """In place of a fitted classifier: toxic is what holds a listed word."""

    lexicon = frozenset({"bad", "rude"})
    signature = "toxicity|words"

    def predict(self, texts: Sequence[str]) -> list[float]:
        return [float(bool(find_listed(text, self.lexicon))) for text in texts]


def test_pinned_values() -> None:
    predictions = ["that was a bad movie .", "please stop talking", ""]
    references = [
        ["That was a bad movie.", "that was a poor movie ."],
        ["Please stop talking."],
        ["nonsense"],
    ]
    sources = ["that was a bad movie .", "stop talking you rude man", "rude nonsense"]
    scores = compute_scores(predictions, references, sources, Words())
    assert {name: round(score.value, 4) for name, score in scores.items()} == {
        "bleu": 63.9315,
        "bleu_first": 54.9778,
        "bleu_lower": 80.0737,
        "chrf": 79.108,
        "rouge1": 0.6667,
        "rouge2": 0.6667,
        "rougeL": 0.6667,
        "rouge1_first": 0.6667,
        "rouge2_first": 0.6667,
        "rougeL_first": 0.6667,
        "chrf_source": 49.7285,
        "copy_rate": 0.3333,
        "length_ratio": 0.5333,
        "toxicity": 0.3333,
        "joint": 0.3333,
        "listed": 0.3333,
    }
    assert scores["bleu"].signature == "nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    assert scores["bleu_first"].signature == "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    assert scores["bleu_lower"].signature == "nrefs:var|case:lc|eff:no|tok:13a|smooth:exp|version:2.6.0"
    assert scores["listed"].signature == "listed|words:2|sha256:71294fa2|aggregate:mean"
    assert scores["chrf_source"].signature.startswith("chrF to the source|nrefs:1|case:mixed|")
    assert scores["joint"].sentences.tolist() == [0, 1, 0], "toxic, rewritten, empty"


def test_perfect_and_hopeless() -> None:
    perfect = compute_scores(["a b c d e"], [["a b c d e", "x"]])
    assert [round(score.value, 6) for score in perfect.values()] == [100, 100, 100, 100, 1, 1, 1, 1, 1, 1]
    hopeless = compute_scores(["", ""], [["a b c d"], ["e f g h"]])
    assert [score.value for score in hopeless.values()] == [0] * 10


def test_joint_is_for_what_is_neither_toxic_nor_something_else() -> None:
    sources = ["what a bad movie that was , i want my money back"] * 4
    predictions = [sources[0], "what a movie that was , i want my money back", "all is well", ""]
    joint = compute_scores(predictions, [["x"]] * 4, sources, Words())["joint"].sentences
    assert joint[0] == joint[3] == 0
    assert joint[1] == 1
    assert 0 < joint[2] < 0.5


def test_a_part_of_a_score_is_the_score_of_the_part() -> None:
    predictions, references = ["a b c d", "x y z", "q r s t"], [["a b c e"], ["x y"], ["q r s t"]]
    whole, part = compute_scores(predictions, references), compute_scores(predictions[1:], references[1:])
    for name, score in whole.items():
        assert score.select(np.array([False, True, True])).value == part[name].value
        assert score.join([0, 1], "two of them").value == pytest.approx(score.value)
        assert len(score.join([0, 1], "two of them").statistics) == 2


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([], []), (["a"], []), (["a"], [[]]), (["a"], [["b"], ["c"]])],
    ids=["none", "no", "empty", "more"],
)
def test_rows_that_do_not_match(predictions: list[str], references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="expected as many rows of references as predictions"):
        compute_scores(predictions, references)


@pytest.mark.slow
def test_many_rows_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dealt out to processes, rows have the scores, statistics and signatures that they have together."""
    examples = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples
    examples.sort(key=lambda example: len(example.references))  # parts of one reference, and parts of several
    texts = [example.toxic for example in examples]
    arguments = texts[::-1], [example.references for example in examples], texts, fit_toxicity(examples)
    together = compute_scores(*arguments)
    monkeypatch.setattr("eval.metrics.CHUNK", 100)
    apart = compute_scores(*arguments)
    assert apart.keys() == together.keys()
    for name, score in together.items():
        assert (apart[name].value, apart[name].signature) == (score.value, score.signature)
        np.testing.assert_array_equal(apart[name].statistics, score.statistics)
        np.testing.assert_array_equal(apart[name].sentences, score.sentences)
