"""Two processes under each launcher's settings, and two nodes of a Slurm: one adapter, and no way to hang."""

import getpass
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Main

from sft.command import RunError
from sft.run_dir import Run
from sft.storage import PROJECT, hash_file, read_json, read_json_lines

TRACKERS = ("tensorboard", "trackio")
# One thread a process, also where it is its node's only one: another number would round otherwise.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"}


@pytest.fixture(scope="session")
def steps(mini_arguments: list[str]) -> list[str]:
    """Arguments for steps that round alike, on whatever number of processes."""
    return [
        *mini_arguments, "--eval_strategy", "no", "--lora_dropout", "0", "--bnb_4bit_quant_storage", "bfloat16",
        "--max_steps", "40", "--logging_steps", "1", "--save_steps", "30", "--dataloader_drop_last",  # else the last step of an epoch is filled up
    ]  # fmt: skip


@pytest.fixture(scope="session")
def by_one(steps: list[str], call_main: Main, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of one process."""
    run = Run(tmp_path_factory.mktemp("one") / "run")
    call_main("sft.run", *steps, "--output_dir", run.root)
    return run


@pytest.fixture(scope="session")
def launched(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Run tests/launched.py under a launcher's settings, once; return its folder."""
    folders: dict[str, Path] = {}

    def launch(name: str) -> Path:
        needed = [*TRACKERS, "deepspeed"] if name == "deepspeed_zero3" else TRACKERS
        if missing := [module for module in needed if importlib.util.find_spec(module) is None]:
            pytest.skip(f"no {', '.join(missing)}: pip install -c constraints.txt -e '.[deepspeed,watch]'")
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            words = [PROJECT / "tests" / "launched.py", folders[name], *steps]
            words += ["--per_device_train_batch_size", 12, "--report_to", *TRACKERS]
            done = run_launcher(name, *words, TRACKIO_DIR=str(folders[name] / "trackio"))
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-8000:]
        return folders[name]

    return launch


def list_words(name: str, *words: object) -> list[str]:
    config = PROJECT / "recipes" / "accelerate" / f"{name}.yaml"
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        config,
        "--main_process_port",
        "0",
    ]
    return [str(word) for word in [*launcher, *words]]


