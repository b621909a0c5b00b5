"""Each architecture that the documents name goes through training, evaluation, card and merged model, as a miniature."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Main

from eval.generate import PREFIX_CACHING
from sft.storage import read_json, read_json_lines

SMALL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SMALL | {"intermediate_size": 128, "max_position_embeddings": 512}
GROUPED = WIDE | {"num_key_value_heads": 2}
# By transformers' model_type; those of eval.generate.PREFIX_CACHING among them.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bloom": SMALL,
    "gpt2": SMALL | {"n_positions": 512},
    "opt": SMALL | {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 512},
    "phi": WIDE,
    "gpt_neox": WIDE,
    "llama": GROUPED,
    "qwen2": GROUPED,
    "gemma": GROUPED | {"head_dim": 16},
    "mistral": GROUPED,
}


def make_base(kind: str, mini_base: Path, folder: Path) -> Path:
    """Make a base of random weights with the tokenizer of the miniature BLOOM."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokens = {"vocab_size": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind], **tokens)
    config.initializer_range = config.init_std = 0.3
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(mini_base).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architecture_goes_all_the_way(
    kind: str, mini_base: Path, mini_arguments: list[str], tmp_path: Path, call_main: Main
) -> None:
    base, root = make_base(kind, mini_base, tmp_path / kind), tmp_path / "run"
    call_main(
        "sft.run", *mini_arguments, "--model_name_or_path", base, "--output_dir", root, "--max_steps", 2,
        "--lora_target_modules", "all-linear", "--eval_strategy", "no", "--save_strategy", "no", "--eval.baselines", "copy",
        "--eval.max_new_tokens", 6, "--eval.stress", "false", "--data.swaps", 0, "--data.inserts", 0,
    )  # fmt: skip
    call_main("eval.run", root)
    call_main("publish.run", root, "--merged")
    assert any(line["prediction"] for line in read_json_lines(root / "eval" / "predictions.jsonl"))
    assert (root / "publish" / "README.md").is_file()
    config = read_json(root / "publish" / "merged" / "config.json")
    assert config["model_type"] == kind
    shutil.rmtree(root)


def test_every_architecture_with_a_fast_path_is_among_them() -> None:
    assert set(PREFIX_CACHING) <= set(ARCHITECTURES)
