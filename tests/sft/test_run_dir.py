import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from sft.command import Refusal, RunError
from sft.run_dir import Run, hold_run, open_run, replace_run, share_run
from sft.storage import read_json, read_json_lines, replace_file, replace_folder, write_json_lines, write_text


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
    with pytest.raises(RunError, match=r"c\.jsonl:2: not JSON"):
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


def test_a_run_that_is_read_is_not_replaced(mini_run: Path, tmp_path: Path) -> None:
    """Readers share it; a training must wait, or is told."""
    root = tmp_path / "run"
    shutil.copytree(mini_run, root)
    readers = share_run(root), share_run(root)
    with readers[0], readers[1], pytest.raises(RunError, match="evaluates or publishes"), hold_run(Run(root)):
        pass
    with hold_run(Run(root)):
        pass


def test_a_replacement_waits_for_readers(
    mini_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, new = tmp_path / "run", tmp_path / ".run.new"
    shutil.copytree(mini_run, root)
    shutil.copytree(mini_run, new)
    (root / "targets.jsonl").write_text("taught")
    (new / "train.jsonl").write_text("new")
    replaced = threading.Thread(target=lambda: replace_run(Run(new), Run(root)))
    with share_run(root):
        replaced.start()
        replaced.join(0.3)
        assert replaced.is_alive()
        assert (root / "train.jsonl").read_text() != "new"
    replaced.join()
    assert (root / "train.jsonl").read_text() == "new"
    assert (root / "targets.jsonl").read_text() == "taught"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "waiting for it" in capsys.readouterr().err


@pytest.mark.parametrize("new_is_finished", [True, False])
def test_a_replacement_killed_between_its_renames_is_settled(
    new_is_finished: bool, mini_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(mini_run, tmp_path / ".run.old")
    shutil.copytree(mini_run, tmp_path / ".run.new")
    (tmp_path / ".run.new" / "mark").touch()
    if not new_is_finished:
        shutil.rmtree(tmp_path / ".run.new" / "adapter")
    run = open_run(tmp_path / "run")
    assert (run.root / "mark").exists() == new_is_finished
    assert not (tmp_path / ".run.old").exists()


def test_what_a_kill_left_at_the_end_of_a_training_goes(mini_run: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(mini_run, root)
    (root / "checkpoints" / "checkpoint-8").mkdir(parents=True)
    assert not open_run(root).checkpoints.exists()


def test_an_adapter_can_be_read_by_others(mini_run: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("x")
    for path in Run(mini_run).adapter.iterdir():
        assert path.stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_is_replaced_whole(there: bool, tmp_path: Path) -> None:
    new, target = tmp_path / ".publish", tmp_path / "publish"
    new.mkdir()
    (new / "a").touch()
    if there:
        target.mkdir()
        (target / "b").touch()
    replace_folder(new, target)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "publish",
        "publish/a",
    ]
