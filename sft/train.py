"""Training: open the run directory, build TRL's SFTTrainer, show and log its progress, close the run."""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from rich.console import Console
from torch.utils.data import Sampler
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig, SFTTrainer, get_peft_config, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft.bloom import quicken_dropout
from sft.command import RunError
from sft.elastic import Segment, divide_batch, list_segments
from sft.loss import choose_loss
from sft.machine import Machine
from sft.model import LOWER, build_model_config, build_sft_config, holds_finite, trains_in_float32
from sft.plots import plot_loss
from sft.preflight import Preflight
from sft.progress import ProgressLog, start_tracker
from sft.recipe import dump_yaml
from sft.records import Environment, LogLine, TrainerState
from sft.run_dir import (
    Run,
    find_training,
    hash_training,
    list_checkpoints,
    name_beside,
    replace_run,
    settle_replacement,
)
from sft.splits import SPLITS
from sft.storage import PROJECT, read_json, read_json_lines, write_json, write_json_lines, write_text
from sft.stream import RowSettings, stream_training_rows

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "bitsandbytes",
    "accelerate",
    "evaluate",
    "huggingface_hub",
)


# -------------------------------------------------------------------------------------- opening and closing


def choose_run(preflight: Preflight, overwrite: bool) -> Run:
    """Return the run that this training works in: one beside the finished run that it replaces at its end."""
    root, state = Path(preflight.recipe.output_dir), preflight.machine.processes
    if state.is_main_process:
        settle_replacement(root)
        new = Run(name_beside(root, "new"))
        if new.is_finished() and Run(root).is_finished():  # killed before it took the other's place
            replace_run(new, Run(root))
    state.wait_for_everyone()
    return find_training(root, overwrite, bool(preflight.recipe.trl["resume_from_checkpoint"]))


def settle_run(run: Run, preflight: Preflight) -> Run:
    """Return the finished run in its place, after replacing the one that was there."""
    finished = Run(preflight.recipe.output_dir)
    if run != finished and preflight.machine.processes.is_main_process:
        replace_run(run, finished)
    preflight.machine.processes.wait_for_everyone()
    return finished


def is_done(run: Run, preflight: Preflight) -> bool:
    """Say whether this training is finished.

    Raises:
        RunError: another one's finished run is there.
    """
    if not (run.is_run() and run.is_finished()):
        return False
    changed = find_changes(run, preflight)
    if changed:
        raise RunError(
            f"{run.root}: a finished run is here, of another {', '.join(changed)} (see {run.recipe_path}). "
            "--overwrite replaces it, --output_dir FOLDER puts the new one elsewhere."
        )
    return True


