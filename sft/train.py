"""Training: open the run directory, build TRL's SFTTrainer, show and log its progress, close the run."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig, SFTTrainer, get_peft_config, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft.bloom import quicken_dropout
from sft.check import Preflight
from sft.data import SPLITS
from sft.loss import choose_loss
from sft.model import build_model_config, build_sft_config, join_processes, trains_in_float32
from sft.recipe import PROJECT, dump_yaml, load_recipe
from sft.run_dir import RunDir, RunError, draw_figure, read_json, read_json_lines, write_json, write_json_lines, write_text
from sft.stream import stream_training_rows

PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "bitsandbytes", "accelerate", "evaluate", "huggingface_hub")


# ----------------------------------------------------------------------------------------------- opening and closing


def find_start(run: RunDir, preflight: Preflight, overwrite: bool) -> Path | None:
    """Return the checkpoint that the run goes on from, or None to start at step 0. Writes nothing.

    Raises:
        RunError: the folder holds something else, a finished run, an interrupted run that was not asked to go on, or one
            of another recipe, base, prompt, data or number of processes.
    """
    root = run.root
    if root.exists() and not root.is_dir():
        raise RunError(f"{root}: a file, expected a folder for the run. Name another with --output_dir.")
    if root.is_dir() and not run.is_run() and any(not path.name.startswith(".") for path in root.iterdir()):
        raise RunError(f"{root}: neither empty nor a run directory. Name another with --output_dir.")
    if not run.is_run() or overwrite:
        return None
    if run.is_finished():
        raise RunError(
            f"{root}: a finished run is here. --overwrite replaces it, --output_dir FOLDER puts the new one elsewhere."
        )
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        return None
    if not preflight.recipe.trl["resume_from_checkpoint"]:
        raise RunError(
            f"{root}: an interrupted run is here, with {checkpoint.name}. --resume_from_checkpoint true goes on from it, "
            "--overwrite starts again."
        )
    before, now = load_recipe(run.recipe).values(), preflight.resolve_values()
    changed = [key for key in now if key != "resume_from_checkpoint" and before[key] != now[key]]
    manifest, environment = read_json(run.manifest), read_json(run.environment)
    described = preflight.describe_data()
    changed += [key for key in ("splits", "prompt", "targets") if manifest[key] != described[key]]
    changed += ["base model"] if environment["base"] != preflight.base.describe() else []
    processes = join_processes(preflight.recipe.trl["use_cpu"]).num_processes
    changed += ["number of processes"] if environment["processes"] != processes else []
    if changed:
        raise RunError(
            f"{root}: the interrupted run began with another {', '.join(changed)} (see {run.recipe} and {run.environment}). "
            "Go on with what it began with, or start again with --overwrite."
        )
    return checkpoint


def open_run_dir(run: RunDir, preflight: Preflight, checkpoint: Path | None) -> None:
    """Write what is known before training; a run that starts at step 0 replaces what is there."""
    state = join_processes(preflight.recipe.trl["use_cpu"])
    state.wait_for_everyone()  # each process has looked (find_start) before the main one changes anything
    if state.is_main_process:
        if checkpoint is None:
            if preflight.recipe.trl["resume_from_checkpoint"]:
                print(f"no checkpoint in {run.root}: starting at step 0", file=sys.stderr)
            run.clear()
            # First, as it marks the folder as a run: what is killed from here on can be started again.
            values = preflight.resolve_values()
            write_text(run.recipe, dump_yaml({key: values[key] for key in values if key != "resume_from_checkpoint"}))
            write_json_lines(run.train_log, [])
            for split in SPLITS:
                examples = preflight.splits[split]
                lines = [{"id": e.id, "toxic": e.toxic, "references": e.references} for e in examples]
                write_json_lines(run.split(split), lines)
            write_json(run.manifest, preflight.describe_data())
        else:
            trim_log(run, read_json(checkpoint / "trainer_state.json")["global_step"])
        write_json(run.environment, describe_environment(preflight, checkpoint, state.num_processes))
    state.wait_for_everyone()


def trim_log(run: RunDir, step: int) -> None:
    """Drop what an interrupted run logged after its last checkpoint: it will be done, and logged, again.

    The last line may have been cut off by the interruption.
    """
    lines = []
    for text in run.train_log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    write_json_lines(run.train_log, [line for line in lines if line["step"] <= step])


def describe_environment(preflight: Preflight, checkpoint: Path | None, processes: int) -> dict[str, Any]:
    """Return versions, hardware, git commit, seeds, base, command, and what the recipe asked for of what was settled."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_from": checkpoint.name if checkpoint else None,
        "command": shlex.join(sys.argv),
        "processes": processes,
        "base": preflight.base.describe(),
        "parameters": {"trainable": preflight.parameters[0], "total": preflight.parameters[1]},
        "asked": preflight.asked,
        "estimated_memory_gib": preflight.fit.describe() if preflight.fit else None,
        "seeds": {key: preflight.recipe.trl[key] for key in ("seed", "data_seed")} | {"split": preflight.recipe.data.seed},
        "git_commit": read_git_commit(),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": {"gpus": gpus, "cpu": platform.processor() or platform.machine(), "cpu_count": os.cpu_count()},
    }


