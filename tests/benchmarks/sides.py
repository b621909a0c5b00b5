"""What the benchmarks share: random BLOOMs of real shapes, fresh processes, medians, and the files of figures."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.storage import PROJECT

if TYPE_CHECKING:
    from sft.model import Base

FIGURES = PROJECT / "tests" / "benchmarks" / "figures"
RECIPES = {"tiny": "tiny", "560m": "bloom-560m", "3b": "bloom", "7b1": "bloom-7b1"}
SIZES = {"560m": (1024, 24, 16), "3b": (2560, 30, 32), "7b1": (4096, 30, 32)}  # width, layers, heads
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")


def make_base(shape: str, layers: int | None, folder: Path) -> str:
    """Return the path of a base of this shape: the embedded one, or a BLOOM of random bf16 weights made in `folder`.

    Its vocabulary has BLOOM's 250,880 rows, and its tokenizer is the embedded one: BLOOM's own is not at hand offline.
    """
    if shape == "tiny":
        return "recipes/bloom-tiny"
    import torch
    from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

    from sft.command import quiet_libraries

    quiet_libraries()
    width, depth, heads = SIZES[shape]
    path = folder / f"bloom-{shape}-{layers or depth}"
    if not (path / "tokenizer.json").exists():
        torch.manual_seed(0)
        config = BloomConfig(
            vocab_size=250_880, hidden_size=width, n_layer=layers or depth, n_head=heads,
            bos_token_id=1, eos_token_id=2, pad_token_id=3,
        )  # fmt: skip
        torch.set_default_dtype(torch.bfloat16)
        BloomForCausalLM(config).save_pretrained(path)
        torch.set_default_dtype(torch.float32)
        AutoTokenizer.from_pretrained(PROJECT / "recipes" / "bloom-tiny").save_pretrained(
            path
        )  # last: marks it complete
    return str(path)


def name_shape(base: "Base") -> tuple[str, int | None]:
    """Return a base's shape, and its layers where they are fewer than the shape's; other bases go by their name."""
    from sft.model import load_config

    config = load_config(base)
    for shape, (width, depth, _) in SIZES.items():
        if config.model_type == "bloom" and config.hidden_size == width:
            return shape, config.num_hidden_layers if config.num_hidden_layers < depth else None
    return "tiny" if base.name == "recipes/bloom-tiny" else Path(base.name).name, None


def list_overrides(shape: str, base: str, data: str, device: str, steps: int, batch: int | None) -> list[str]:
    """Return the overrides of a shape's recipe for a short training without validation, checkpoints or logs."""
    overrides = {
        "model_name_or_path": base, "data.source": data, "max_steps": steps, "logging_steps": steps,
        "eval_strategy": "no", "eval_on_start": "false", "save_strategy": "no", "report_to": "none",
        "use_cpu": str(device == "cpu").lower(),
    }  # fmt: skip
    if batch:
        overrides["per_device_train_batch_size"] = batch
    words = [f"{PROJECT}/recipes/{RECIPES[shape]}.yaml"] + [
        str(w) for key, v in overrides.items() for w in (f"--{key}", v)
    ]
    return words if shape == "tiny" else [*words, "--model_revision", "main", "--data.revision", "null"]


def run_fresh(arguments: Sequence[str], log: Path, variables: dict[str, str] | None = None) -> str | None:
    """Run python in a new process in the project's folder; return None, or the last line of its output if it failed."""
    paths = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {
        "BENCHMARK_START": str(time.time()),
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
    }
    environment |= variables or {}
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=PROJECT, env=environment, stdout=stream, stderr=stream
        )
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    return (
        None if done.returncode == 0 else f"exit {done.returncode}: {lines[-1] if lines else ''} (log: {log})"
    )


def run_commands(commands: Sequence[Sequence[str]]) -> None:
    """Run python on each command, in the project's folder, whatever becomes of the others; exit with the names of the failed."""
    failed = []
    for command in commands:
        print(f"$ python {shlex.join(command)}", flush=True)
        if subprocess.run([sys.executable, *command], cwd=PROJECT).returncode:
            failed.append(command[0])
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def median(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]} if runs else {}


def describe_machine(device: str) -> dict[str, Any]:
    """Return date, command, hardware and versions."""
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = f"{os.cpu_count()} cores of {names[0].partition(':')[2].strip() if names else platform.machine()}"
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(
            ["python", str(Path(sys.argv[0]).resolve().relative_to(PROJECT)), *sys.argv[1:]]
        ),
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "load": os.getloadavg()[
            0
        ],  # of all processes in the minute before the end: a shared machine is noisy
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def name_figures(what: str, layers: int | None, device: str) -> str:
    """Return the name of a benchmark's files: a trial on fewer layers never takes the place of the whole."""
    return f"{what}-{layers}-layers-{device}" if layers else f"{what}-{device}"


def write_figures(name: str, figures: dict[str, Any], table: str, folder: Path) -> None:
    """Print a benchmark's table, and write `name`.json and `name`.md (what it printed) into `folder`."""
    machine = figures["machine"]
    versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items())
    text = f"`{machine['command']}`, {machine['date']}, {machine['device']}; load {machine['load']:.1f}; {versions}.\n\n{table}\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(text)


def make_work_folder() -> Path:
    """Return the folder for random weights and runs; the weights are kept there for the next benchmark."""
    path = Path(os.environ.get("BENCHMARK_WORK") or Path(tempfile.gettempdir()) / "detox-sft-benchmarks")
    path.mkdir(parents=True, exist_ok=True)
    return path