def run_launcher(name: str, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list_words(name, *words), cwd=PROJECT, env=os.environ | ENVIRONMENT | variables, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


def measure_distance(run: Run, other: Run) -> float:
    """Return the largest relative distance of two adapters' tensors."""
    from safetensors.torch import load_file

    ours, theirs = load_file(run.adapter_weights), load_file(other.adapter_weights)
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / ours[name].norm()) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp", "deepspeed_zero3"])
def test_two_processes_train_as_one(
    name: str,
    launched: Callable[[str], Path],
    by_one: Run,
    call_main: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same adapter, resumed to the same bytes after a signal to one process, evaluated and published."""
    root = launched(name)
    whole, resumed = Run(root / "whole"), Run(root / "resumed")
    assert read_json(whole.environment_path)["sharding"] == {"ddp": None, "deepspeed_zero3": "deepspeed"}.get(
        name, name
    )
    assert measure_distance(by_one, whole) < 1e-3
    assert hash_file(resumed.adapter_weights) == hash_file(whole.adapter_weights)
    assert read_json(resumed.environment_path)["resumed_from"] == "checkpoint-3"
    main, other = (read_json(root / f"rank{rank}.json") for rank in (0, 1))
    assert main["messages"] == other["messages"]
    assert "stopped by SIGTERM after step 3 of 40" in main["messages"][0]
    # What the second process writes are its own parts: of checkpoints, and of an evaluation's journal.
    assert all("/checkpoints/" in path or "/unfinished/" in path for path in other["written"])
    assert len([*(whole.root / "logs").iterdir()]) == 1, "one process reports to TensorBoard"
    assert len([*(root / "trackio").glob("*.db")]) == 1
    assert read_json(whole.eval / "results.json")["processes"] == 2
    call_main("publish.run", whole.root)
    assert "README.md" in capsys.readouterr().out
    assert (whole.publish / "README.md").is_file()


@pytest.mark.slow
def test_one_process_goes_on_for_two(
    launched: Callable[[str], Path], steps: list[str], by_one: Run, call_main: Main
) -> None:
    """With the same rows in each step, up to the end of the epoch, as one or two processes; only when asked for."""
    run = Run(launched("ddp") / "left")
    words = [*steps, "--per_device_train_batch_size", 12, "--report_to", *TRACKERS, "--output_dir", run.root]
    with pytest.raises(RunError, match="began with another number of processes "):
        call_main("sft.run", *words, "--resume", "auto")
    call_main("sft.run", *words, "--resume", "auto", "--elastic")
    segments = [{"from_step": 0, "processes": 2}, {"from_step": 3, "processes": 1}]
    assert read_json(run.environment_path)["training"]["elastic"] == segments
    steps_an_epoch = sum(read_json(run.manifest_path)["training_pairs"].values()) // 24
    losses, others = (
        [line["loss"] for line in read_json_lines(each.log_path) if "loss" in line][:steps_an_epoch]
        for each in (run, by_one)
    )
    assert len(losses) >= 4
    assert losses == pytest.approx(others, rel=1e-4)


@pytest.mark.slow
def test_killed_process_ends_all(steps: list[str], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    words = ["sft/run.py", *steps, "--max_steps", "4000", "--output_dir", run.root]
    process = subprocess.Popen(
        list_words("ddp", *words), cwd=PROJECT, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: count_steps(run) >= 2, "two steps")
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        ranks = {read_rank(int(child)): int(child) for child in children}
        os.kill(ranks[1], signal.SIGKILL)
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    assert output.count("Root Cause") == 1
    assert "rank      : 1 " in output.partition("Root Cause")[2]
    assert output.count("error: another process of this training died") == 1


def read_rank(pid: int) -> int:
    words = dict(word.partition("=")[::2] for word in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return int(words.get("RANK", "-1"))


def count_steps(run: Run) -> int:
    return run.log_path.read_text().count('"loss"') if run.log_path.exists() else 0


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 400  # two processes may share one busy core
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what} in vain"
        time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------ Slurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm of two nodes on this host, with a munge of its own; yields the environment for its commands."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name, path=SBIN) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    host = os.uname().nodename.partition(".")[0]
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    ports = [find_free_port() for _ in range(3)]
    nodes = "".join(
        f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[i]} CPUs=2 RealMemory=1000\n"
        for i in (1, 2)
    )
    conf = folder / "slurm.conf"
    conf.write_text(
        SLURM_CONF.format(host=host, user=getpass.getuser(), folder=folder, port=ports[0], nodes=nodes)
    )
    environment = os.environ | ENVIRONMENT | {"SLURM_CONF": str(conf), "PATH": SBIN}
    daemons = [
        ["munged", "--force", *(f"--{name}={folder / name}" for name in ("socket", "log-file", "pid-file", "seed-file")), f"--key-file={folder / 'key'}"],
        ["slurmctld", "-c", "-f", conf],
        *(["slurmd", "-N", f"n{i}", "-f", conf] for i in (1, 2)),
    ]  # fmt: skip
    for state in ("state", "spool"):
        (folder / state).mkdir()
    try:
        for words in daemons:
            subprocess.run(words, env=environment, check=True, capture_output=True)
        wait_for(
            lambda: ask(environment, "sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", "two idle nodes"
        )
        yield environment
    finally:
        for path in [*folder.glob("slurmd-*.pid"), folder / "slurmctld.pid", folder / "pid-file"]:
            if path.exists():
                os.kill(int(path.read_text()), signal.SIGTERM)


SBIN = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"  # the job's accelerate is this interpreter's
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/socket
SlurmUser={user}
SlurmdUser={user}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
{nodes}PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def find_free_port() -> int:
    import socket

    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def ask(environment: dict[str, str], *words: object) -> str:
    return subprocess.run(
        [str(word) for word in words], cwd=PROJECT, env=environment, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


@pytest.mark.slow
def test_two_nodes_and_a_requeue(
    slurm: dict[str, str], launched: Callable[[str], Path], steps: list[str], by_one: Run, tmp_path: Path
) -> None:
    """recipes/launch/slurm.sbatch as it stands: one training over two nodes, requeued in the middle, and at its end."""
    run, log = Run(tmp_path / "run"), tmp_path / "log"
    words = [*steps, "--per_device_train_batch_size", "12", "--output_dir", run.root]
    job = ask(
        slurm, "sbatch", "--parsable", "--nodes", 2, "--output", log, "recipes/launch/slurm.sbatch", *words
    ).strip()  # fmt: skip

    def requeue() -> None:
        ask(slurm, "scontrol", "requeue", job)
        wait_for(
            lambda: "BeginTime" in ask(slurm, "squeue", "-h", "-j", job, "-o", "%r"), "the job to be put back"
        )
        ask(slurm, "scontrol", "update", f"jobid={job}", "starttime=now")  # else it waits for two minutes
        wait_for(lambda: "JobState=COMPLETED" in ask(slurm, "scontrol", "show", "job", job), log.read_text())

    try:
        wait_for(lambda: count_steps(run) >= 2, "two steps")
        requeue()
    except AssertionError:
        print(log.read_text())
        raise
    assert "stopped by SIGTERM after step" in log.read_text()
    assert read_json(run.environment_path)["processes"] == 2
    assert read_json(run.environment_path)["resumed_from"] != "checkpoint-30"
    assert [line["step"] for line in read_json_lines(run.log_path) if "loss" in line] == list(range(1, 41))
    assert hash_file(run.adapter_weights) == hash_file(Run(launched("ddp") / "whole").adapter_weights)
    assert measure_distance(by_one, run) < 1e-3
    files = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    requeue()
    assert "finished already" in log.read_text()
    assert "ExitCode=0:0" in ask(slurm, "scontrol", "show", "job", job)
    assert files == {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
