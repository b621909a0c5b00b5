"""Preemption: a signal ends a training after the running step, with a checkpoint, to be started again.

transformers' own just-in-time checkpoint (`enable_jit_checkpoint`) is not used. It can save between a step's
backward pass and its optimizer, when random numbers were drawn already: a resumed run gives other bytes. And
each process saves by a timer of its own: where these fall into different steps, they wait for one another.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from sft.command import RunError
from sft.run_dir import Run

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # of schedulers; SIGUSR1 is what Slurm's --signal is used with


class Preempted(RunError):
    """A training was asked to end, and can be started again."""

    status = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, to be tried again


class ProcessLost(RunError):
    """Another process of this training died, and took it with it."""

    status = 1


@contextlib.contextmanager
def explain_losses() -> Iterator[None]:
    """Say in one line that another process died, where the block's exchanges with it break off.

    Raises:
        ProcessLost: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        message = (
            "another process of this training died, or its node did: see what it, or its launcher, says."
        )
        raise ProcessLost(f"{message} With --resume auto it goes on from its last checkpoint.") from None


class Preemption(TrainerCallback):
    """Ends the training after the step in which any process got a signal, with one checkpoint."""

    def __init__(self) -> None:
        self.signal = 0  # its number, or 0

    @contextlib.contextmanager
    def catch_signals(self) -> Iterator[None]:
        """Note a signal, in place of dying of it, while the block runs."""
        before = {number: signal.signal(number, self.note_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size > 1:  # a scheduler's signal does not reach all at the same step
            number = torch.tensor(self.signal, device=args.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.signal = int(number)
        if self.signal:
            control.should_save = control.should_training_stop = True

    def end_training(self, trainer: SFTTrainer, run: Run) -> None:
        """Raise if the training was ended before its last step.

        Raises:
            Preempted: it was.
        """
        step, steps = trainer.state.global_step, trainer.state.max_steps
        if self.signal and step < steps:
            name = signal.Signals(self.signal).name
            raise Preempted(
                f"{run.root}: stopped by {name} after step {step} of {steps}, with a checkpoint. "
                "Start it again with --resume auto."
            )
