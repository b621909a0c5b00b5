"""A run that goes on with another number of processes, and with the batch a step that it began with."""

from pathlib import Path
from typing import Any

from sft.command import RunError
from sft.preflight import Preflight
from sft.records import Processes, TrainerState
from sft.run_dir import Run
from sft.storage import read_json

Segment = dict[str, int]  # `processes`, and the step `from_step` from which on there were so many


def list_segments(run: Run, preflight: Preflight, checkpoint: Path | None) -> list[Segment]:
    """Return the numbers of processes that the run has had, and has from `checkpoint` on; one, as a rule."""
    step, segments = 0, []
    if checkpoint:
        step = read_json(checkpoint / "trainer_state.json", TrainerState)["global_step"]
        environment = read_json(run.environment_path, Processes)
        before = environment.get("elastic") or [{"from_step": 0, "processes": environment["processes"]}]
        segments = [segment for segment in before if segment["from_step"] < step]
    processes = preflight.machine.processes.num_processes
    if not segments or segments[-1]["processes"] != processes:
        segments.append({"from_step": step, "processes": processes})
    return segments


def divide_batch(preflight: Preflight, segments: list[Segment]) -> dict[str, Any]:
    """Return the TRL keys with which the last segment's processes take the batch of the first's.

    Raises:
        RunError: the batch can't be divided by this number of processes.
    """
    trl = preflight.recipe.trl
    began, now = segments[0]["processes"], segments[-1]["processes"]
    keys = "per_device_train_batch_size", "gradient_accumulation_steps"
    if began == now:
        return {key: trl[key] for key in keys}
    whole = trl[keys[0]] * trl[keys[1]] * began
    sizes = [size for size in range(1, trl[keys[0]] + 1) if whole % (size * now) == 0]
    if not sizes:
        raise RunError(
            f"found {now} processes, which can't take the {whole} rows of a step in equal parts. "
            f"Expected a number that divides {whole}."
        )
    return {keys[0]: sizes[-1], keys[1]: whole // (sizes[-1] * now)}
