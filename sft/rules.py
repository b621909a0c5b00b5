"""What a recipe's values may be: ranges of single keys, and keys that may not stand together, by subject."""

import os
import re
from collections.abc import Iterator
from typing import Any

from sft.idle import find_idle_keys
from sft.schema import BASELINES, PROTOCOLS, Recipe, RecipeError

POSITIVE = {
    "lora_r", "lora_alpha", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "eval_steps",
    "save_steps", "per_device_eval_batch_size", "gradient_accumulation_steps", "logging_steps",
    "adam_epsilon", "save_total_limit",
    "eval.batch_size", "eval.num_beams", "eval.max_new_tokens",
}  # fmt: skip
NOT_NEGATIVE = {
    "warmup_steps", "weight_decay", "max_grad_norm", "eval_delay", "seed", "data_seed",
    "dataloader_num_workers", "neftune_noise_alpha", "data.seed", "data.swaps", "data.inserts",
    "eval.samples",
}  # fmt: skip
BELOW_ONE = {
    "lora_dropout",
    "label_smoothing_factor",
    "adam_beta1",
    "adam_beta2",
    "data.validation",
    "data.test",
}


MOST = {  # where more would be a slip of the pen, or would not end
    "seed": 2**32 - 1, "data_seed": 2**32 - 1,  # numpy takes no larger one
    "lora_r": 4096, "num_train_epochs": 1e6, "gradient_accumulation_steps": 1e6,
    "data.swaps": 100, "data.inserts": 100,
    "per_device_train_batch_size": 1e6, "per_device_eval_batch_size": 1e6, "dataloader_num_workers": 1024,
    "eval.batch_size": 4096, "eval.num_beams": 64, "eval.max_new_tokens": 4096, "eval.samples": 1e6,
}  # fmt: skip
LARGEST = 10**12  # of any other number
LONGEST_NAME = 255  # of a file or folder, in bytes


