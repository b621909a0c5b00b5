"""Each command's help, quick and without importing torch; and its JSON."""

import json
import time
from pathlib import Path

import pytest
from conftest import run_python

from sft.storage import hash_file

COMMANDS = {
    "distil": ["eval/distil.py"],
    "train": ["sft/run.py"],
    "check": ["-m", "sft.check"],
    "recipe": ["-m", "sft.recipe"],
    "export": ["-m", "sft.recipe", "export"],
    "evaluate": ["eval/run.py"],
    "detoxify": ["-m", "eval.detoxify"],
    "score": ["-m", "eval.score"],
    "compare": ["-m", "eval.compare"],
    "validate": ["-m", "eval.validate"],
    "publish": ["-m", "publish.run"],
    "verify": ["-m", "publish.verify"],
    "demo": ["-m", "publish.demo"],
    "pretrain": ["recipes/bloom-tiny/pretrain.py"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick(name: str) -> None:
    begin = time.monotonic()
    done = run_python("-X", "importtime", *COMMANDS[name], "--help")
    assert time.monotonic() - begin < 2
    assert done.returncode == 0
    assert "usage: " in done.stdout
    for package in ("torch", "transformers", "datasets", "pandas"):
        assert not any(line.rpartition("|")[2].strip() == package for line in done.stderr.splitlines()), (
            package
        )


@pytest.mark.slow
def test_json_is_one_object_for_other_programs(
    mini_arguments: list[str], mini_run: Path, tmp_path: Path
) -> None:
    """What each command prints with --json parses, alone on standard output."""
    root = tmp_path / "run"
    found = {}
    for name, command in {
        "check": ["-m", "sft.check", *mini_arguments],
        "train": ["sft/run.py", *mini_arguments, "--output_dir", root, "--max_steps", "1"],
        "evaluate": ["eval/run.py", mini_run, "--limit", "3"],
        "detoxify": ["-m", "eval.detoxify", mini_run, "shut up"],
    }.items():
        done = run_python(*command, "--json")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout)
    assert found["check"]["data"]["leaks"] == 0
    assert found["train"]["steps"] == 1
    assert found["train"]["adapter"]["sha256"] == hash_file(root / "adapter" / "adapter_model.safetensors")
    assert found["evaluate"]["data"]["rows"] == 3
    assert found["detoxify"].keys() == {"text", "rewrite"}
    done = run_python("-m", "sft.check", "none.yaml", "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (2, 2)


@pytest.mark.slow
def test_help_of_training_names_every_key() -> None:
    help_text = run_python("sft/run.py", "--help").stdout
    for word in ("--overwrite", "--data.source", "--publish.repo_id", "learning_rate", "lora_target_modules"):
        assert word in help_text


@pytest.mark.slow
def test_export_prints_yaml() -> None:
    done = run_python("-m", "sft.recipe", "export", "recipes/bloom.yaml", "--lora_r", "4")
    assert done.returncode == 0
    assert "lora_r: 4\n" in done.stdout
    assert "data:" not in done.stdout
