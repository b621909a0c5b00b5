"""Scoring anybody's outputs: what is read, what it is compared with, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import Main, run_python

from eval.metrics import compute_scores
from eval.results import RESULTS, read_results
from eval.score import leave_out, read_predictions, read_references, score_files
from sft.command import InputError
from sft.data import Example, read_corpus
from sft.schema import DataConfig
from sft.storage import PROJECT, hash_file

CORPUS = PROJECT / "recipes" / "tiny-corpus.tsv"
EXAMPLES = read_corpus(DataConfig(source=str(CORPUS))).examples[:1000]


def write_some(path: Path, number: int = 100) -> Path:
    """Write the first sentences of the corpus."""
    path.write_text("".join(CORPUS.read_text().splitlines(keepends=True)[: number + 1]))
    return path


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    path = tmp_path / "predictions.txt"
    path.write_text("".join(f"{example.references[-1]}\n" for example in EXAMPLES[:-1]) + "\n")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_some(tmp_path / "corpus.tsv", len(EXAMPLES))


@pytest.mark.slow
def test_scores_of_a_corpus_and_a_text_file(predictions: Path, corpus: Path) -> None:
    results = score_files(predictions, corpus, None)
    assert list(results.systems) == ["predictions", "copy", "human"]
    texts = [example.references[-1] for example in EXAMPLES[:-1]] + [""]
    expected = compute_scores(
        texts, [example.references for example in EXAMPLES], [example.toxic for example in EXAMPLES]
    )
    assert {name: score.value for name, score in results.systems["predictions"].items()} == {
        name: score.value for name, score in expected.items()
    }
    assert results.data.rows == len(EXAMPLES)
    assert results.data.files.keys() == {"predictions.txt", "corpus.tsv"}


def test_the_classifier_never_sees_what_it_judges(predictions: Path, corpus: Path) -> None:
    kept = leave_out(EXAMPLES, EXAMPLES[:100])
    assert {example.toxic for example in kept} <= {example.toxic for example in EXAMPLES[100:]}
    with pytest.raises(InputError, match="nothing is left"):
        score_files(predictions, corpus, str(corpus))


def test_near_copies_are_left_out_of_the_classifiers_training_and_counted(tmp_path: Path) -> None:
    judged = next(example for example in EXAMPLES if len(example.toxic.split()) > 8)
    near, rewritten = Example(f"well {judged.toxic}", ("x",)), Example("y", (judged.toxic,))
    assert leave_out([near, rewritten, Example("z", ("x",))], [judged]) == [Example("z", ("x",))]
    fresh = [
        f"{example.toxic} indeed\t{example.references[0]} Yes.\n" for example in (judged, *EXAMPLES[200:500])
    ]
    (tmp_path / "train.tsv").write_text("toxic\tneutral1\n" + "".join(fresh))
    (tmp_path / "p.txt").write_text("ok\n" * 100)
    assert judged in EXAMPLES[:100]
    results = score_files(tmp_path / "p.txt", write_some(tmp_path / "some.tsv"), str(tmp_path / "train.tsv"))
    assert results.data.left_out_of_train == 1


def test_toxicity_by_a_corpus_of_the_users(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "predictions.jsonl", *([{"prediction": "ok"}] * 100))
    results = score_files(lines, write_some(tmp_path / "some.tsv"), str(CORPUS))
    assert list(results.systems) == ["predictions", "delete", "copy", "human"]
    assert {"toxicity", "joint", "listed"} <= results.systems["predictions"].keys()
    assert results.systems["copy"]["toxicity"].value > 0.5 > results.systems["predictions"]["toxicity"].value


def test_a_runs_own_predictions_are_both(mini_run: Path) -> None:
    lines = mini_run / "eval" / "predictions.jsonl"
    results = score_files(lines, lines, None)
    theirs = read_results(mini_run / "eval" / RESULTS).systems
    assert results.systems["predictions"]["bleu"] == theirs["adapter"]["bleu"]
    assert results.systems["copy"]["chrf"] == theirs["copy"]["chrf"]


def write_lines(path: Path, *lines: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("key", ["id", "toxic"])
def test_predictions_of_other_rows_are_refused(key: str, tmp_path: Path) -> None:
    rows = write_some(tmp_path / "some.tsv")
    lines = [{"id": e.id, "toxic": e.toxic, "prediction": e.references[0]} for e in EXAMPLES[:100]]
    lines = [{name: line[name] for name in (key, "prediction")} for line in lines]
    assert score_files(write_lines(tmp_path / "p.jsonl", *lines), rows, None).data.rows == 100
    lines[4], lines[7] = lines[7], lines[4]
    with pytest.raises(
        InputError,
        match=rf"p\.jsonl:5: found `{key}` .* Expected the predictions of these rows, in the same order",
    ):
        score_files(write_lines(tmp_path / "p.jsonl", *lines), rows, None)


def test_ids_of_the_users_own_are_compared(tmp_path: Path) -> None:
    references = write_lines(
        tmp_path / "r.jsonl", *({"id": number, "toxic": "x", "references": "y"} for number in (1, 2))
    )
    score_files(
        write_lines(tmp_path / "p.jsonl", *({"id": n, "prediction": "y"} for n in (1, 2))), references, None
    )
    with pytest.raises(InputError, match=r"p\.jsonl:2: found `id` 3, but the row of .*r\.jsonl has 2"):
        score_files(
            write_lines(tmp_path / "p.jsonl", *({"id": n, "prediction": "y"} for n in (1, 3))),
            references,
            None,
        )


def test_one_reference_may_stand_without_a_list(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", {"toxic": "you fool", "references": "be kind"})
    assert read_references(path) == [Example("you fool", ("be kind",))]
    path = write_lines(tmp_path / "r.jsonl", {"references": ["be kind", "be good"]})
    assert read_references(path) == [Example("", ("be kind", "be good"))]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"toxic": "a", "references": ["b"]}, {"toxic": 1, "references": ["b"]}],
            r":2: expected an object such as",
        ),
        ([{"toxic": "a", "references": ["b"]}, {"toxic": "a"}], r":2: expected an object such as"),
        ([{"toxic": "a", "references": [None]}], r":1: expected an object such as"),
        ([{"toxic": "a", "references": ["\ud800"]}], r":1: expected an object such as"),
        ([{"toxic": "a", "references": ["b"]}, 7], r":2: expected an object such as"),
        (
            [{"toxic": "a", "references": ["b"]}, {"references": ["b"]}],
            "row 2 has no toxic sentence, and others have",
        ),
    ],
)
def test_broken_references(lines: list[object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_references(write_lines(tmp_path / "r.jsonl", *lines))


def test_files_of_one_name_keep_both_hashes(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "out.txt" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"{path.parent.name}\n")
    files = score_files(*paths, None).data.files
    assert files == {str(path): hash_file(path) for path in paths}


PAIRS = [("you fool", "be kind"), ("damn it", "oh no"), ("you fool", "be good")]


def test_rows_of_one_toxic_sentence_count_once(tmp_path: Path) -> None:
    pairs = write_lines(
        tmp_path / "r.jsonl",
        *({"en_toxic_comment": toxic, "en_neutral_comment": text} for toxic, text in PAIRS),
    )
    rows = [
        {"toxic": "you fool", "references": ["be kind", "be good"]},
        {"toxic": "damn it", "references": ["oh no"]},
    ]
    merged = write_lines(tmp_path / "merged.jsonl", *rows)
    (tmp_path / "sentences.txt").write_text("be kind\noh\n")
    (tmp_path / "rows.txt").write_text("be kind\noh\nbe kind\n")
    expected = score_files(tmp_path / "sentences.txt", merged, None)
    for name in ("sentences.txt", "rows.txt"):
        found = score_files(tmp_path / name, pairs, None)
        assert found.data.files != expected.data.files
        data = dataclasses.replace(found.data, files=expected.data.files)
        assert dataclasses.replace(found, data=data) == expected
    assert "human" in expected.systems
    (tmp_path / "other.txt").write_text("be kind\noh\nbe good\n")
    with pytest.raises(
        InputError, match=r"rows 1 and 3 are of one toxic sentence, and their predictions differ"
    ):
        score_files(tmp_path / "other.txt", pairs, None)


def test_references_a_line_have_no_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\n\nthree\n")
    assert read_predictions(tmp_path / "a.txt") == ["one two", "", "three"]
    (tmp_path / "b.txt").write_text("one two\nfour\nthree")
    assert read_references(tmp_path / "b.txt") == [
        Example("", (text,)) for text in ("one two", "four", "three")
    ]
    results = score_files(tmp_path / "a.txt", tmp_path / "b.txt", None)
    assert list(results.systems) == ["predictions"]
    assert "chrf_source" not in results.systems["predictions"]


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ("a\nb\n", "a\n", "2 predictions, but .*r.txt has 1 row. Expected a prediction for each row"),
        ("a\nb\n", "a\n\n", "row 2 has no reference, nor have 0 others"),
        (None, "a\n", "p.txt: no such file"),
        ("a\n", None, "r.txt: no such file"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, predictions: str | None, references: str | None, message: str
) -> None:
    for name, text in (("p.txt", predictions), ("r.txt", references)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        score_files(tmp_path / "p.txt", tmp_path / "r.txt", None)


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r": a folder\. Expected a text a line"):
        score_files(tmp_path, tmp_path, None)


def test_lines_without_a_prediction(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prediction": "a"}\n{"output": "b"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:2: found no text under `prediction`"):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.slow
def test_command(
    predictions: Path, corpus: Path, call_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--predictions", predictions, "--references", corpus)
    call_main("eval.score", *files)
    assert "input copied" in capsys.readouterr().out
    call_main("eval.score", *files, "--json")
    assert json.loads(capsys.readouterr().out)["systems"]["copy"]["bleu"]["signature"].startswith("nrefs:var")
    for arguments, message in (
        (files[:2], "the following arguments are required: --references"),
        (("runs/x", *files), "unrecognized arguments: runs/x"),
        ((), "the following arguments are required: --predictions, --references"),
    ):
        done = run_python("-m", "eval.score", *arguments)
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize("text", ["\n\n\n", "", " \n\t\n\n"])
def test_a_system_may_answer_nothing(text: str, tmp_path: Path) -> None:
    rows = max(text.count("\n"), 1)
    predictions, references = tmp_path / "predictions.txt", tmp_path / "references.tsv"
    predictions.write_text(text)
    references.write_text(
        "toxic\tneutral1\n" + "".join(f"you fool {row}\tyou {row}\n" for row in range(rows))
    )
    results = score_files(predictions, references, None)
    assert (results.data.rows, results.to_json()["systems"]["predictions"]["bleu"]["value"]) == (rows, 0)
