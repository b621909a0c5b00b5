"""One side of a comparison, in a process of its own: python tests/benchmarks/measure.py JOB.json (train.py writes the job).

The side's own script runs as it is, with a clock among the trainer's callbacks: how fast it trains, what memory it takes
and what it has learnt are asked of the three sides in the same way.
"""

import json
import math
import os
import runpy
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

START = float(os.environ["BENCHMARK_START"])  # seconds since the epoch, from before the process was started
WIDTH = 128  # tokens that each row is padded to, or cut at, in the report's way


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    clock = install_clock(job)
    if job["side"] == "report":
        train_report(job, clock)
    elif job["side"] == "trl sft":
        sys.argv = ["trl sft", "--config", job["config"]]
        runpy.run_module("trl.scripts.sft", run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["sft/run.py", *job["arguments"], "--overwrite"]
        runpy.run_path("sft/run.py", run_name="__main__")
    Path(job["out"]).write_text(json.dumps(clock.result))


def install_clock(job: dict[str, Any]) -> Any:
    """Put a clock into every transformers Trainer of this process, and return it; `result` is there after the training.

    A step's time runs from the end of the step before to its own end, so that fetching rows, the optimizer and the
    callbacks count; on a GPU each step's end waits for the GPU. Throughput is over all steps but the first `warmup`.
    """
    import torch
    import transformers
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.samples: list[int] = []  # for each micro-batch
            self.labelled: list[int] = []
            self.marks: list[int] = []  # micro-batches done at the end of each step
            self.answers: deque[int] = (
                deque()
            )  # the report's way scores prompts too: the answer tokens of its batches
            self.result: dict[str, float] = {}

        def on_step_end(self, args: Any, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available() and not args.use_cpu:
                torch.cuda.synchronize()
            self.ends.append(time.time())
            self.marks.append(len(self.samples))

        def on_train_end(self, args: Any, *_: Any, model: Any = None, **__: Any) -> None:
            gpu = torch.cuda.is_available() and not args.use_cpu
            peak = torch.cuda.max_memory_allocated() if gpu else read_peak()
            warmup = job["warmup"]
            seconds = self.ends[-1] - self.ends[warmup - 1]
            first = self.marks[warmup - 1]
            self.result.update(
                samples_per_second=sum(self.samples[first:]) / seconds,
                labelled_tokens_per_second=sum(self.labelled[first:]) / seconds,
                peak_memory_gib=peak / 2**30,
                first_step_seconds=self.ends[0] - START,
                held_out_loss=score_rows(model, job["held_out"]),
                steps=len(self.ends),
                samples=sum(self.samples),
            )

    clock = Clock()
    DEFAULT_CALLBACKS.append(clock)
    plain_step = transformers.Trainer.training_step

    def counted_step(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        labels = inputs["labels"]
        ends = int(
            (labels == job["end"]).sum()
        )  # each sample's answer ends so, also where several share a row
        clock.samples.append(max(ends, labels.shape[0]))
        clock.labelled.append(clock.answers.popleft() if clock.answers else int((labels != -100).sum()))
        return plain_step(self, model, inputs, *rest, **named)

    transformers.Trainer.training_step = counted_step
    return clock


def read_peak() -> int:
    """Return the bytes that this process had in memory at its peak."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def score_rows(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Return the mean loss in nats over the answer tokens of held-out rows: the same rows and sum for every side."""
    import torch

    from sft.machine import has_bfloat16

    inner = getattr(model, "module", model).get_base_model()
    inner.eval()
    for module in inner.modules():  # as in sft.model.load_base
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    device = next(inner.parameters()).device
    total, count = 0.0, 0
    in_bfloat16 = device.type != "cpu" or has_bfloat16()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
        for row in rows:
            labels = torch.tensor(row["labels"][1:], device=device)
            hidden = inner.transformer(torch.tensor([row["input_ids"]], device=device)).last_hidden_state[
                0, :-1
            ]
            logits = inner.lm_head(hidden[labels != -100]).float()
            total += float(torch.nn.functional.cross_entropy(logits, labels[labels != -100], reduction="sum"))
            count += len(logits)
    return total / count if count else math.nan


def train_report(job: dict[str, Any], clock: Any) -> None:
    """Train as the report did: transformers' own Trainer, rows padded to 128 tokens, the loss on prompt and answer."""
    import torch
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments
    from trl import get_peft_config

    from sft.model import build_model_config, load_base, load_tokenizer, resolve_base
    from sft.recipe import load_recipe

    recipe = load_recipe(job["arguments"][0], [*job["arguments"][1:], "--attn_implementation", "eager"])
    trl = recipe.trl
    base = resolve_base(trl["model_name_or_path"])
    pad = load_tokenizer(base, trl["pad_token"], trl["eos_token"]).pad_token_id

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        ids = [row["input_ids"][:WIDTH] for row in batch]
        clock.answers.append(sum(label != -100 for row in batch for label in row["labels"][:WIDTH]))
        tokens = torch.tensor([row + [pad] * (WIDTH - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (WIDTH - len(row)) for row in ids])
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}

    keys = (
        "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
        "max_steps", "logging_steps", "save_strategy", "report_to", "bf16", "use_cpu", "seed", "optim",
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(Path(job["out"]).parent / "report"),
        gradient_checkpointing=trl["activation_checkpointing"],
        remove_unused_columns=False,
        disable_tqdm=True,
        **{key: trl[key] for key in keys},
    )
    model = get_peft_model(load_base(recipe, base), get_peft_config(build_model_config(recipe)))
    rows = json.loads(Path(job["rows"]).read_text())
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
