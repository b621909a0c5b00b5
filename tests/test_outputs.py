"""Scoring anybody's outputs: what is read, what it is held against, and what is refused."""

import json
from pathlib import Path

import pytest
from conftest import Main, run_python

from eval.metrics import compute_scores
from eval.outputs import leave_out, read_predictions, read_references, score_files
from sft.data import Example, read_corpus
from sft.recipe import PROJECT, DataConfig, InputError

CORPUS = PROJECT / "recipes" / "tiny-corpus.tsv"
EXAMPLES = read_corpus(DataConfig(source=str(CORPUS))).examples


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.txt"
    path.write_text("".join(f"{example.references[-1]}\n" for example in EXAMPLES[:-1]) + "\n")
    return path


def test_scores_of_a_corpus_and_a_text_file(predictions: Path) -> None:
    results = score_files(predictions, CORPUS, None)
    assert list(results["systems"]) == ["predictions", "copy", "human"]
    texts = [example.references[-1] for example in EXAMPLES[:-1]] + [""]
    expected = compute_scores(texts, [example.references for example in EXAMPLES], [example.toxic for example in EXAMPLES])
    assert {name: score["value"] for name, score in results["systems"]["predictions"].items()} == {
        name: score.value for name, score in expected.items()
    }
    assert results["data"]["rows"] == len(CORPUS.read_text(encoding="utf-8").splitlines()) - 1
    assert results["data"]["files"].keys() == {"predictions.txt", "tiny-corpus.tsv"}


def test_the_classifier_never_sees_what_it_judges(predictions: Path) -> None:
    kept = leave_out(EXAMPLES, EXAMPLES[:100])
    assert {example.toxic for example in kept} <= {example.toxic for example in EXAMPLES[100:]}
    with pytest.raises(InputError, match="nothing is left"):
        score_files(predictions, CORPUS, str(CORPUS))


def test_toxicity_by_a_corpus_of_the_users(tmp_path: Path) -> None:
    lines = CORPUS.read_text().splitlines(keepends=True)
    (tmp_path / "some.tsv").write_text("".join(lines[:101]))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps({"prediction": "ok"}) + "\n" for _ in range(100)))
    results = score_files(tmp_path / "predictions.jsonl", tmp_path / "some.tsv", str(CORPUS))
    assert list(results["systems"]) == ["predictions", "delete", "copy", "human"]
    assert {"toxicity", "joint", "listed"} <= results["systems"]["predictions"].keys()
    assert results["systems"]["copy"]["toxicity"]["value"] > 0.5 > results["systems"]["predictions"]["toxicity"]["value"]


def test_a_runs_own_predictions_are_both(mini_run: Path) -> None:
    lines = mini_run / "eval" / "predictions.jsonl"
    results = score_files(lines, lines, None)
    theirs = json.loads((mini_run / "eval" / "results.json").read_text())["systems"]
    assert results["systems"]["predictions"]["bleu"] == theirs["adapter"]["bleu"]
    assert results["systems"]["copy"]["chrf"] == theirs["copy"]["chrf"]


def test_references_a_line_have_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n\nthree\n")
    assert read_predictions(tmp_path / "a.txt") == ["one two", "", "three"]
    (tmp_path / "b.txt").write_text("one two\nfour\nthree")
    assert read_references(tmp_path / "b.txt") == [Example("", (text,)) for text in ("one two", "four", "three")]
    results = score_files(tmp_path / "a.txt", tmp_path / "b.txt", None)
    assert list(results["systems"]) == ["predictions"]
    assert "content" not in results["systems"]["predictions"]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("a\nb\n", "a\n", "2 predictions, but .*r.txt has 1 row. Expected a prediction for each row"),
        ("a\nb\n", "a\n\n", "row 2 has no reference, nor have 0 others"),
        (None, "a\n", "p.txt: no such file"),
        ("a\n", None, "r.txt: no such file"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, predictions: str | None, references: str | None, message: str) -> None:
    for name, text in (("p.txt", predictions), ("r.txt", references)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        score_files(tmp_path / "p.txt", tmp_path / "r.txt", None)


def test_lines_without_a_prediction(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prediction": "a"}\n{"output": "b"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:2: found no text under `prediction`"):
        read_predictions(tmp_path / "p.jsonl")


def test_command(predictions: Path, call_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--predictions", predictions, "--references", CORPUS)
    call_main("eval.run", *files)
    assert "input copied" in capsys.readouterr().out
    call_main("eval.run", *files, "--json")
    assert json.loads(capsys.readouterr().out)["systems"]["copy"]["bleu"]["signature"].startswith("nrefs:var")
    for arguments in (files[:2], ("runs/x", *files), ()):
        done = run_python("-m", "eval.run", *arguments)
        assert done.returncode == 2
        assert "expected either RUN_DIR, or --predictions and --references" in done.stderr