def find_start(run: Run, preflight: Preflight, overwrite: bool, elastic: bool = False) -> Path | None:
    """Return the checkpoint that the run goes on from, or None to start at step 0. Writes nothing.

    An `elastic` run may go on with another number of processes.

    Raises:
        RunError: the folder holds something else, a finished run, an interrupted run that was not asked to go
            on, or one of another recipe, base, prompt, data or number of processes.
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
            f"{root}: a finished run is here. "
            "--overwrite replaces it, --output_dir FOLDER puts the new one elsewhere."
        )
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        return None
    if not preflight.recipe.trl["resume_from_checkpoint"]:
        raise RunError(
            f"{root}: an interrupted run is here, with {checkpoint.name}. "
            "--resume_from_checkpoint true goes on from it, --overwrite starts again."
        )
    changed = find_changes(run, preflight)
    environment = read_json(run.environment_path, Environment)  # not kept: it is written anew
    processes, sharding = preflight.machine.processes.num_processes, preflight.machine.sharding
    if environment["processes"] != processes and not (elastic and sharding != "deepspeed"):
        changed.append("number of processes")
    if environment.get("sharding", sharding) != sharding:
        changed.append("sharding")
    if changed:
        raise RunError(
            f"{root}: the interrupted run began with another {', '.join(changed)} "
            f"(see {run.recipe_path} and {run.environment_path}). "
            "Go on with what it began with, or start again with --overwrite."
        )
    divide_batch(preflight, list_segments(run, preflight, checkpoint))
    return checkpoint


def agree_on_start(run: Run, checkpoint: Path | None) -> None:
    """Wait until each process has looked at the run directory, before the main one changes it.

    Raises:
        RunError: they see different ones.
    """
    seen = set(gather_object([checkpoint.name if checkpoint else "no checkpoint"]))
    if len(seen) > 1:
        raise RunError(
            f"{run.root}: found {' and '.join(sorted(seen))}, by different processes. "
            "Expected an output_dir that all nodes share."
        )


def find_changes(run: Run, preflight: Preflight) -> list[str]:
    """Return what of recipe, data and base is not as in the run that is there."""
    before, now = run.recipe.values(), preflight.resolve_values()
    changed = [
        key for key in now if key not in ("resume_from_checkpoint", "output_dir") and before[key] != now[key]
    ]
    described = preflight.describe_data()
    changed += [key for key in ("splits", "prompt", "targets") if run.manifest[key] != described[key]]
    base = read_json(run.environment_path, Environment)["base"]
    return changed + (["base model"] if base != preflight.base.describe() else [])


def open_run_dir(run: Run, preflight: Preflight, checkpoint: Path | None) -> None:
    """Write what is known before training; a run that starts at step 0 replaces what is there."""
    state = preflight.machine.processes
    state.wait_for_everyone()  # each process has looked (find_start) before the main one changes anything
    if state.is_main_process:
        if checkpoint is None:
            if preflight.recipe.trl["resume_from_checkpoint"]:
                print(f"no checkpoint in {run.root}: starting at step 0", file=sys.stderr)
            run.clear()
            # First, as it marks the folder as a run: what is killed from here on can be started again.
            values = preflight.resolve_values()
            write_text(
                run.recipe_path,
                dump_yaml({key: values[key] for key in values if key != "resume_from_checkpoint"}),
            )
            write_json_lines(run.log_path, [])
            for split in SPLITS:
                examples = preflight.splits[split]
                lines = [{"id": e.id, "toxic": e.toxic, "references": e.references} for e in examples]
                write_json_lines(run.split_path(split), lines)
            write_json(run.manifest_path, preflight.describe_data())
        else:
            state_path = checkpoint / "trainer_state.json"
            trained = read_json(state_path, TrainerState)
            if best := trained.get("best_model_checkpoint"):  # the folder may have been moved
                write_json(
                    state_path, trained | {"best_model_checkpoint": str(run.checkpoints / Path(best).name)}
                )
            trim_log(run, trained["global_step"])
        segments = list_segments(run, preflight, checkpoint)
        environment = describe_environment(preflight, checkpoint, segments)
        # Of the file as it is read back: `run` keeps what it has read, and may have read another.
        environment["recipe_sha256"] = hash_training(Run(run.root).recipe.values())
        write_json(run.environment_path, environment)
    state.wait_for_everyone()


def trim_log(run: Run, step: int) -> None:
    """Drop what an interrupted run logged after its last checkpoint: it will be done, and logged, again.

    The last line may have been cut off by the interruption.
    """
    lines = []
    for text in run.log_path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    write_json_lines(
        run.log_path,
        [line for line in lines if isinstance(line, dict) and line.get("step", step + 1) <= step],
    )


def describe_environment(
    preflight: Preflight, checkpoint: Path | None, segments: list[Segment]
) -> dict[str, Any]:
    """Return versions, hardware, commit, seeds, base, command, and what the recipe asked for of SETTLED."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_from": checkpoint.name if checkpoint else None,
        "command": shlex.join(sys.argv),
        "processes": segments[-1]["processes"],
        "elastic": segments if len(segments) > 1 else None,
        "sharding": preflight.machine.sharding,
        "base": preflight.base.describe(),
        "parameters": {"trainable": preflight.parameters[0], "total": preflight.parameters[1]},
        "asked": preflight.asked,
        "estimated_memory_gib": preflight.fit.describe() if preflight.fit else None,
        "seeds": {key: preflight.recipe.trl[key] for key in ("seed", "data_seed")}
        | {"split": preflight.recipe.data.seed},
        "git_commit": read_git_commit(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "hardware": {
            "gpus": list(preflight.machine.gpus),
            "cpu": platform.processor() or platform.machine(),
            "cpu_count": os.cpu_count(),
        },
    }


def read_git_commit() -> str | None:
    """Return the project's commit, with "+changes" where the work tree differs from it; None outside git."""
    try:
        command = [
            "git",
            "-C",
            str(PROJECT),
            "describe",
            "--always",
            "--abbrev=40",
            "--exclude=*",
            "--dirty=+changes",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def record_training(trainer: SFTTrainer, run: Run, machine: Machine) -> None:
    """Record what the training took, and draw its loss."""
    if not trainer.accelerator.is_main_process:
        return
    environment = read_json(run.environment_path, Environment)
    log = read_json_lines(run.log_path, LogLine)
    environment["training"] = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": log[-1]["seconds"],
        "train_seconds": log[-1]["train_seconds"],
        "samples_per_second": log[-1]["samples_per_second"],
        "validation_loss": [line["eval_loss"] for line in log if "eval_loss" in line],
        "peak_memory_gib": round(machine.measure_peak() / 2**30, 2),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if environment["elastic"]:
        environment["training"]["elastic"] = environment["elastic"]
    if "kg_co2eq" in log[-1]:
        country = run.recipe.publish.emissions_country
        tool = f"codecarbon {importlib.metadata.version('codecarbon')}"
        environment["training"]["emissions"] = {
            "kg_co2eq": log[-1]["kg_co2eq"],
            "country": country,
            "estimated_by": tool,
        }
    write_json(run.environment_path, environment)
    plot_loss(log, run.plots / "loss.png")


# -------------------------------------------------------------------------------------------------- trainer


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
    """TRL's SFTTrainer, mended where a resumed run would go another way than one without a break.

    Its batches of like lengths are drawn for a step of all processes, so that any number sees the same rows.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = train_dataset or self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or isinstance(dataset, IterableDataset):
            return super()._get_train_sampler(train_dataset)
        lengths = [len(ids) for ids in dataset["input_ids"]]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthSampler(lengths, count_step_rows(self.args), seed)

    def _run_epoch(self, **arguments: Any) -> None:
        # transformers looks whether a training is finished after each step: one that was killed between its
        # last checkpoint and its end would make one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**arguments)

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Do a step of the loop; a loss that is not finite ends the training: no later step mends it.

        Raises:
            RunError: on every process, the loss of one of them is not finite.
        """
        loss = super().training_step(*arguments, **options)
        finite = torch.isfinite(loss.detach()).all().int()
        if self.args.world_size > 1:
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
        if not finite:
            root = Path(self.args.output_dir).parent
            found = [path for path in list_checkpoints(root / "checkpoints") if holds_finite(path)]
            kept = (
                f"The last good checkpoint is {found[-1]}." if found else "There is no checkpoint of before."
            )
            raise RunError(
                f"{root}: the loss of step {self.state.global_step + 1} is not finite: it has diverged. "
                f"{kept} {LOWER}"
            )
        return loss

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: PreTrainedModel | None = None
    ) -> None:
        # TRL trains a 4-bit model's adapter in bf16, and peft loads it back as float32.
        types = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in self.model.named_parameters():
            parameter.data = parameter.data.to(types[name])


