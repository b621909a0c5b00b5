"""The loader that a Space carries: alone, and the same as the project's own."""

import ast
import sys
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
    assert others == {"torch", "transformers", "peft", "huggingface_hub"}


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
