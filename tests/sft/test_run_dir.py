import json
import os
import shutil
from pathlib import Path

import pytest

from sft.command import Refusal, RunError
from sft.run_dir import Run, open_run
from sft.storage import read_json, read_json_lines, replace_file, write_json_lines, write_text


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replace_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_json_lines_keep_odd_line_breaks(tmp_path: Path) -> None:
    values = [{"text": "a\u2028b\x85c\nd"}, {"text": "ü"}]
    write_json_lines(tmp_path / "a.jsonl", values)
    assert read_json_lines(tmp_path / "a.jsonl") == values


def test_last_checkpoint_skips_those_cut_off(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.last_checkpoint() is None
    for step, state in (
        (2, '{"global_step": 2}'),
        (10, '{"global_step": 10}'),
        (20, '{"global_st'),
        (30, None),
    ):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-10"


def test_clear_removes_the_run_alone(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_text(run.recipe_path, "x")
    write_text(run.manifest_path, "{}")
    write_text(tmp_path / "notes.txt", "mine")
    run.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_open_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        open_run(tmp_path / "none")
    with pytest.raises(RunError, match="not a run directory"):
        open_run(tmp_path)
    write_text(tmp_path / "recipe.yaml", "x")
    with pytest.raises(RunError, match=r"its training did not finish .* --resume_from_checkpoint true$"):
        open_run(tmp_path)


def test_changed_json_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match="not JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunError, match="missing"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.jsonl").write_text(json.dumps({}) + os.linesep + "{")
    with pytest.raises(RunError, match="not JSON lines"):
        read_json_lines(tmp_path / "c.jsonl")


def test_what_a_run_holds_is_read_once(mini_run: Path, tmp_path: Path) -> None:
    shutil.copytree(mini_run, tmp_path / "run")
    run = Run(tmp_path / "run")
    held = run.recipe, run.manifest, run.environment, run.log, run.splits
    shutil.rmtree(run.root)
    assert (run.recipe, run.manifest, run.environment, run.log, run.splits) == held
    assert {split: len(examples) for split, examples in run.splits.items()} == {
        split: part["examples"] for split, part in run.manifest["splits"].items()
    }


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_changed_split_is_refused(split: str, mini_run: Path, tmp_path: Path) -> None:
    shutil.copytree(mini_run / "data", tmp_path / "data")
    run = Run(tmp_path)
    write_json_lines(run.split_path(split), read_json_lines(run.split_path(split))[1:])
    with pytest.raises(Refusal, match=f"{split}.jsonl: not the {split} split that the run was made with"):
        _ = run.splits
