"""Preemption: a signal, its status, --resume auto, and another number of processes."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Main

from sft.command import RunError
from sft.elastic import divide_batch, list_segments
from sft.machine import Machine
from sft.preemption import Preempted
from sft.preflight import Preflight, inspect_recipe
from sft.run_dir import Run
from sft.storage import hash_file, read_json, read_json_lines, write_json


def read_all(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_preempted_run_goes_on_to_the_same_bytes_and_then_stays(
    mini_run: Path, mini_arguments: list[str], call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Run(tmp_path / "run")
    arguments = [*mini_arguments, "--output_dir", run.root, "--resume", "auto"]

    def preempt(*words: Any, **_: Any) -> None:
        if words[2].global_step == 2:  # in the third step, which no checkpoint or log line is due at
            os.kill(os.getpid(), signal.SIGUSR1)

    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with (
        monkeypatch.context() as patch,
        pytest.raises(Preempted, match="stopped by SIGUSR1 after step 3 of 8"),
    ):
        patch.setattr("sft.preemption.Preemption.on_step_begin", preempt)
        call_main("sft.run", *arguments)
    assert Preempted.status == 75
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    assert not any("finished" in line for line in read_json_lines(run.log_path))

    call_main("sft.run", *arguments)
    assert hash_file(run.adapter_weights) == hash_file(Run(mini_run).adapter_weights)
    assert [line["step"] for line in read_json_lines(run.log_path) if "loss" in line] == [2, 4, 6, 8]
    assert read_json(run.environment_path)["elastic"] is None

    finished = read_all(run.root)
    capsys.readouterr()
    call_main("sft.run", *arguments)
    assert "finished already" in capsys.readouterr().err
    with pytest.raises(RunError, match="a finished run is here, of another learning_rate "):
        call_main("sft.run", *arguments, "--learning_rate", "1e-3")
    assert read_all(run.root) == finished


def test_resume_auto_can_not_overwrite(mini_arguments: list[str], call_main: Main) -> None:
    with pytest.raises(SystemExit):
        call_main("sft.run", *mini_arguments, "--resume", "auto", "--overwrite")


@dataclasses.dataclass(frozen=True)
class OtherMachine(Machine):
    """This machine, with so many processes."""

    count: int = 1

    @property
    def processes(self) -> Any:  # type: ignore[override]
        return type("State", (), {"num_processes": self.count})


def test_batch_stays_on_another_number_of_processes(mini_arguments: list[str], tmp_path: Path) -> None:
    """24 rows a process on 2 processes: 48 a step, whatever comes."""
    run = Run(tmp_path / "run")
    found = inspect_recipe(mini_arguments[0], [*mini_arguments[1:], "--output_dir", str(run.root)])

    def take(processes: int) -> Preflight:
        machine = OtherMachine(**dataclasses.asdict(found.machine), count=processes)
        return dataclasses.replace(found, machine=machine)

    segments = list_segments(run, take(2), None)
    assert segments == [{"from_step": 0, "processes": 2}]
    assert tuple(divide_batch(take(2), segments).values()) == (24, 1)
    checkpoint = run.checkpoints / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "trainer_state.json", {"global_step": 4})
    for processes, size, accumulated in ((1, 24, 2), (2, 24, 1), (3, 16, 1), (4, 12, 1), (48, 1, 1)):
        write_json(run.environment_path, {"processes": 2})
        segments = list_segments(run, take(processes), checkpoint)
        assert len(segments) == 1 + (processes != 2)
        assert tuple(divide_batch(take(processes), segments).values()) == (size, accumulated)
    with pytest.raises(RunError, match="found 5 processes, which can't take the 48 rows of a step"):
        divide_batch(take(5), list_segments(run, take(5), checkpoint))
    # Back to two, from a checkpoint that the one process never got beyond: as if it had not been.
    write_json(run.environment_path, {"processes": 1, "elastic": list_segments(run, take(1), checkpoint)})
    assert list_segments(run, take(2), checkpoint) == [{"from_step": 0, "processes": 2}]
