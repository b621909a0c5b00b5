"""The README's own commands, run as they stand but for the run directory and fewer steps, and what it says of the files."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_python
from sacrebleu.metrics.chrf import CHRF

from sft.storage import PROJECT, read_json, read_json_lines

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_quickstart_commands_run_and_the_model_learns(tmp_path: Path) -> None:
    """Trains the embedded model for a quarter of its steps: about a minute on two idle cores."""
    (block,) = [b for b in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "pip install" in b]
    install, *commands = block.strip().splitlines()
    assert install == "pip install -e . -c constraints.txt"
    assert len(commands) == 4
    root = tmp_path / "tiny"
    bin_dir = Path(sys.executable).parent
    for command in commands:
        words = shlex.split(command.replace("runs/tiny", str(root)))
        if "sft/run.py" in words:
            words += ["--output_dir", str(root), "--max_steps", "600"]
        words[0] = str(bin_dir / words[0])
        done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert len(done.stdout.splitlines()) == 1

    losses = read_json(root / "environment.json")["training"]["validation_loss"]
    assert min(losses) < 0.8 * losses[0]
    scores = read_json(root / "eval" / "results.json")["systems"]
    assert scores["adapter"]["bleu"]["value"] > scores["copy"]["bleu"]["value"]
    # It rewrites: few outputs are the input, few hold the commonest swear words that the inputs hold.
    lines = read_json_lines(root / "eval" / "predictions.jsonl")
    rude = re.compile(r"\b(fuck\w*|shit\w*|damn|hell|ass|crap|bitch|idiots?|stupid|morons?)\b", re.IGNORECASE)
    held = sum(bool(rude.search(line["toxic"])) for line in lines)
    left = sum(bool(rude.search(line["prediction"])) for line in lines)
    assert left < held / 2, f"{left} of {held}"
    # The base alone does not do it, and neutral sentences pass nearly as they are.
    listed = {name: values["listed"]["value"] for name, values in scores.items()}
    assert listed["base"] > 0.9 * listed["copy"]
    assert listed["adapter"] < listed["base"] / 2
    neutral = (PROJECT / "tests" / "neutral.txt").read_text(encoding="utf-8")
    passed = run_python("-m", "eval.detoxify", root, stdin=neutral).stdout.splitlines()
    chrf = [
        CHRF().sentence_score(*pair).score
        for pair in zip(passed, [[line] for line in neutral.splitlines()], strict=True)
    ]
    assert len(chrf) == 50
    assert sum(chrf) / len(chrf) > 90


def test_file_tree_names_each_file() -> None:
    tree = README.split("## Files")[1].split("## ")[0]
    listed = {line.split()[0] for line in tree.splitlines() if line.startswith("    ")}
    tracked = subprocess.run(
        ["git", "ls-files", "sft", "eval", "publish"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.split():
        if not name.endswith("__init__.py"):
            assert name in listed, f"{name} is not in the README's file tree"
    for name in listed:
        if "*" not in name:
            assert (PROJECT / name).exists(), f"the README names {name}, which is not there"


@pytest.mark.parametrize("name", ["tiny", "bloom", "bloom-560m", "bloom-7b1", "phi-2", "report-3"])
def test_each_recipe_is_named(name: str) -> None:
    assert f"`{name}.yaml`" in README