def check_range(key: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    most = MOST.get(key, LARGEST)
    if value > most or (isinstance(value, int) and value < -LARGEST):
        found = f"{value:,}" if abs(value) < 10**20 else f"{value:.3g}"
        raise RecipeError(f"found {found}, expected {most:,.0f} at most.")
    for keys, fits, expected in (
        (POSITIVE, value > 0, "more than 0"),
        (NOT_NEGATIVE, value >= 0, "0 or more"),
        (BELOW_ONE, 0 <= value < 1, "at least 0 and below 1"),
    ):
        if key in keys and not fits:
            raise RecipeError(f"found {value}, expected {expected}.")
    if key == "max_length" and value < 16:
        raise RecipeError(
            f"found {value}, expected at least 16 tokens (the prompt alone takes a dozen), or null."
        )


def find_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    """Yield the faults that need two keys, or a look at what is there; none needs the network or torch."""
    yield from find_missing(recipe)
    yield from find_name_conflicts(recipe)
    yield from find_adapter_conflicts(recipe)
    yield from find_precision_conflicts(recipe)
    yield from find_share_conflicts(recipe)
    yield from find_stream_conflicts(recipe)
    yield from find_evaluation_conflicts(recipe)
    yield from find_column_conflicts(recipe)
    yield from find_scoring_conflicts(recipe)
    yield from find_publish_conflicts(recipe)
    yield from find_idle_keys(recipe)


def find_missing(recipe: Recipe) -> Iterator[RecipeError]:
    if not recipe.trl["model_name_or_path"]:
        message = "is missing. Expected a Hub id or a folder, such as bigscience/bloom-560m."
        yield RecipeError(message, "model_name_or_path")
    if not recipe.data.source:
        yield RecipeError(
            "is missing. Expected a Hub id, a file or a folder, such as s-nlp/paradetox.", "data.source"
        )


def find_name_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    long = [part for part in recipe.output_dir.parts if len(os.fsencode(part)) > LONGEST_NAME]
    if long:
        found = f"found a name of {len(long[0])} characters in it"
        yield RecipeError(f"{found}, and file systems take {LONGEST_NAME} bytes at most.", "output_dir")


def find_adapter_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    trl = recipe.trl
    if trl["lora_task_type"] != "CAUSAL_LM":
        found = f"found {trl['lora_task_type']!r}, and this project trains causal language models"
        yield RecipeError(f"{found}. Expected CAUSAL_LM.", "lora_task_type")
    quantised = [key for key in ("load_in_4bit", "load_in_8bit") if trl[key]]
    if len(quantised) == 2:
        yield RecipeError("4 bit and 8 bit at once. Keep one.", "load_in_8bit")
    if trl["use_peft"]:
        return
    for key in quantised:
        yield RecipeError("quantised weights can't be trained without LoRA. Add use_peft: true.", key)
    if useless := [key for key in sorted(recipe.given) if key.startswith("lora_")]:
        yield RecipeError("has no effect without use_peft: true.", useless[0])
    if not quantised:
        yield RecipeError("this project trains adapters. Expected true.", "use_peft")


def find_precision_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    trl = recipe.trl
    if trl["bf16"] and trl["fp16"]:
        yield RecipeError("bf16 and fp16 at once. Keep one.", "fp16")
    if trl["load_in_4bit"] and trl["dtype"] == "auto":
        message = "'auto' names no compute type for 4-bit weights. Expected bfloat16 or float32."
        yield RecipeError(message, "dtype")


def find_share_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    data = recipe.data
    if data.validation + data.test >= 1:
        shares = f"validation {data.validation:g} and test {data.test:g}"
        yield RecipeError(
            f"{shares} leave nothing to train on. Their sum must stay below 1.",
            "data.validation" if data.validation > data.test else "data.test",
        )
    if data.test == 0:
        message = "without test sentences no score can be believed. Expected a share above 0."
        yield RecipeError(message, "data.test")
    if data.validation == 0 and recipe.trl["eval_strategy"] != "no":
        yield RecipeError("needs validation sentences, and data.validation is 0.", "eval_strategy")


def find_stream_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    trl, data = recipe.trl, recipe.data
    if not data.streaming:
        return
    if trl["max_steps"] <= 0:
        yield RecipeError("a stream has no end. Expected the number of steps.", "max_steps")
    needing_all = {"packing": trl["packing"]}
    needing_all |= {
        f"data.{name}": getattr(data, name) for name in ("closest", "swaps", "inserts", "targets")
    }
    for key, value in needing_all.items():
        if value:
            message = "needs the whole corpus in memory, and data.streaming is true. Keep one."
            yield RecipeError(message, key)


def find_evaluation_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    trl = recipe.trl
    if trl["load_best_model_at_end"] and trl["eval_strategy"] == "no":
        yield RecipeError("needs eval_strategy: steps or epoch.", "load_best_model_at_end")
    if trl["save_strategy"] == "best" and (trl["eval_strategy"] == "no" or not trl["metric_for_best_model"]):
        message = "'best' needs eval_strategy: steps or epoch, and metric_for_best_model: loss."
        yield RecipeError(message, "save_strategy")
    if trl["metric_for_best_model"] not in (None, "loss", "eval_loss"):
        found = f"found {trl['metric_for_best_model']!r}, and training measures the loss alone"
        message = f"{found}: BLEU, ROUGE and chrF come from eval/run.py. Expected loss."
        yield RecipeError(message, "metric_for_best_model")


def find_column_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    data = recipe.data
    if data.neutral is not None and (not data.neutral or data.toxic in data.neutral):
        yield RecipeError("expected at least one column, and not the toxic one.", "data.neutral")
    if data.neutral and not data.toxic:
        message = "names the rewrites' columns, but data.toxic does not name the sentence's."
        yield RecipeError(message, "data.neutral")


def find_scoring_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    for key, names, known in (
        ("eval.baselines", recipe.eval.baselines, BASELINES),
        ("eval.protocols", recipe.eval.protocols, PROTOCOLS),
    ):
        for name in names:
            if name not in known:
                yield RecipeError(f"found {name!r}, expected some of {', '.join(known)}.", key)
    for pin in recipe.eval.pins:
        if not all(pin.partition("@")):
            yield RecipeError(
                f"found {pin!r}, expected model@commit, such as owner/name@0123abc.", "eval.pins"
            )


def find_publish_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    repo_id, country = recipe.publish.repo_id, recipe.publish.emissions_country
    if repo_id and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        yield RecipeError(f"found {repo_id!r}, expected owner/name.", "publish.repo_id")
    if country and not re.fullmatch("[A-Z]{3}", country):
        message = f"found {country!r}, expected a country's three letters (ISO 3166), such as FRA."
        yield RecipeError(message, "publish.emissions_country")
