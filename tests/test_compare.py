"""Runs held against one another: the same as their own results, and refused where rows differ."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Main

from eval.compare import compare_runs
from sft.recipe import InputError
from sft.run_dir import RunDir, read_json, read_json_lines, write_json, write_json_lines


@pytest.fixture
def better(mini_run: Path, tmp_path: Path) -> RunDir:
    """The run with people's rewrites for two of its predictions."""
    shutil.copytree(mini_run, tmp_path / "better")
    run = RunDir(tmp_path / "better")
    lines = read_json_lines(run.eval / "predictions.jsonl")
    for line in lines[:2]:
        line["prediction"] = line["references"][0]
    write_json_lines(run.eval / "predictions.jsonl", lines)
    return run


def test_scores_are_the_runs_own(mini_run: Path, better: RunDir) -> None:
    comparison = compare_runs([RunDir(mini_run), better], 3)
    own = read_json(mini_run / "eval" / "results.json")["systems"]["adapter"]
    assert comparison["systems"][str(mini_run)] == own
    (pair,) = comparison["differences"]
    assert pair == f"{mini_run} - {better.root}"
    difference = comparison["differences"][pair]["rouge1"]
    values = [comparison["systems"][str(run)]["rouge1"]["value"] for run in (mini_run, better.root)]
    assert difference["value"] == pytest.approx(values[0] - values[1])
    assert difference["value"] < 0
    lines = read_json_lines(better.eval / "predictions.jsonl")
    assert {row["toxic"] for row in comparison["rows"][:2]} == {line["toxic"] for line in lines[:2]}


def test_a_run_differs_from_its_copy_by_nothing(mini_run: Path, tmp_path: Path) -> None:
    shutil.copytree(mini_run, tmp_path / "same")
    (difference,) = compare_runs([RunDir(mini_run), RunDir(tmp_path / "same")], 1)["differences"].values()
    assert all(score == {"value": 0, "low": 0, "high": 0} for score in difference.values())


def test_other_rows_are_refused(mini_run: Path, better: RunDir) -> None:
    for path, keys in ((better.eval / "results.json", ("data",)), (better.manifest, ("splits", "test"))):
        content = read_json(path)
        inner = content
        for key in keys:
            inner = inner[key]
        inner["sha256"] = "0" * 64
        write_json(path, content)
    with pytest.raises(InputError, match="not the test split that the run was made with"):
        compare_runs([RunDir(mini_run), better], 1)


def test_command(mini_run: Path, better: RunDir, call_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    call_main("eval.compare", mini_run, better.root, "--rows", 1)
    output = capsys.readouterr().out
    assert "the interval of the paired difference holds 0" in output
    call_main("eval.compare", mini_run, better.root, "--json")
    assert len(json.loads(capsys.readouterr().out)["systems"]) == 2
    with pytest.raises(InputError, match="expected two different runs at least"):
        call_main("eval.compare", mini_run, mini_run)
