"""The base model and its adapter: resolve, check, load in 4 bit, save, and load again for generation.

torch and transformers take seconds to import; they are imported where they are used, after arguments are
read.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.command import RunError
from sft.hub import explain_errors, find_transport_error, first_line
from sft.machine import Machine, join_processes
from sft.run_dir import Run
from sft.schema import Recipe, RecipeError
from sft.storage import allow_reading, find_path, hash_file, name_path

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from trl import ModelConfig, SFTConfig, SFTTrainer


@dataclass(frozen=True)
class Base:
    """A base model, resolved: a folder here, or a Hub repository at one commit."""

    name: str  # as it is published: the Hub id, or the path as the recipe gives it
    path: str  # what from_pretrained takes
    revision: str | None  # the Hub commit; None for a folder
    weights: dict[str, str]  # for a folder: weight file -> SHA-256

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "revision": self.revision, "weights": self.weights}


# ------------------------------------------------------------------------------------------------ resolving


def resolve_base(name: str, revision: str | None = None) -> Base:
    """Find a base model here or on the Hub, and pin it to a commit there.

    Raises:
        RecipeError: it is neither, the Hub can't be reached and the cache does not have it, or it brings code
            of its own or pickled weights alone.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    path = find_path(name)
    if path is not None:
        if not (path / "config.json").is_file():
            raise RecipeError(f"{name} is no model folder (no config.json in it).", "model_name_or_path")
        refuse_code(name, path)
        refuse_pickles(name, {p.name for p in path.iterdir()})
        refuse_broken(name, path)
        if snapshot := name_snapshot(path):
            return Base(snapshot[0], str(path), snapshot[1], {})
        weights = {p.name: hash_file(p) for p in sorted(path.glob("*.safetensors"))}
        return Base(name_path(path), str(path), None, weights)
    with explain_errors(name, "model", revision, ("model_name_or_path", "model_revision")):
        folder = Path(hf_hub_download(name, "config.json", revision=revision)).parent
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(name, "tokenizer_config.json", revision=folder.name)
    refuse_code(name, folder)
    refuse_pickles(name, list_hub_files(name, folder))
    return Base(name, name, folder.name, {})


def name_snapshot(path: Path) -> tuple[str, str] | None:
    """Return the Hub id and commit of a folder in the Hub's cache (models--owner--name/snapshots/COMMIT)."""
    *_, repository, snapshots, commit = ("", "", *path.absolute().parts)
    kind, _, name = repository.partition("--")
    if (kind, snapshots) != ("models", "snapshots") or not re.fullmatch("[0-9a-f]{40}", commit):
        return None
    return name.replace("--", "/", 1), commit


def refuse_code(name: str, folder: Path) -> None:
    """Raise where a base's files name code of its own, which transformers would offer to run."""
    for file in ("config.json", "tokenizer_config.json"):
        try:
            config = (
                json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).is_file() else {}
            )
        except (ValueError, RecursionError):
            continue  # transformers tells what is wrong with it
        if isinstance(config, dict) and "auto_map" in config:
            message = (
                f"{name}: its {file} has auto_map, which names code of its own, and such code is never run."
            )
            hint = (
                "Expected an architecture that transformers has; "
                "then remove auto_map from a copy of the base."
            )
            raise RecipeError(f"{message} {hint}", "model_name_or_path")


def refuse_pickles(name: str, files: Collection[str]) -> None:
    """Raise where a base has weights, and none of them as safetensors."""
    pickles = sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles and not any(file.endswith(".safetensors") for file in files):
        message = f"{name}: its weights are a pickle ({pickles[0]}), which can run code when it is loaded."
        hint = (
            "Expected safetensors. Convert them where you trust them: from_pretrained, then save_pretrained."
        )
        raise RecipeError(f"{message} {hint}", "model_name_or_path")


