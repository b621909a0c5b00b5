"""The rehearsal: a recipe's trainer, built whole on a base without weights: what would not start is told.

Libraries refuse values in their own ways, some only when a training begins; here each refusal becomes a fault
of the recipe, before anything is written.
"""

import contextlib
import copy
import dataclasses
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from trl import get_quantization_config

from sft.command import count
from sft.data import TokenRows, tokenise_texts
from sft.hub import first_line
from sft.idle import find_set_keys
from sft.model import build_model_config, build_on_meta, find_positions
from sft.preflight import Preflight
from sft.prompt import format_prompt
from sft.run_dir import Run
from sft.schema import Faults, RecipeError, RecipeFaults
from sft.train import Trainer, make_trainer, pack_rows

ROWS = 64  # of each split; as many as show what a trainer thinks of them
OPTIMIZER_KEYS = ("adam_beta1", "adam_beta2", "adam_epsilon")


class Rehearsed(Trainer):
    """A trainer whose model has no weights, and stays where it is."""

    def _move_model_to_device(self, model: PreTrainedModel, device: torch.device) -> None:
        pass


def rehearse(preflight: Preflight) -> None:
    """Build what a training begins with: model, trainer, optimizer, scheduler, a batch.

    Raises:
        RecipeFaults: the libraries refuse something.
    """
    faults = Faults()
    with keep_random_state():
        try:
            for error in find_start_faults(preflight):
                preflight.recipe.report(error, faults)
        except RecipeError as error:  # nothing can be built on it
            preflight.recipe.report(error, faults)
    if faults.lines:
        raise RecipeFaults(faults.lines, faults.status)


@contextlib.contextmanager
def keep_random_state() -> Iterator[None]:
    """Leave the generators as they were: the training that follows draws as if nothing had been built."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def attempt(preflight: Preflight, key: str | None, step: Callable[[], Any]) -> Any:
    """Return a step's result, or None where it can't be done without weights.

    Raises:
        RecipeError: a library refuses it; about the key that its message names, or else about `key`.
    """
    try:
        return step()
    except RecipeError:
        raise
    except Exception as error:  # refusals are of any kind, from AssertionError to ZeroDivisionError
        message = first_line(error)
        if "meta tensor" in str(error) or "meta device" in str(error):
            return None
        given = sorted(preflight.recipe.given, key=len, reverse=True)
        named = [name for name in given if re.search(rf"\b{name}\b", str(error))]
        if "PEFT" in message:
            named = ["lora_target_modules"]
        raise RecipeError(f"the training would not start: {message}", named[0] if named else key) from None


def find_start_faults(preflight: Preflight) -> Iterator[RecipeError]:
    """Yield what would stop the training at its start.

    Raises:
        RecipeError: a fault that leaves nothing to go on with.
    """
    recipe, config = preflight.recipe, build_model_config(preflight.recipe)
    is_bloom = preflight.config.model_type == "bloom"
    attempt(preflight, "bnb_4bit_quant_storage", lambda: get_quantization_config(config))
    model = attempt(
        preflight,
        "attn_implementation",
        lambda: build_on_meta(preflight.config, None if is_bloom else recipe.trl["attn_implementation"]),
    )
    if model is None:
        return
    yield from find_token_faults(preflight, model)
    yield from find_size_faults(preflight)
    yield from find_length_faults(preflight, model)
    if os.environ.get("ACCELERATE_USE_FSDP") or os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        return  # they take over the model when its trainer is built
    with tempfile.TemporaryDirectory() as folder:
        trainer = attempt(
            preflight,
            None,
            lambda: make_trainer(shorten(preflight), model, Run(Path(folder)), None, Rehearsed),
        )
        if trainer is None:
            return
        attempt(preflight, "optim", trainer.create_optimizer)
        yield from find_idle_optimizer_keys(preflight, trainer)
        if trainer.optimizer is not None:
            steps = max(recipe.trl["max_steps"], 100)
            build = partial(trainer.create_scheduler, steps, trainer.optimizer)
            attempt(preflight, "lr_scheduler_type", build)
        rows = list(trainer.train_dataset)[:2]
        attempt(preflight, "pad_to_multiple_of", lambda: trainer.data_collator(rows))


def shorten(preflight: Preflight) -> Preflight:
    """Return the preflight with some rows of each split, in memory."""
    tokens: dict[str, TokenRows] = {
        split: dataclasses.replace(rows, rows=rows.rows[:ROWS]) for split, rows in preflight.tokens.items()
    }
    data = dataclasses.replace(preflight.recipe.data, streaming=False)
    return dataclasses.replace(
        preflight, tokens=tokens, recipe=dataclasses.replace(preflight.recipe, data=data)
    )


def find_token_faults(preflight: Preflight, model: PreTrainedModel) -> Iterator[RecipeError]:
    """Yield the tokens that the base has no embedding of: its vocabulary is smaller than its tokenizer's."""
    tokenizer, most = preflight.tokenizer, model.get_input_embeddings().num_embeddings
    for key in ("pad_token", "eos_token"):
        number = getattr(tokenizer, f"{key}_id")
        if number >= most:
            found = f"{getattr(tokenizer, key)!r} is token {number:,}"
            yield RecipeError(f"{found}, and the base has embeddings of {most:,}. Name another.", key)
    largest = max((max(row["input_ids"]) for row in preflight.tokens["train"].rows), default=0)
    if largest >= most:
        message = f"its tokenizer writes token {largest:,}, and it has embeddings of {most:,}"
        yield RecipeError(f"{message}. Expected a base with its own tokenizer.", "model_name_or_path")


