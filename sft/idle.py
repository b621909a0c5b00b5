"""Keys that change nothing beside the others of their recipe: whoever sets one believes that it does."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sft.schema import SECTIONS, Recipe, RecipeError
from sft.trl_keys import known_keys

Values = Mapping[str, Any]
# Keys, the key whose value leaves them without effect, whether it does, and what they need.
IDLE: tuple[tuple[tuple[str, ...], str, Callable[[Values], bool], str], ...] = (
    (("label_smoothing_factor",), "loss_type", lambda trl: trl["loss_type"] == "dft", "loss_type: nll"),
    (
        ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
        "load_in_4bit",
        lambda trl: not trl["load_in_4bit"],
        "load_in_4bit: true",
    ),
    (("packing_strategy",), "packing", lambda trl: not trl["packing"], "packing: true"),
    (("eval_steps",), "eval_strategy", lambda trl: trl["eval_strategy"] != "steps", "eval_strategy: steps"),
    (("save_steps",), "save_strategy", lambda trl: trl["save_strategy"] != "steps", "save_strategy: steps"),
    (
        ("save_total_limit",),
        "save_strategy",
        lambda trl: trl["save_strategy"] == "no",
        "save_strategy: steps or epoch",
    ),
    (
        ("eval_on_start", "eval_delay", "eval_accumulation_steps", "bf16_full_eval", "fp16_full_eval"),
        "eval_strategy",
        lambda trl: trl["eval_strategy"] == "no",
        "eval_strategy: steps or epoch",
    ),
    (
        ("metric_for_best_model", "greater_is_better"),
        "load_best_model_at_end",
        lambda trl: (
            not trl["load_best_model_at_end"]
            and trl["save_strategy"] != "best"
            and trl["lr_scheduler_type"] not in ("reduce_lr_on_plateau", "greedy")
        ),
        "load_best_model_at_end: true",
    ),
    (
        ("warmup_steps",),
        "lr_scheduler_type",
        lambda trl: trl["lr_scheduler_type"] == "constant",
        "lr_scheduler_type: constant_with_warmup",
    ),
    (("num_train_epochs",), "max_steps", lambda trl: trl["max_steps"] > 0, "max_steps: -1"),
    (
        ("logging_steps",),
        "logging_strategy",
        lambda trl: trl["logging_strategy"] != "steps",
        "logging_strategy: steps",
    ),
    (
        ("liger_kernel_config",),
        "use_liger_kernel",
        lambda trl: not trl["use_liger_kernel"],
        "use_liger_kernel: true",
    ),
    (("fsdp_config",), "fsdp", lambda trl: not trl["fsdp"], "fsdp, or a launcher's file"),
    (
        ("activation_checkpointing_kwargs",),
        "activation_checkpointing",
        lambda trl: trl["activation_checkpointing"] is False,
        "activation_checkpointing: true",
    ),
    (
        ("torch_compile_backend", "torch_compile_mode"),
        "torch_compile",
        lambda trl: not trl["torch_compile"],
        "torch_compile: true",
    ),
)
TIMES = ("eval_steps", "save_steps", "logging_steps", "num_train_epochs", "save_total_limit", "eval_on_start")


def find_set_keys(recipe: Recipe) -> frozenset[str]:
    """Return the keys that were given another value than the one that they have anyway."""
    found = set()
    for key in recipe.given:
        section, _, name = key.rpartition(".")
        value = getattr(getattr(recipe, section), name) if section in SECTIONS else recipe.trl[key]
        if value != known_keys()[key]["default"]:
            found.add(key)
    return frozenset(found)


def find_idle_keys(recipe: Recipe) -> Iterator[RecipeError]:
    """Yield the keys that change nothing.

    Those of a file that an override puts to rest are none, as the file means something else without it; nor
    are TIMES, which scripts give beside it. Nor are those of a run's own recipe.yaml, which has every key.
    """
    if recipe.places[""].endswith("recipe.yaml"):
        return
    keys = find_set_keys(recipe)
    for names, cause, rests, needed in IDLE:
        for key in keys.intersection(names):
            overridden = recipe.is_override(cause) and (key in TIMES or not recipe.is_override(key))
            if rests(recipe.trl) and not overridden:
                yield RecipeError(f"changes nothing here. It needs {needed}; or remove it.", key)
    if "data.targets_only" in keys and not recipe.data.targets and not recipe.is_override("data.targets"):
        yield RecipeError("changes nothing without data.targets. Remove it.", "data.targets_only")