def refuse_broken(name: str, folder: Path) -> None:
    """Raise where a folder's weights file is cut off or no safetensors: its header tells its length."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            message = f"{name}: its {file.name} is broken or cut off ({first_line(error)}). Copy it again."
            raise RecipeError(message, "model_name_or_path") from None


def list_hub_files(name: str, snapshot: Path) -> set[str]:
    """Return a Hub base's file names; of those in the cache alone where they hold weights, or offline."""
    from huggingface_hub import HfApi

    files = {path.name for path in snapshot.iterdir()}
    if not any(file.endswith(".safetensors") for file in files):
        with contextlib.suppress(OSError, find_transport_error()):
            files |= {
                file.rfilename for file in HfApi().model_info(name, revision=snapshot.name).siblings or ()
            }
    return files


def load_config(base: Base) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.path, revision=base.revision, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise RecipeError(
            f"{base.name}: its config.json can't be used: {first_line(error)}", "model_name_or_path"
        ) from None


def load_tokenizer(
    base: Base, pad_token: str | None = None, eos_token: str | None = None
) -> "PreTrainedTokenizerBase":
    """Load a base model's tokenizer, with the recipe's pad and EOS tokens where it names them.

    Raises:
        RecipeError: a named token is not in the vocabulary, or the base has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.path, revision=base.revision, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise RecipeError(
            f"{base.name}: no usable tokenizer: {first_line(error)}", "model_name_or_path"
        ) from None
    for key, token in (("pad_token", pad_token), ("eos_token", eos_token)):
        if token is not None and token not in tokenizer.get_vocab():
            raise RecipeError(f"found {token!r}, expected a token of {base.name}'s vocabulary.", key)
        if token is not None:
            setattr(tokenizer, key, token)
    if tokenizer.eos_token_id is None:
        raise RecipeError("this tokenizer has no end token. Name a token of its vocabulary.", "eos_token")
    return tokenizer


# ------------------------------------------------------------------------------------------------- checking


def find_model_conflicts(
    recipe: Recipe, config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[RecipeError]:
    """Yield the faults of a recipe that only its model's config and tokenizer can show."""
    trl = recipe.trl
    if not re.fullmatch(r"\w+", trl["attn_implementation"] or "eager"):
        found = f"found {trl['attn_implementation']!r}, which is or may be code from the Hub"
        yield RecipeError(f"{found}. Expected eager, sdpa or flash_attention_2.", "attn_implementation")
    if config.model_type == "bloom":
        if trl["padding_free"]:
            yield RecipeError(
                "BLOOM would attend over the whole batch as one row. "
                "Expected false; packing: true wastes as little on padding.",
                "padding_free",
            )
        if trl["packing"] and (trl["packing_strategy"] != "bfd" or trl["max_length"] is None):
            found = f"packing_strategy {trl['packing_strategy']!r} and max_length {trl['max_length']}"
            yield RecipeError(
                f"found {found}. BLOOM packs whole examples: expected bfd, and a max_length.", "packing"
            )
        if trl["attn_implementation"] not in (None, "eager", "sdpa"):
            yield RecipeError(
                f"found {trl['attn_implementation']!r}. BLOOM has sdpa (also meant by null) and eager.",
                "attn_implementation",
            )
        if trl["fp16"] or trl["dtype"] == "float16":
            yield RecipeError(
                "BLOOM overflows in float16. Expected bfloat16, or float32 where the hardware lacks it.",
                "fp16" if trl["fp16"] else "dtype",
            )
    if tokenizer.pad_token is None:
        yield RecipeError(
            "this tokenizer has no pad token. Name a token of its vocabulary other than EOS.", "pad_token"
        )
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield RecipeError(
            f"pad and EOS are both {tokenizer.eos_token!r}: "
            "with EOS masked as padding, a model never learns to stop. Name another token of the vocabulary.",
            "pad_token",
        )


def trains_in_float32(recipe: Recipe) -> bool:
    """Say whether an adapter on quantised weights is in float32 on a CPU; TRL has it in bfloat16."""
    return recipe.trl["dtype"] == "float32" and recipe.trl["attn_implementation"] != "eager"