def find_length_faults(preflight: Preflight, model: PreTrainedModel) -> Iterator[RecipeError]:
    """Yield the sentences that the base has no positions for, in training or with an answer in evaluation."""
    positions, name = find_positions(model), preflight.base.name
    if positions is None:
        return
    longest = max(len(row["input_ids"]) for split in preflight.tokens.values() for row in split.rows)
    if preflight.recipe.trl["packing"] and preflight.recipe.trl["max_length"] is not None:
        longest = max(longest, preflight.recipe.trl["max_length"])
    if longest > positions:
        message = f"leaves rows of {longest:,} tokens, and {name} has learnt {positions:,} positions"
        yield RecipeError(f"{message}. Expected {positions} at most.", "max_length")
    answer = preflight.recipe.eval.max_new_tokens or preflight.tokens["train"].longest_answer
    prompts = [format_prompt(example.toxic) for example in preflight.splits["test"]]
    lengths = sorted(map(len, tokenise_texts(prompts, preflight.tokenizer)))
    long = [length for length in lengths if length + answer > positions]
    if long:
        yield RecipeError(
            f"{count(len(long), 'test sentence')} could not be evaluated: prompts of up to {long[-1]:,} "
            f"tokens with answers of up to {answer:,}, and {name} has learnt {positions:,} positions. Leave "
            "these sentences out of the data, or lower eval.max_new_tokens.",
            "data.source",
        )


def find_size_faults(preflight: Preflight) -> Iterator[RecipeError]:
    trl, rows = preflight.recipe.trl, preflight.tokens["train"].rows
    if not trl["dataloader_drop_last"] or preflight.recipe.data.streaming:
        return
    packed = trl["packing"] and preflight.config.model_type == "bloom"
    number = len(pack_rows(rows, trl["max_length"])) if packed else len(rows)
    batch = trl["per_device_train_batch_size"] * preflight.machine.processes.num_processes
    if number < batch:
        message = f"leaves no batch: found {number:,} training rows, and a batch takes {batch:,}"
        yield RecipeError(f"{message}. Expected false, or a smaller batch.", "dataloader_drop_last")


def find_idle_optimizer_keys(preflight: Preflight, trainer: Trainer) -> Iterator[RecipeError]:
    """Yield the keys that the optimizer does not read: without them it would be built the same."""
    trl = preflight.recipe.trl
    keys, built = find_set_keys(preflight.recipe), describe_optimizer(trainer)
    parts = (trl["optim_args"] or "").replace(" ", "").split(",")
    for part in parts:
        rest = [other for other in parts if other != part]
        if part and describe_optimizer(trainer, optim_args=",".join(rest)) == built:
            found = f"found {part}, which changes nothing of {trl['optim']}"
            yield RecipeError(f"{found}. Remove it, or choose the optimizer that it is for.", "optim_args")
    for key in OPTIMIZER_KEYS:
        if key in keys and describe_optimizer(trainer, **{key: 0.123}) == built:
            yield RecipeError(f"changes nothing of {trl['optim']}. Remove it.", key)


def describe_optimizer(trainer: Trainer, **changes: Any) -> str:
    """Return the optimizer's class and arguments as text, with other values for some keys."""
    arguments = copy.copy(trainer.args)
    for key, value in changes.items():
        setattr(arguments, key, value)
    kind, options = trainer.get_optimizer_cls_and_kwargs(arguments, trainer.model)
    return f"{kind} {sorted((name, str(value)) for name, value in options.items() if name != 'params')}"
