"""What a training says: progress on the terminal, a line a logging step in train.jsonl, its emissions."""

import json
import logging
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft.command import RunError
from sft.run_dir import Run
from sft.storage import read_json_lines


class ProgressLog(TrainerCallback):
    """Progress on the terminal, and a line a logging step in train.jsonl; on the main process alone.

    A line holds `step`, `epoch`, `seconds` since the start, `train_seconds` spent in training steps (without
    validation, checkpoints and start-up), `samples_per_second` over these, and TRL's own figures: `loss`
    (nats a scored token), `learning_rate`, `grad_norm`, …, or `eval_loss`. With a tracker (see
    `start_tracker`) there is `kg_co2eq`, too, what codecarbon estimates that this machine has emitted for it.
    All of them count on after an interruption, without what was lost in it, and done again. The last line
    sums up.
    """

    def __init__(self, run: Run, samples_per_row: float, console: Console, tracker: Any) -> None:
        self.run, self.tracker = run, tracker
        self.samples_per_row = samples_per_row
        self.console = console
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.progress.add_task("")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            log = read_json_lines(self.run.log_path)
            self.earlier: float = log[-1]["seconds"] if log else 0.0
            self.train_seconds: float = log[-1]["train_seconds"] if log else 0.0
            self.trained_before = self.train_seconds
            self.emitted: float = log[-1].get("kg_co2eq", 0.0) if log else 0.0
            self.flushed: float = 0.0
            self.begin, self.first_step = time.monotonic(), state.global_step
            self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
            self.progress.start()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step_begin = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.train_seconds += time.monotonic() - self.step_begin
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not ("loss" in logs or "eval_loss" in logs):
            return
        line = self.start_line(args, state)
        if "loss" in logs:
            speed = f"{line['samples_per_second']:.1f} samples/s"
            text = f"loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  {speed}"
            self.progress.update(self.task, description=text)
        else:
            text = f"validation loss {logs['eval_loss']:.4f}"
        self.write_line(line | {key: value for key, value in logs.items() if key not in line})
        if not self.console.is_terminal or "eval_loss" in logs:
            done = state.global_step - self.first_step
            left = (
                (self.train_seconds - self.trained_before)
                / max(1, done)
                * (state.max_steps - state.global_step)
            )
            clock = f"{int(left) // 60}:{int(left) % 60:02d} left" if done else ""
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  {text}  {clock}".rstrip(), highlight=False
            )

    def start_line(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        speed = (
            state.global_step * batch * self.samples_per_row / self.train_seconds
            if self.train_seconds
            else 0.0
        )
        line = {
            "step": state.global_step,
            "epoch": state.epoch,
            "seconds": round(self.earlier + time.monotonic() - self.begin, 2),
            "train_seconds": round(self.train_seconds, 2),
            "samples_per_second": round(speed, 1),
        }
        if self.tracker:
            self.flushed = self.tracker.flush() or self.flushed  # None where a measurement fails
            line["kg_co2eq"] = self.emitted + self.flushed
        return line

    def write_line(self, line: dict[str, Any]) -> None:
        with self.run.log_path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.progress.stop()
            done = {"finished": True} if state.global_step >= state.max_steps else {}  # else it was preempted
            self.write_line(self.start_line(args, state) | done)
            if self.tracker:
                self.tracker.stop()


def start_tracker(country: str) -> Any:
    """Return codecarbon's running tracker of emissions, with a country's power grid; it needs no network.

    Raises:
        RunError: it does not run here.
    """
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    # What is named here can't be set otherwise by codecarbon's own files and variables: they would send, or
    # ask for, figures.
    tracker = OfflineEmissionsTracker(
        country_iso_code=country,
        region=None,
        cloud_provider=None,
        force_carbon_intensity_g_co2e_kwh=None,
        electricitymaps_api_token="",
        emissions_endpoint="",
        output_methods=[],
        log_level="error",
        allow_multiple_runs=True,
    )
    tracker.start()
    if tracker.flush() is None:  # codecarbon logs what fails, and goes on
        raise RunError(
            "codecarbon could not measure on this machine (see above). Leave out publish.emissions_country."
        )
    return tracker