def count_step_rows(config: SFTConfig) -> int:
    """Return the number of rows of an optimizer step, over all processes."""
    return config.train_batch_size * config.gradient_accumulation_steps * config.world_size


def pack_rows(rows: list[dict[str, list[int]]], max_length: int) -> Dataset:
    """Put several rows into one of at most `max_length` tokens; `seq_lengths` says where each ends.

    Their first tokens are not scored: a model never predicts them from what stands before.
    """
    starts = [{"input_ids": row["input_ids"], "labels": [-100, *row["labels"][1:]]} for row in rows]
    return pack_dataset(Dataset.from_list(starts), max_length, "bfd")


def stream_rows(preflight: Preflight, config: SFTConfig) -> IterableDataset:
    """Return the training rows of a streamed corpus; each process takes its part of a batch."""
    # Else the main process would deal out batches of one width.
    config.accelerator_config.dispatch_batches = False
    arguments = {
        "config": preflight.recipe.data,
        "corpus": preflight.corpus,
        "held_out": [example for split in ("validation", "test") for example in preflight.splits[split]],
        "tokenizer": preflight.tokenizer,
        "settings": RowSettings(
            config.max_length,
            completion_only=config.completion_only_loss is not False,
            batch_size=count_step_rows(config)
            if config.train_sampling_strategy == "group_by_length"
            else None,
            seed=config.seed if config.data_seed is None else config.data_seed,
        ),
    }
    return IterableDataset.from_generator(partial(stream_training_rows, **arguments))


def make_trainer(
    preflight: Preflight,
    model: PreTrainedModel,
    run: Run,
    checkpoint: Path | None,
    kind: "type[Trainer]" = Trainer,
) -> Trainer:
    """Return the trainer, for rows that are tokenised already."""
    evaluates = preflight.recipe.trl["eval_strategy"] != "no"
    packed = preflight.recipe.trl["packing"] and preflight.config.model_type == "bloom"
    config = build_sft_config(preflight.recipe, run, preflight.machine, packed)
    config.eval_on_start = config.eval_on_start and checkpoint is None
    for key, value in divide_batch(preflight, list_segments(run, preflight, checkpoint)).items():
        setattr(config, key, value)
    rows = preflight.tokens["train"].rows
    if preflight.recipe.data.streaming:
        dataset = stream_rows(preflight, config)
    else:
        dataset = pack_rows(rows, config.max_length) if packed else Dataset.from_list(rows)
    trainer = kind(
        model=model,
        args=config,
        train_dataset=dataset,
        eval_dataset=Dataset.from_list(preflight.tokens["validation"].rows) if evaluates else None,
        processing_class=preflight.tokenizer,
        data_collator=DataCollatorForLanguageModeling(
            preflight.tokenizer.pad_token_id, return_position_ids=True
        )
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
    return trainer


def build_trainer(
    preflight: Preflight, model: PreTrainedModel, run: Run, checkpoint: Path | None, console: Console
) -> Trainer:
    """Return the trainer of a run; its progress goes to `console`."""
    trainer = make_trainer(preflight, model, run, checkpoint)
    for callback in trainer.callback_handler.callbacks:
        # TensorBoard's own default lies in output_dir, which is removed with the checkpoints.
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(run.root / "logs")
    packed = preflight.recipe.trl["packing"] and preflight.config.model_type == "bloom"
    rows = preflight.tokens["train"].rows
    samples_per_row = len(rows) / len(trainer.train_dataset) if packed else 1.0
    country = preflight.recipe.publish.emissions_country
    tracker = start_tracker(country) if country and trainer.is_world_process_zero() else None
    trainer.add_callback(ProgressLog(run, samples_per_row, console, tracker))
    return trainer