def build_model_config(recipe: Recipe) -> "ModelConfig":
    """Return TRL's ModelConfig of a recipe."""
    import dataclasses

    from trl import ModelConfig

    config = ModelConfig(**{f.name: recipe.trl[f.name] for f in dataclasses.fields(ModelConfig)})
    targets = recipe.trl["lora_target_modules"]
    # ModelConfig unpacks a list of one, and peft takes a text for a regular expression on whole names.
    config.lora_target_modules = "all-linear" if targets == ["all-linear"] else targets
    return config


def build_sft_config(recipe: Recipe, run: Run, machine: Machine, packed: bool = False) -> "SFTConfig":
    """Return TRL's SFTConfig of a recipe; rows that are `packed` already are not packed by TRL.

    Raises:
        RecipeError: TRL or transformers refuse a combination of values.
    """
    import dataclasses

    from accelerate import DistributedType, PartialState
    from trl import SFTConfig

    values = {f.name: recipe.trl[f.name] for f in dataclasses.fields(SFTConfig) if f.name in recipe.trl}
    values |= {
        "output_dir": str(run.checkpoints),
        "use_cpu": machine.on_cpu,
        "disable_tqdm": True,
        "eval_on_start": values["eval_on_start"] and values["eval_strategy"] != "no",
        "resume_from_checkpoint": None,
        # With LoRA each trainable weight is used in each step; looking for others costs a pass over the
        # graph.
        "ddp_find_unused_parameters": bool(values["ddp_find_unused_parameters"]),
        # The tokenizer carries these by now.
        "pad_token": None,
        "eos_token": None,
    }
    values["packing"] &= not packed
    if not values["packing"]:
        values["dataset_kwargs"] = {"skip_prepare_dataset": True}
    try:
        config = SFTConfig(**values)
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        message = first_line(error)
        named = [
            key for key in sorted(recipe.given, key=len, reverse=True) if re.search(rf"\b{key}\b", message)
        ]
        raise RecipeError(f"TRL refuses it: {message}", named[0] if named else None) from None
    if machine.on_cpu and machine.sharding == "fsdp":
        # For accelerate, only GPUs have FSDP: on CPUs it would replicate the model without a word.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    return config


