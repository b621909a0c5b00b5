"""Runs compared: the same as their own results, and refused where rows differ."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Main

from eval.compare import compare_runs
from eval.results import GENERATED, RESULTS, Interval, read_results
from eval.scoring import Answers
from eval.stress import list_texts
from sft.command import InputError, Refusal
from sft.preflight import inspect_recipe
from sft.run_dir import Run
from sft.storage import read_json_lines, write_json, write_json_lines


@pytest.fixture(scope="module")
def better(mini_run: Path, tmp_path_factory: pytest.TempPathFactory, call_main: Main) -> Run:
    """The run, evaluated with people's rewrites for two of its predictions."""
    run = Run(tmp_path_factory.mktemp("runs") / "better")
    shutil.copytree(mini_run, run.root)
    lines = read_json_lines(run.eval / "predictions.jsonl")
    generated = {name: [line[name] for line in lines] for name in GENERATED if name in lines[0]}
    texts = [line["references"][0] for line in lines[:2]] + [line["prediction"] for line in lines[2:]]
    evaluate_again(run, {"adapter": texts} | generated, call_main)
    return run


def evaluate_again(run: Run, generated: dict[str, list[str]], call_main: Main) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stressed = list_texts()
        patch.setattr("eval.answers.generate_answers", lambda *_: Answers(generated, 1.0, stressed))
        call_main("eval.run", run.root)


def test_scores_are_the_runs_own(mini_run: Path, better: Run) -> None:
    comparison = compare_runs([Run(mini_run), better], 3)
    own = read_results(mini_run / "eval" / RESULTS).systems["adapter"]
    assert comparison.systems[str(mini_run)] == own
    (pair,) = comparison.differences
    assert pair == f"{mini_run} - {better.root}"
    difference = comparison.differences[pair]["rouge1"]
    values = [comparison.systems[str(run)]["rouge1"].value for run in (mini_run, better.root)]
    assert difference.value == pytest.approx(values[0] - values[1])
    assert difference.value < 0
    lines = read_json_lines(better.eval / "predictions.jsonl")
    assert {row.toxic for row in comparison.rows[:2]} == {line["toxic"] for line in lines[:2]}


def test_a_run_differs_from_its_copy_by_nothing(mini_run: Path, tmp_path: Path) -> None:
    shutil.copytree(mini_run, tmp_path / "same")
    (difference,) = compare_runs([Run(mini_run), Run(tmp_path / "same")], 1).differences.values()
    assert all(score == Interval(0, 0, 0) for score in difference.values())


def test_changed_predictions_are_refused(mini_run: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "changed")
    shutil.copytree(mini_run, run.root)
    lines = read_json_lines(run.eval / "predictions.jsonl")
    for key, value, message in (
        ("prediction", lines[0]["references"][0], r"its scores are not those of predictions\.jsonl"),
        ("references", [lines[0]["prediction"]], "not the rows of the run's test split"),
        ("toxic", "x", "not the rows of the run's test split"),
    ):
        write_json_lines(run.eval / "predictions.jsonl", [lines[0] | {key: value}, *lines[1:]])
        with pytest.raises(Refusal, match=message):
            compare_runs([Run(mini_run), run], 1)


def test_other_rows_are_refused(mini_run: Path, tmp_path: Path, call_main: Main) -> None:
    """A run whose data were split by another seed: as the training writes them, without its training."""
    run = Run(tmp_path / "other")
    shutil.copytree(mini_run, run.root)
    preflight = inspect_recipe(str(run.recipe_path), ["--data.seed", "7"])
    for split, examples in preflight.splits.items():
        lines = [{"id": e.id, "toxic": e.toxic, "references": e.references} for e in examples]
        write_json_lines(run.split_path(split), lines)
    write_json(run.manifest_path, preflight.describe_data())
    run.seal(run.adapter)
    texts = [example.toxic for example in preflight.splits["test"]]
    evaluate_again(run, {"adapter": texts}, call_main)
    with pytest.raises(
        InputError,
        match=f"{run.root}: its test split is not that of {mini_run}: their scores can't be compared",
    ):
        compare_runs([Run(mini_run), run], 1)


@pytest.mark.slow
def test_command(mini_run: Path, better: Run, call_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    call_main("eval.compare", mini_run, better.root, "--rows", 1)
    output = capsys.readouterr().out
    assert "the interval of the paired difference holds 0" in output
    call_main("eval.compare", mini_run, better.root, "--json")
    assert len(json.loads(capsys.readouterr().out)["systems"]) == 2
    with pytest.raises(InputError, match="expected two different runs at least"):
        call_main("eval.compare", mini_run, mini_run)
