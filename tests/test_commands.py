"""Each command's help: quick, and without importing torch."""

import time

import pytest
from conftest import run_python

COMMANDS = {
    "train": ["sft/run.py"],
    "check": ["-m", "sft.check"],
    "recipe": ["-m", "sft.recipe"],
    "export": ["-m", "sft.recipe", "export"],
    "evaluate": ["eval/run.py"],
    "detoxify": ["-m", "eval.detoxify"],
    "publish": ["-m", "publish.run"],
    "pretrain": ["recipes/bloom-tiny/pretrain.py"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick(name: str) -> None:
    begin = time.monotonic()
    done = run_python("-X", "importtime", *COMMANDS[name], "--help")
    assert time.monotonic() - begin < 2
    assert done.returncode == 0
    assert "usage: " in done.stdout
    for package in ("torch", "transformers", "datasets", "pandas"):
        assert not any(line.rpartition("|")[2].strip() == package for line in done.stderr.splitlines()), package


def test_help_of_training_names_every_key() -> None:
    help_text = run_python("sft/run.py", "--help").stdout
    for word in ("--overwrite", "--data.source", "--publish.repo_id", "learning_rate", "lora_target_modules"):
        assert word in help_text


def test_export_prints_yaml() -> None:
    done = run_python("-m", "sft.recipe", "export", "recipes/bloom.yaml", "--lora_r", "4")
    assert done.returncode == 0
    assert "lora_r: 4\n" in done.stdout
    assert "data:" not in done.stdout