def build_on_meta(config: "PretrainedConfig", attention: str | None = None) -> "PreTrainedModel":
    """Return a model of shapes alone: no weight is loaded, and none drawn."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, trust_remote_code=False
        )


def find_positions(model: "PreTrainedModel") -> int | None:
    """Return the number of positions that a model has learnt an embedding of; None where it learns none.

    Behind the last one it fails with an IndexError. Rotary positions and ALiBi have no such end.
    """
    import torch

    for name, module in model.named_modules():
        is_learnt = isinstance(module, torch.nn.Embedding)
        if is_learnt and re.search(r"(^|[._])(wpe|positions?(_embeddings?)?)$", name):
            return int(module.num_embeddings - getattr(module, "offset", 0))
    return None


def count_parameters(recipe: Recipe, config: "PretrainedConfig") -> tuple[int, int]:
    """Return the number of trainable parameters, and of all with LoRA, from shapes: no weight is loaded.

    Raises:
        RecipeError: the LoRA keys do not fit the model.
    """
    import torch
    from peft import get_peft_model
    from trl import get_peft_config

    try:
        model = build_on_meta(config)
    except (ValueError, ImportError) as error:
        raise RecipeError(f"is no causal language model: {first_line(error)}", "model_name_or_path") from None
    modules = [name for name, _ in model.named_modules()]
    # peft leaves out a name that no layer has without a word, as long as another one fits.
    unknown = [
        target
        for target in recipe.trl["lora_target_modules"] or ()
        if target != "all-linear"
        and not any(name == target or name.endswith(f".{target}") for name in modules)
    ]
    if unknown:
        layers = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        raise RecipeError(
            f"no layer of {Path(config.name_or_path).name} has the name {' or '.join(unknown)}. "
            f"Expected names among {', '.join(sorted(layers - {'lm_head'}))}, or all-linear.",
            "lora_target_modules",
        )
    saved = recipe.trl["lora_modules_to_save"] or ()
    names = {name.rpartition(".")[2] for name in modules} | set(modules)
    if missing := [name for name in saved if name not in names]:
        raise RecipeError(
            f"no module of {Path(config.name_or_path).name} has the name {' or '.join(missing)}. "
            "Expected names such as lm_head, or null.",
            "lora_modules_to_save",
        )
    weights = [name for name, _ in model.named_parameters()]
    aimed = recipe.trl["lora_target_parameters"] or ()
    if missing := [name for name in aimed if not any(weight.endswith(name) for weight in weights)]:
        raise RecipeError(
            f"no parameter of {Path(config.name_or_path).name} has the name {' or '.join(missing)}.",
            "lora_target_parameters",
        )
    try:
        with torch.device("meta"):
            return get_peft_model(
                model, get_peft_config(build_model_config(recipe))
            ).get_nb_trainable_parameters()
    except (ValueError, TypeError) as error:
        raise RecipeError(f"does not fit the model: {first_line(error)}", "lora_target_modules") from None


# --------------------------------------------------------------------------------------- loading and saving


def load_base(recipe: Recipe, base: Base) -> "PreTrainedModel":
    """Load the base as the recipe says: quantised or not, in its dtype, on this process's device.

    Without a GPU, transformers quantises on the CPU, through bitsandbytes as well.
    """
    from transformers import AutoModelForCausalLM
    from trl import get_quantization_config

    from sft.bloom import fuse, read_positions

    model_config = build_model_config(recipe)
    quantization = get_quantization_config(model_config)
    config = load_config(base)
    is_bloom = config.model_type == "bloom"
    model = AutoModelForCausalLM.from_pretrained(
        base.path,
        config=config,
        revision=base.revision,
        dtype=model_config.dtype,
        attn_implementation=None if is_bloom else model_config.attn_implementation,
        quantization_config=quantization,
        device_map={"": join_processes(recipe.trl["use_cpu"]).device} if quantization else None,
        trust_remote_code=False,
        use_safetensors=True,
    )
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in place at the first evaluation
        # (rounding their scales to bf16), and its kernel for them has no gradient: the training that follows
        # would break.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if quantization and model.device.type == "cpu":
        release_file(model)
    model.config.use_cache = False
    if model_config.attn_implementation != "eager":
        fuse(model)
    if is_bloom and recipe.trl["packing"]:
        read_positions(model)
    return model


def release_file(model: "PreTrainedModel") -> None:
    """Release what loading and quantising on a CPU leave in memory: the mapped weights file, and buffers.

    The weights that are not quantised are views of the file, which keep all of it mapped; malloc keeps the
    buffers.
    """
    import ctypes

    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


LOWER = "Try a lower learning_rate, more warmup_steps, or a lower max_grad_norm."


def holds_finite(folder: Path) -> bool:
    """Say whether all of the adapter in a folder is finite."""
    import torch
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        return all(bool(torch.isfinite(weights.get_tensor(name)).all()) for name in weights.keys())  # noqa: SIM118


def save_adapter(trainer: "SFTTrainer", run: Run, base: Base) -> None:
    """Write the adapter's two files, complete or not at all; every process must call it: shards are gathered.

    peft writes the base's local path and an order of modules that changes from run to run; both are put
    right, so that the same training gives the same bytes, and a reader finds the base by its Hub id and
    commit.
    """
    temporary = run.root / ".adapter"
    trainer.save_model(str(temporary))
    if trainer.accelerator.is_main_process:
        config = json.loads((temporary / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base.name
        config["revision"] = base.revision
        for key, value in config.items():
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                config[key] = sorted(value)
        if not holds_finite(temporary):
            raise RunError(
                f"{run.root}: the adapter's weights are not finite: the training has diverged. {LOWER}"
            )
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for path in temporary.iterdir():
            if path.name not in (run.adapter_weights.name, run.adapter_config.name):
                path.unlink()
            else:
                allow_reading(path)
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        run.seal(temporary)
        shutil.rmtree(run.adapter, ignore_errors=True)
        temporary.replace(run.adapter)  # from here on the run is finished
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
