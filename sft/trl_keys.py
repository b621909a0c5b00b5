"""The keys of a recipe: TRL's, taken, renamed or refused, and those of our sections.

TRL's names, types, defaults and choices are in trl_keys.json (`python -m sft.recipe keys` makes it from the
installed TRL, a test compares the two), so that a recipe is checked in milliseconds, without importing torch.
"""

import dataclasses
import difflib
import functools
import json
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from sft.schema import SECTIONS

# Keys that users still type and that TRL or transformers dropped.
RENAMED = {
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps (a number below 1 is a share of all steps)",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "evaluation_strategy": "eval_strategy",
    "lora_target": "lora_target_modules",
    "use_4bit": "load_in_4bit",
    "no_cuda": "use_cpu",
    "push_to_hub_model_id": "publish.repo_id",
    "overwrite_output_dir": "the flag --overwrite of sft/run.py",
    "dataset_name": "data.source",
    "dataset_config": "data.source",
    "dataset_train_split": "data.split",
    "dataset_test_split": "data.test (a share of the source sentences)",
}
# TRL keys that would do nothing here, or harm.
_PUBLISH = "the trainer never pushes, as its push uploads a pickle with the token; use python -m publish.run"
_TOKENS = "rows are formatted and tokenised by sft/data.py"
REFUSED = {
    "push_to_hub": _PUBLISH,
    "hub_token": "a token does not belong in a recipe; log in with `hf auth login` or set HF_TOKEN",
    "hub_model_id": _PUBLISH + " and publish.repo_id",
    "hub_private_repo": _PUBLISH + " and publish.private",
    "hub_strategy": _PUBLISH,
    "hub_always_push": _PUBLISH,
    "hub_revision": _PUBLISH,
    "dataset_text_field": _TOKENS,
    "dataset_kwargs": _TOKENS,
    "dataset_num_proc": _TOKENS,
    "chat_template_path": "the prompt is plain text (sft/prompt.py), and new tokens break LoRA on BLOOM",
    "assistant_only_loss": (
        "rows are prompt and answer; the loss on the answer alone is completion_only_loss, the default"
    ),
    "eval_packing": "validation rows are never packed",
    "remove_unused_columns": _TOKENS,
    "label_names": _TOKENS,
    "truncation_mode": "a row that is longer than max_length is left out and counted, never cut",
    "include_for_metrics": "the trainer computes the loss alone; BLEU, ROUGE and chrF come from eval/run.py",
    "batch_eval_metrics": "the trainer computes the loss alone; BLEU, ROUGE and chrF come from eval/run.py",
    "prediction_loss_only": "the trainer computes the loss alone; BLEU, ROUGE and chrF come from eval/run.py",
    "disable_tqdm": "progress is shown with rich",
    "do_train": "sft/run.py trains, eval/run.py evaluates",
    "do_eval": "sft/run.py trains, eval/run.py evaluates; the validation loss is eval_strategy",
    "do_predict": "sft/run.py trains, eval/run.py evaluates",
    "local_rank": "the launcher sets it",
    "save_only_model": "such a checkpoint can't be resumed",
    "model_init_kwargs": "the model is loaded by load_in_4bit, dtype, attn_implementation and model_revision",
    "trust_remote_code": "a base that brings code of its own is not supported; BLOOM and Phi-2 bring none",
    "parallelism_config": "it belongs in the file given to accelerate launch --config_file",
}
KINDS = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "list",
    dict: "dict",
    NoneType: "null",
    tuple: "list",
}


@functools.cache
def known_keys() -> dict[str, dict[str, Any]]:
    """Return for each key its kinds of value, default, and choices if any; sections' keys are dotted."""
    keys = json.loads((Path(__file__).parent / "trl_keys.json").read_text())
    keys = {key: spec for key, spec in keys.items() if key not in REFUSED and key not in RENAMED}
    # The newest whole checkpoint of the run directory, not a path: a run goes on with nothing but its own.
    keys["resume_from_checkpoint"] = {"kinds": ["bool"], "default": False}
    for section, kind in SECTIONS.items():
        hints = typing.get_type_hints(kind)
        for f in dataclasses.fields(kind):
            keys[f"{section}.{f.name}"] = {"kinds": list_kinds(hints[f.name]), "default": f.default}
    return keys


def list_kinds(hint: Any) -> list[str]:
    """Return the kinds of value that a type annotation accepts: "int", "null", …"""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, UnionType):
        return list(dict.fromkeys(kind for part in typing.get_args(hint) for kind in list_kinds(part)))
    if origin is typing.Literal:
        return list(dict.fromkeys(KINDS[type(value)] for value in typing.get_args(hint)))
    return [KINDS[base] for base in (origin or hint,) if base in KINDS]


def refuse_key(key: str) -> str | None:
    """Return what is wrong with a key, or None for a known one."""
    if key in known_keys():
        return None
    if key in RENAMED:
        return f"this key is gone; use {RENAMED[key]}."
    if key in REFUSED:
        return f"not taken here: {REFUSED[key]}."
    names = [*known_keys(), *RENAMED]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not near:
        near = [name for name in names if name.endswith(f".{key}")][:1]
    if near and near[0] in RENAMED:
        return f"unknown key. The nearest one, {near[0]}, is gone; use {RENAMED[near[0]]}."
    return (
        f"unknown key. Did you mean {near[0]}?"
        if near
        else "unknown key. `python -m sft.check --help` lists all keys."
    )


def extract_trl_keys() -> dict[str, dict[str, Any]]:
    """Return each key of TRL's ModelConfig and SFTConfig with its kinds of value, default and choices."""
    import enum

    from trl import ModelConfig, SFTConfig

    keys: dict[str, dict[str, Any]] = {}
    for owner in (ModelConfig, SFTConfig):
        hints = typing.get_type_hints(owner)
        for f in dataclasses.fields(owner):
            default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
            kinds = list_kinds(hints[f.name])
            if default is None and "null" not in kinds:
                kinds.append("null")
            keys[f.name] = {
                "kinds": kinds,
                "default": default.value if isinstance(default, enum.Enum) else default,
            }
            choices = f.metadata.get("choices")
            for part in typing.get_args(hints[f.name]):
                if isinstance(part, type) and issubclass(part, enum.Enum) and "list" not in kinds:
                    choices = [member.value for member in part]
            if choices:
                keys[f.name]["choices"] = sorted(choices)
    return keys
