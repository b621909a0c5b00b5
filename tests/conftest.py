"""A miniature base, a small data set and a finished run, made once for all tests; and ways to run the commands."""

import csv
import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sft.storage import PROJECT

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # no test may reach out; those that need a Hub start their own double
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # A worker a core, with all that it starts: threads of two trainings on the same cores nearly stop each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
SHARED = PROJECT.parent / "shared" / "data"
PARADETOX = SHARED / "paradetox.tsv"
TINY = PROJECT / "recipes" / "tiny.yaml"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what became of the repository under each fault of the Hub, if these tests ran."""
    rows = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == "hub fault"
    ]
    if rows:
        terminalreporter.section(f"{len(rows)} faults of the Hub, and what became of the repository")
        for row in rows:
            terminalreporter.write_line("{:<30} {:<28} {:<16} {}".format(*row))


needs_paradetox = pytest.mark.skipif(
    not PARADETOX.exists(), reason=f"{PARADETOX} is not here (real ParaDetox is not in the repo)"
)


@pytest.fixture(scope="session")
def pretrain() -> ModuleType:
    """The script recipes/bloom-tiny/pretrain.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "pretrain", PROJECT / "recipes" / "bloom-tiny" / "pretrain.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mini_base(tmp_path_factory: pytest.TempPathFactory, pretrain: ModuleType) -> Path:
    """A BLOOM of 0.2 M random parameters with its tokenizer: trains in seconds, and learns nothing worth saying."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    folder = tmp_path_factory.mktemp("mini-bloom")
    with (PROJECT / "recipes" / "tiny-corpus.tsv").open(encoding="utf-8", newline="") as stream:
        rows = itertools.islice(
            csv.reader(stream, delimiter="\t"), 541
        )  # the same model however the corpus grows
        texts = [cell for row in rows for cell in row if cell]
    tokenizer = pretrain.train_tokenizer(texts, 1024)
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        initializer_range=0.3,  # small weights would only repeat the prompt's last token, a line break: empty answers
    )  # fmt: skip
    BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 150 sentences of the embedded corpus."""
    path = tmp_path_factory.mktemp("data") / "small.tsv"
    lines = (PROJECT / "recipes" / "tiny-corpus.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:151]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def mini_arguments(mini_base: Path, small_data: Path) -> list[str]:
    """Arguments of sft/run.py for a run of some seconds: the tiny recipe on the miniature base and the small data."""
    return [
        str(TINY), "--model_name_or_path", str(mini_base), "--data.source", str(small_data), "--max_steps", "8",
        "--logging_steps", "2", "--eval_strategy", "steps", "--eval_steps", "4", "--save_strategy", "steps", "--save_steps", "4",
        "--learning_rate", "3e-3", "--lora_r", "16", "--lora_alpha", "32",
        "--eval.baselines", "copy", "delete", "base", "few_shot", "human",
    ]  # fmt: skip


Main = Callable[..., None]


@pytest.fixture(scope="session")
def call_main() -> Main:
    """Call a command's main in this process: call_main("sft.run", *arguments)."""

    def call(module: str, *arguments: object) -> None:
        before = sys.argv
        sys.argv = [module, *map(str, arguments)]
        try:
            importlib.import_module(module).main()
        finally:
            sys.argv = before

    return call


@pytest.fixture(scope="session")
def mini_run(tmp_path_factory: pytest.TempPathFactory, mini_arguments: list[str], call_main: Main) -> Path:
    """A finished and evaluated run. Tests must not change it."""
    root = tmp_path_factory.mktemp("runs") / "mini"
    call_main("sft.run", *mini_arguments, "--output_dir", root)
    call_main("eval.run", root)
    return root


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory, mini_run: Path, call_main: Main) -> tuple[Path, Path]:
    """A run, and the targets that it wrote for its own training sentences."""
    path = tmp_path_factory.mktemp("targets") / "targets.jsonl"
    call_main("eval.distil", mini_run, "--output", path, "--num_beams", 4)
    return mini_run, path


def run_python(
    *arguments: object, env: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `python …` in the project's folder, in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=PROJECT,
        env=os.environ | (env or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture
def hub() -> Iterator["HubDouble"]:  # noqa: F821
    from hub_double import HubDouble

    with HubDouble() as double:
        yield double
