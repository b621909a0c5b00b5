"""The documentation: the README's own commands, run as they are but for the run directory and fewer steps; what it
says of files, recipes, commands and versions; its links and its length."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import run_python
from sacrebleu.metrics.chrf import CHRF

from sft.storage import PROJECT, read_json, read_json_lines


def list_tracked(*patterns: str) -> list[str]:
    command = ["git", "ls-files", *patterns]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()


README = (PROJECT / "README.md").read_text(encoding="utf-8")
# A golden card's links lead to the files of a push, which are not beside it.
NAMES = list_tracked("*.md", ":!tests/golden")
DOCUMENTS = {name: (PROJECT / name).read_text(encoding="utf-8") for name in NAMES}
LONGEST_README = 1_300  # words: what a newcomer finishes
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@pytest.mark.slow
def test_quickstart_commands_run_and_the_model_learns(tmp_path: Path) -> None:
    """Trains the embedded model for a tenth of its steps."""
    (block,) = [b for b in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "pip install" in b]
    install, *commands = block.strip().splitlines()
    assert install == "pip install -e . -c constraints.txt"
    assert len(commands) == 4
    root = tmp_path / "tiny"
    bin_dir = Path(sys.executable).parent
    for command in commands:
        words = shlex.split(command.replace("runs/tiny", str(root)))
        if "sft/run.py" in words:
            words += ["--output_dir", str(root), "--max_steps", "240"]
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
    pairs = zip(passed, neutral.splitlines(), strict=True)
    chrf = [CHRF().sentence_score(output, [line]).score for output, line in pairs]
    assert len(chrf) == 50
    assert sum(chrf) / len(chrf) > 90


def test_readme_is_short_enough_to_finish() -> None:
    assert len(README.split()) <= LONGEST_README


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_placeholder_is_left(name: str) -> None:
    assert not re.findall(r"@@\w*(?:@@)?", DOCUMENTS[name])


def list_anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a text's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)", CODE.sub("", DOCUMENTS[name]))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = PROJECT / name if not path else (PROJECT / name).parent / path
        if not target.exists() or (anchor and anchor not in list_anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


@pytest.mark.slow
def test_file_tree_names_each_file() -> None:
    text = DOCUMENTS[".github/CONTRIBUTING.md"]
    tree = text.split("## Files")[1].split("## ")[0]
    listed = {line.split()[0] for line in tree.splitlines() if line.startswith("    ")}
    tracked = set(list_tracked("sft", "eval", "publish", ":!*/__init__.py", ":!*.md"))
    assert not tracked - listed, "files that the file tree does not name"
    assert not {name for name in listed if "*" not in name and not (PROJECT / name).exists()}, "no such files"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_modules_that_are_named_exist(name: str) -> None:
    text = DOCUMENTS[name]
    called = [f"{name.replace('.', '/')}.py" for name in re.findall(r"-m ((?:sft|eval|publish)\.\w+)", text)]
    modules = {*called, *re.findall(r"(?<![\w/])(?:sft|eval|publish)/\w+\.py\b", text)}
    assert not {module for module in modules if not (PROJECT / module).exists()}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_that_are_named_exist(name: str) -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"(?:^|`)make ([a-z-]+)", DOCUMENTS[name], re.MULTILINE)
    assert set(named) <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("path", sorted((PROJECT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_each_recipe_is_named(path: Path) -> None:
    assert f"`{path.name}`" in DOCUMENTS["recipes/README.md"]


def test_pre_commit_has_the_suites_ruff() -> None:
    config = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (revision,) = [repo["rev"] for repo in config["repos"] if repo["repo"].endswith("/ruff-pre-commit")]
    assert f'"ruff=={revision.removeprefix("v")}"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")


def test_ci_runs_the_pythons_that_the_readme_names() -> None:
    workflow = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    first, *others, last = job["strategy"]["matrix"]["python"]
    assert f"Python {', '.join([first, *others])} or {last}" in README
