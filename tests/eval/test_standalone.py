"""The loader that a Space carries: alone, and the same as the project's own."""

import ast
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import standalone
from sft import data
from sft.data import tokenise_texts
from sft.prompt import TEMPLATE, format_prompt
from sft.storage import PROJECT

TEXTS = ["you  damn\tfool\n", "e\u0301tait", "a </s> b <pad>", "\u3000x\u2028y ", "{text}"]


def test_it_imports_nothing_of_this_project() -> None:
    tree = ast.parse((PROJECT / "eval" / "standalone.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert others == {"torch", "transformers", "peft", "huggingface_hub", "safetensors"}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_cleaned_as_in_training(text: str) -> None:
    assert standalone.clean_text(text) == data.clean_text(text)


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_have_the_tokens_of_the_training(text: str, mini_base: Path) -> None:
    """What spells a special token stays text, and the answer ends at the run's own end token."""
    import torch

    tokenizer = standalone.load_tokenizer(str(mini_base), None, eos_token="!")
    asked: list[dict[str, Any]] = []

    class Model:
        device = torch.device("cpu")

        def generate(self, **options: Any) -> torch.Tensor:
            asked.append(options)
            answer = tokenizer("fine! no")["input_ids"]
            return torch.cat([options["input_ids"], torch.tensor([answer])], dim=1)

    results = {"prompt": TEMPLATE, "generation": {"num_beams": 3, "max_new_tokens": 7, "batch_size": 64}}
    assert standalone.Published(Model(), tokenizer, results).rewrite(text) == "fine"
    (options,) = asked
    assert options["input_ids"].tolist() == tokenise_texts([format_prompt(data.clean_text(text))], tokenizer)
    told = {
        key: options[key]
        for key in ("num_beams", "max_new_tokens", "do_sample", "eos_token_id", "pad_token_id")
    }
    ends = {"eos_token_id": tokenizer.get_vocab()["!"], "pad_token_id": tokenizer.get_vocab()["<pad>"]}
    assert told == {"num_beams": 3, "max_new_tokens": 7, "do_sample": False} | ends


def test_an_empty_text_has_an_empty_answer() -> None:
    assert standalone.Published(None, None, {}).rewrite(" \n") == ""


def test_tokens_that_are_not_in_the_vocabulary(mini_base: Path) -> None:
    with pytest.raises(
        ValueError, match=r"eos_token: found '<end of all>', expected a token of the base's vocabulary"
    ):
        standalone.load_tokenizer(str(mini_base), None, eos_token="<end of all>")


def test_a_pickled_adapter_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(OSError, match=r"no adapter_model\.safetensors in it"):
        standalone.add_adapter(None, tmp_path)


def break_nothing(tensors: dict[str, Any]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = tensors[name] * 0


def break_number(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def break_missing(tensors: dict[str, Any]) -> None:
    del tensors[min(tensors)]


def break_name(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.other.lora_A.weight"] = tensors[min(tensors)].clone()


def break_shape(tensors: dict[str, Any]) -> None:
    tensors[min(tensors)] = tensors[min(tensors)][:-1].contiguous()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (break_nothing, "changes nothing"),
        (break_number, "not finite in 1 of"),
        (break_missing, "1 of 16 tensors are missing"),
        (break_name, "none of its configuration's"),
        (break_shape, "do not fit the base"),
    ],
)
def test_an_adapter_of_other_tensors_is_refused(
    break_it: Callable[[dict[str, Any]], None], message: str, mini_run: Path, mini_base: Path, tmp_path: Path
) -> None:
    """peft only warns: the base's own answers would pass for the adapter's."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    shutil.copytree(mini_run / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    assert len(tensors) == 16
    break_it(tensors)
    save_file(tensors, path)
    with pytest.raises(standalone.AdapterError, match=message):
        standalone.add_adapter(AutoModelForCausalLM.from_pretrained(mini_base), tmp_path / "adapter")


def test_the_bases_generation_config_is_left_out(mini_base: Path, tmp_path: Path) -> None:
    """A penalty in it would change the scores, a temperature keep the merged model from being saved."""
    base = tmp_path / "base"
    shutil.copytree(mini_base, base)
    (base / "generation_config.json").write_text('{"repetition_penalty": 1.5, "temperature": 0.5}')
    how = {"load_in_4bit": False, "load_in_8bit": False}
    model = standalone.load_base(str(base), None, how)
    assert model.generation_config.repetition_penalty in (None, 1.0)
    model.save_pretrained(tmp_path / "saved")