def read_git_commit() -> str | None:
    """Return the project's commit, with "+changes" where the work tree differs from it; None outside git."""
    try:
        command = ["git", "-C", str(PROJECT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def record_training(trainer: SFTTrainer, run: RunDir) -> None:
    """Record what the training took, and draw its loss."""
    if not trainer.accelerator.is_main_process:
        return
    environment = read_json(run.environment)
    log = read_json_lines(run.train_log)
    gpu = torch.cuda.is_available() and not trainer.args.use_cpu
    environment["training"] = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": log[-1]["seconds"],
        "train_seconds": log[-1]["train_seconds"],
        "samples_per_second": log[-1]["samples_per_second"],
        "validation_loss": [line["eval_loss"] for line in log if "eval_loss" in line],
        "peak_memory_gib": round(
            (torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30, 2
        ),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if "kg_co2eq" in log[-1]:
        country = load_recipe(run.recipe).publish.emissions_country
        tool = f"codecarbon {importlib.metadata.version('codecarbon')}"
        environment["training"]["emissions"] = {"kg_co2eq": log[-1]["kg_co2eq"], "country": country, "estimated_by": tool}
    write_json(run.environment, environment)
    plot_loss(log, run.plots / "loss.png")


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Draw training and validation loss over steps."""
    with draw_figure(path) as axes:
        for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        axes.set(xlabel="step", ylabel="loss on answer tokens (nats)", title="Loss")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()


# --------------------------------------------------------------------------------------------------------- trainer


class LengthSampler(Sampler[int]):
    """Row indices in random order, like lengths together; the order depends on seed and epoch alone.

    transformers' own sampler draws from the global generator, so that a resumed run would see other batches.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class Trainer(SFTTrainer):
    """TRL's SFTTrainer, mended where a resumed run would go another way than one without a break."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or isinstance(dataset, IterableDataset):
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthSampler(lengths, self.args.train_batch_size * self.args.gradient_accumulation_steps, seed)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        # TRL trains a 4-bit model's adapter in bf16, and peft loads it back as float32.
        types = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in self.model.named_parameters():
            parameter.data = parameter.data.to(types[name])


def pack_rows(rows: list[dict[str, list[int]]], max_length: int) -> Dataset:
    """Put several rows into one of at most `max_length` tokens; `seq_lengths` says where each ends.

    Their first tokens are not scored: a model never predicts them from what stands before.
    """
    starts = [{"input_ids": row["input_ids"], "labels": [-100, *row["labels"][1:]]} for row in rows]
    return pack_dataset(Dataset.from_list(starts), max_length, "bfd")


def stream_rows(preflight: Preflight, config: SFTConfig) -> IterableDataset:
    """Return the training rows of a streamed corpus, for a trainer whose processes each take their part of a batch."""
    # Else the main process would deal out batches of one width.
    config.accelerator_config.dispatch_batches = False
    batch_size = config.train_batch_size * config.gradient_accumulation_steps
    arguments = {
        "config": preflight.recipe.data,
        "corpus": preflight.corpus,
        "held_out": [example for split in ("validation", "test") for example in preflight.splits[split]],
        "tokenizer": preflight.tokenizer,
        "max_length": config.max_length,
        "completion_only": config.completion_only_loss is not False,
        "batch_size": batch_size if config.train_sampling_strategy == "group_by_length" else None,
        "seed": config.seed if config.data_seed is None else config.data_seed,
    }
    return IterableDataset.from_generator(partial(stream_training_rows, **arguments))


def build_trainer(
    preflight: Preflight, model: PreTrainedModel, run: RunDir, checkpoint: Path | None, console: Console
) -> Trainer:
    """Return the trainer, for rows that are tokenised already; its progress goes to `console`."""
    evaluates = preflight.recipe.trl["eval_strategy"] != "no"
    packed = preflight.recipe.trl["packing"] and preflight.config.model_type == "bloom"
    config = build_sft_config(preflight.recipe, run, packed)
    config.eval_on_start = config.eval_on_start and checkpoint is None
    # TensorBoard's own default lies in output_dir, which is removed with the checkpoints.
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.root / "logs"))
    rows = preflight.tokens["train"].rows
    if preflight.recipe.data.streaming:
        dataset = stream_rows(preflight, config)
    else:
        dataset = pack_rows(rows, config.max_length) if packed else Dataset.from_list(rows)
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=dataset,
        eval_dataset=Dataset.from_list(preflight.tokens["validation"].rows) if evaluates else None,
        processing_class=preflight.tokenizer,
        data_collator=DataCollatorForLanguageModeling(preflight.tokenizer.pad_token_id, return_position_ids=True)
        if packed
        else None,
        peft_config=get_peft_config(build_model_config(preflight.recipe)),
    )
    plain = preflight.recipe.trl["attn_implementation"] == "eager"
    choose_loss(plain)
    if config.use_cpu and not plain:
        quicken_dropout(trainer.model)
    if config.use_cpu and trains_in_float32(preflight.recipe):
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    samples_per_row = len(rows) / len(dataset) if packed else 1.0
    country = preflight.recipe.publish.emissions_country
    tracker = start_tracker(country) if country and trainer.is_world_process_zero() else None
    trainer.add_callback(ProgressLog(run, samples_per_row, console, tracker))
    return trainer


class ProgressLog(TrainerCallback):
    """Progress on the terminal, and a line a logging step in train.jsonl; on the main process alone.

    A line holds `step`, `epoch`, `seconds` since the start, `train_seconds` spent in training steps (without validation,
    checkpoints and start-up), `samples_per_second` over these, and TRL's own figures: `loss` (nats a scored token),
    `learning_rate`, `grad_norm`, …, or `eval_loss`. With a tracker (see `start_tracker`) there is `kg_co2eq`, too,
    what codecarbon estimates that this machine has emitted for it. All of them count on after an interruption, without what
    was lost in it, and done again. The last line sums up.
    """

    def __init__(self, run: RunDir, samples_per_row: float, console: Console, tracker: Any) -> None:
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

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            log = read_json_lines(self.run.train_log)
            self.earlier: float = log[-1]["seconds"] if log else 0.0
            self.train_seconds: float = log[-1]["train_seconds"] if log else 0.0
            self.trained_before = self.train_seconds
            self.emitted: float = log[-1].get("kg_co2eq", 0.0) if log else 0.0
            self.flushed: float = 0.0
            self.begin, self.first_step = time.monotonic(), state.global_step
            self.progress.update(self.task, total=state.max_steps, completed=state.global_step)
            self.progress.start()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.step_begin = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.train_seconds += time.monotonic() - self.step_begin
            self.progress.update(self.task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not ("loss" in logs or "eval_loss" in logs):
            return
        line = self.start_line(args, state)
        if "loss" in logs:
            text = f"loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  {line['samples_per_second']:.1f} samples/s"
            self.progress.update(self.task, description=text)
        else:
            text = f"validation loss {logs['eval_loss']:.4f}"
        self.write_line(line | {key: value for key, value in logs.items() if key not in line})
        if not self.console.is_terminal or "eval_loss" in logs:
            done = state.global_step - self.first_step
            left = (self.train_seconds - self.trained_before) / max(1, done) * (state.max_steps - state.global_step)
            clock = f"{int(left) // 60}:{int(left) % 60:02d} left" if done else ""
            self.console.print(f"step {state.global_step}/{state.max_steps}  {text}  {clock}".rstrip(), highlight=False)

    def start_line(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        speed = state.global_step * batch * self.samples_per_row / self.train_seconds if self.train_seconds else 0.0
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
        with self.run.train_log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.progress.stop()
            self.write_line(self.start_line(args, state) | {"finished": True})
            if self.tracker:
                self.tracker.stop()


def start_tracker(country: str) -> Any:
    """Return codecarbon's running tracker of this machine's emissions, with the power grid of a country; it asks no network.

    Raises:
        RunError: it does not run here.
    """
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.ERROR)
    # What is named here can't be set otherwise by codecarbon's own files and variables: they would send, or ask for, figures.
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
        raise RunError("codecarbon could not measure on this machine (see above). Leave out publish.emissions_country.")
    return tracker
