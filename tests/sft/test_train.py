"""Training: what a run leaves behind, the same bytes twice, going on after a kill, and nothing lost by mistake."""

import importlib.metadata
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PARADETOX, TINY, Main, needs_paradetox, run_python

from sft.command import RunError
from sft.recipe import load_recipe
from sft.run_dir import Run, hold_run
from sft.schema import RecipeFaults
from sft.storage import PROJECT, hash_file, read_json, read_json_lines


def list_files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_finished_run_holds_what_the_readme_says(mini_run: Path) -> None:
    assert {name for name in list_files(mini_run) if not name.startswith(("eval/", "publish/"))} == {
        "recipe.yaml",
        "environment.json",
        "seal.json",
        "data/manifest.json",
        "data/train.jsonl",
        "data/validation.jsonl",
        "data/test.jsonl",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "train.jsonl",
        "plots/loss.png",
        "plots/scores.png",
        "plots/lengths.png",
    }


def test_log_has_a_line_a_logging_step(mini_run: Path) -> None:
    log = read_json_lines(mini_run / "train.jsonl")
    assert [line["step"] for line in log if "loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in log if "eval_loss" in line] == [0, 4, 8]
    for line in log:
        if "loss" in line:
            assert {"epoch", "seconds", "samples_per_second", "loss", "learning_rate", "grad_norm"} <= set(
                line
            )


def test_training_lowers_the_loss(mini_run: Path) -> None:
    """Also after a validation, on CPUs where bitsandbytes repacks 4-bit weights for it: see sft/model.py."""
    losses = read_json(mini_run / "environment.json")["training"]["validation_loss"]
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.slow
def test_training_in_float32_on_a_cpu_without_bfloat16(
    mini_arguments: list[str], mini_run: Path, call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import torch
    from trl import SFTTrainer

    seen: set[torch.dtype] = set()
    step = SFTTrainer.training_step

    def look(self: SFTTrainer, model: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        seen.update(weight.dtype for weight in model.parameters() if weight.requires_grad)
        seen.update({torch.get_autocast_dtype("cpu")} if torch.is_autocast_enabled("cpu") else ())
        return step(self, model, *rest, **named)

    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    monkeypatch.setattr(SFTTrainer, "training_step", look)
    call_main("sft.run", *mini_arguments, "--output_dir", tmp_path)
    assert seen == {torch.float32}
    assert "float32 in its place" in capsys.readouterr().out
    assert load_recipe(tmp_path / "recipe.yaml").trl["dtype"] == "float32"
    losses, others = (
        read_json(run / "environment.json")["training"]["validation_loss"] for run in (tmp_path, mini_run)
    )
    assert losses == pytest.approx(others, rel=0.01)  # the same training but for rounding


def test_splits_in_the_run_do_not_overlap(mini_run: Path) -> None:
    ids = {
        split: {line["id"] for line in read_json_lines(mini_run / "data" / f"{split}.jsonl")}
        for split in ("train", "test")
    }
    assert ids["train"]
    assert ids["test"]
    assert not ids["train"] & ids["test"]
    assert read_json(mini_run / "data" / "manifest.json")["leaks"] == 0


def test_adapter_is_4_bit_lora_on_all_linear_layers_and_names_no_path(
    mini_run: Path, mini_base: Path
) -> None:
    from safetensors import safe_open

    text = (mini_run / "adapter" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] == mini_base.name
    assert "/" not in text.replace("https://", "")
    assert config["target_modules"] == ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]
    with safe_open(mini_run / "adapter" / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert len(names) == 2 * 4 * 2  # A and B, four layers, two blocks
        assert any(weights.get_tensor(name).abs().sum() > 0 for name in names if "lora_B" in name)


@pytest.mark.slow
def test_same_recipe_and_seed_give_the_same_bytes(
    mini_run: Path, mini_arguments: list[str], call_main: Main, tmp_path: Path
) -> None:
    """Whole process against whole process: an order that depends on hash seeds would show."""
    done = run_python("sft/run.py", *mini_arguments, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "run" / "adapter" / name).read_bytes() == (
            mini_run / "adapter" / name
        ).read_bytes()
    call_main("sft.run", *mini_arguments, "--output_dir", tmp_path / "other", "--seed", 1)
    assert hash_file(Run(tmp_path / "other").adapter_weights) != hash_file(Run(mini_run).adapter_weights)


@pytest.mark.slow
def test_resolved_recipe_gives_the_same_run(mini_run: Path, call_main: Main, tmp_path: Path) -> None:
    call_main("sft.run", mini_run / "recipe.yaml", "--output_dir", tmp_path / "again")
    assert hash_file(Run(tmp_path / "again").adapter_weights) == hash_file(Run(mini_run).adapter_weights)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_bytes(
    mini_run: Path, mini_arguments: list[str], call_main: Main, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    arguments = [*mini_arguments, "--output_dir", str(root)]
    process = subprocess.Popen(
        [sys.executable, "sft/run.py", *arguments],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = Run(root)
    deadline = time.monotonic() + 120
    while run.last_checkpoint() is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if run.is_finished():
        pytest.skip("the run was finished before it could be killed")
    assert run.last_checkpoint() is not None
    # A checkpoint that the kill cut off must not be taken.
    torn = run.checkpoints / "checkpoint-7"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    with run.log_path.open("a") as log:
        log.write('{"step": 7, "lo')

    with pytest.raises(
        RunError, match=r"an interrupted run is here, with checkpoint-\d\. --resume_from_checkpoint true"
    ):
        call_main("sft.run", *arguments)
    with pytest.raises(RunError, match=r"the interrupted run began with another learning_rate \(see "):
        call_main("sft.run", *arguments, "--resume_from_checkpoint", "true", "--learning_rate", "1e-3")
    call_main("sft.run", *arguments, "--resume_from_checkpoint", "true")
    assert hash_file(run.adapter_weights) == hash_file(Run(mini_run).adapter_weights)
    steps = [line["step"] for line in read_json_lines(run.log_path) if "loss" in line]
    assert steps == [2, 4, 6, 8]
    assert read_json(run.environment_path)["resumed_from"].startswith("checkpoint-")
    assert not run.checkpoints.exists()


@pytest.fixture
def interrupt(
    mini_arguments: list[str], call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Break off a training after its checkpoint at step 4; return its arguments, without those given here."""

    def stop(*arguments: Any, **_: Any) -> None:
        if arguments[2].global_step == 5:
            raise KeyboardInterrupt

    def train(*words: str) -> list[str]:
        arguments = [*mini_arguments, "--output_dir", str(tmp_path / "run")]
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("sft.train.ProgressLog.on_step_end", stop)
            call_main("sft.run", *arguments, *words)
        assert Run(tmp_path / "run").last_checkpoint()
        return arguments

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [(2**40, 2**20), (2**20, 2**40)], ids=["less memory", "more memory"]
)
def test_resumed_with_other_memory(
    before: int, after: int, interrupt: Callable[..., list[str]], mini_run: Path, call_main: Main, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "sft.memory.find_change", lambda *_: None
    )  # tries many batches, and here none would fit
    monkeypatch.setattr("sft.memory.find_available", lambda _: before)
    arguments = interrupt()
    monkeypatch.setattr("sft.memory.find_available", lambda _: after)
    with pytest.raises(RunError, match="began with another activation_checkpointing"):
        call_main(
            "sft.run",
            *arguments,
            "--resume_from_checkpoint",
            "--activation_checkpointing",
            str(before > after).lower(),
        )
    call_main("sft.run", *arguments, "--resume_from_checkpoint")
    assert load_recipe(tmp_path / "run" / "recipe.yaml").trl["activation_checkpointing"] is (before < after)
    if before > after:
        assert hash_file(Run(tmp_path / "run").adapter_weights) == hash_file(Run(mini_run).adapter_weights)


@pytest.mark.slow
def test_emissions_count_on_after_an_interruption(
    interrupt: Callable[..., list[str]], call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import codecarbon

    countries, stopped = [], []

    class Tracker:
        """codecarbon's, but that each call of `flush` after the first adds a gram."""

        def __init__(self, country_iso_code: str, **_: Any) -> None:
            countries.append(country_iso_code)
            self.kilograms, self.started = 0.0, False

        def start(self) -> None: ...

        def flush(self) -> float:
            self.kilograms += 0.001 * self.started
            self.started = True
            return self.kilograms

        def stop(self) -> None:
            stopped.append(self.kilograms)

    monkeypatch.setattr(codecarbon, "OfflineEmissionsTracker", Tracker)
    arguments = interrupt("--publish.emissions_country", "FRA")
    call_main("sft.run", *arguments, "--publish.emissions_country", "FRA", "--resume_from_checkpoint")
    run = Run(tmp_path / "run")
    emitted = [line["kg_co2eq"] for line in read_json_lines(run.log_path)]
    # Steps 0, 2, 4 and their validations, then from the checkpoint on 6, 8, the last validation and the end.
    assert emitted == pytest.approx([0.001 * count for count in range(1, len(emitted) + 1)])
    assert len(emitted) == 8
    assert countries == ["FRA", "FRA"]
    assert len(stopped) == 1
    assert read_json(run.environment_path)["training"]["emissions"] == {
        "kg_co2eq": emitted[-1],
        "country": "FRA",
        "estimated_by": f"codecarbon {importlib.metadata.version('codecarbon')}",
    }


def test_codecarbon_estimates_for_a_grid_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft.progress import start_tracker

    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address))
    # A user's own settings of codecarbon would send its figures and replace the country's.
    monkeypatch.setenv("CODECARBON_EMISSIONS_ENDPOINT", "http://example.org")
    monkeypatch.setenv("CODECARBON_CO2_SIGNAL_API_TOKEN", "token")
    monkeypatch.setenv("CODECARBON_FORCE_CARBON_INTENSITY_G_CO2E_KWH", "1")
    monkeypatch.chdir(tmp_path)
    for country, grams in (("POL", 662), ("SWE", 41)):  # a kWh, by coal, and by water and the atom
        tracker = start_tracker(country)
        time.sleep(1)
        emitted = tracker.flush()
        tracker.stop()
        assert emitted > 0
        measured = tracker.final_emissions_data
        assert 1000 * measured.emissions / measured.energy_consumed == pytest.approx(grams, rel=0.1)
    assert asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_resumed_with_another_largest_batch(
    interrupt: Callable[..., list[str]], call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_batches_of(size: int) -> None:
        from sft.memory import split_batch

        monkeypatch.setattr("sft.memory.find_batch", lambda recipe, *_: split_batch(recipe, size))

    take_batches_of(8)
    arguments = [*interrupt("--auto_batch"), "--resume_from_checkpoint"]
    take_batches_of(2)
    began = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (began.trl["per_device_train_batch_size"], began.trl["gradient_accumulation_steps"]) == (8, 3)
    with pytest.raises(RunError, match="began with another per_device_train_batch_size "):
        call_main("sft.run", *arguments, "--per_device_train_batch_size", "12")
    from sft.preflight import inspect_recipe

    overrides = ["--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint"]
    for path, words, flag in (
        (TINY, arguments[1:], True),
        (tmp_path / "run" / "recipe.yaml", overrides, False),
    ):
        assert (
            inspect_recipe(str(path), words, auto_batch=flag).recipe.trl["per_device_train_batch_size"] == 8
        )
    assert (
        inspect_recipe(str(TINY), arguments[1:], overwrite=True).recipe.trl["per_device_train_batch_size"]
        == 24
    )
    call_main("sft.run", *arguments)
    assert load_recipe(tmp_path / "run" / "recipe.yaml").trl == began.trl
    assert read_json(tmp_path / "run" / "environment.json")["asked"]["per_device_train_batch_size"] == 24


@pytest.mark.parametrize("with_bfloat16", [True, False])
def test_resumed_on_another_cpu(
    with_bfloat16: bool, interrupt: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft.preflight import inspect_recipe
    from sft.train import find_start

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": with_bfloat16})
    arguments = [*interrupt("--use_cpu"), "--use_cpu", "--resume_from_checkpoint"]
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": not with_bfloat16})
    preflight = inspect_recipe(str(TINY), arguments[1:])
    assert preflight.recipe.trl["dtype"] == ("bfloat16" if with_bfloat16 else "float32")
    assert (
        any("as the interrupted run does: slow" in note for note in preflight.list_notes()) == with_bfloat16
    )
    assert find_start(Run(tmp_path / "run"), preflight, False)


def test_finished_run_is_not_overwritten(mini_run: Path, mini_arguments: list[str], call_main: Main) -> None:
    before = {name: (mini_run / name).read_bytes() for name in list_files(mini_run)}
    with pytest.raises(RunError, match=r"a finished run is here\. --overwrite replaces it"):
        call_main("sft.run", *mini_arguments, "--output_dir", mini_run)
    assert before == {name: (mini_run / name).read_bytes() for name in list_files(mini_run)}


def test_overwrite_replaces_the_run_and_keeps_other_files(
    mini_arguments: list[str], call_main: Main, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    (root / "adapter").mkdir(parents=True)
    (root / "notes.txt").write_text("mine")
    arguments = [*mini_arguments, "--output_dir", root, "--max_steps", 2]
    with pytest.raises(RunError, match="neither empty nor a run directory"):
        call_main("sft.run", *arguments)
    (root / ".recipe.yaml.x1").write_text("cut off by a kill")
    (root / "notes.txt").rename(tmp_path / "notes.txt")
    (root / "adapter").rmdir()
    call_main("sft.run", *arguments)
    (tmp_path / "notes.txt").rename(root / "notes.txt")
    first = hash_file(Run(root).adapter_weights)
    call_main("sft.run", *arguments, "--overwrite", "--learning_rate", "1e-2", "--warmup_steps", "0")
    assert hash_file(Run(root).adapter_weights) != first
    assert (root / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ["--load_best_model_at_end", "true", "--save_strategy", "epoch"],
        ["--eval_strategy", "no", "--lr_scheduler_type", "reduce_lr_on_plateau"],
        ["--accelerator_config", "x"],
    ],
)
def test_late_faults_are_found_before_a_run_is_replaced(
    words: list[str], mini_run: Path, mini_arguments: list[str], call_main: Main
) -> None:
    before = {name: (mini_run / name).read_bytes() for name in list_files(mini_run)}
    with pytest.raises(RecipeFaults, match="TRL refuses it: "):
        call_main("sft.run", *mini_arguments, "--output_dir", mini_run, "--overwrite", *words)
    assert before == {name: (mini_run / name).read_bytes() for name in list_files(mini_run)}


def read_files(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in list_files(root)}


@pytest.mark.parametrize("moment", ["record_training", "save_adapter", "replace_folder"])
def test_overwrite_keeps_the_old_run_until_the_new_one_is_finished(
    moment: str, mini_run: Path, mini_arguments: list[str], call_main: Main, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed at any moment, the old run stays as it was, or the new one is there; the same command's `resume` goes on."""
    root = tmp_path / "run"
    shutil.copytree(mini_run, root)
    (root / "notes.txt").write_text("mine")
    old = read_files(root)
    arguments = [*mini_arguments, "--output_dir", root, "--learning_rate", "2e-3"]
    names = {
        "record_training": "sft.train.record_training",
        "save_adapter": "sft.model.save_adapter",
        "replace_folder": "sft.run_dir.replace_folder",
    }

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(names[moment], die)
        with pytest.raises(KeyboardInterrupt):
            call_main("sft.run", *arguments, "--overwrite")
    kept = read_files(root)
    moved = {"notes.txt"} if moment == "replace_folder" else set()
    assert {name: old[name] for name in old.keys() - moved} == kept
    call_main("sft.run", *arguments, "--resume", "auto")
    assert (root / "notes.txt").read_text() == "mine"
    assert Run(root).recipe.trl["learning_rate"] == 2e-3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_at_the_last_step_is_finished_work(
    mini_run: Path,
    mini_arguments: list[str],
    call_main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between the last checkpoint and the adapter, a run goes on to the same bytes, in another place too."""
    root, moved = tmp_path / "run", tmp_path / "moved"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sft.train.record_training", die)
        call_main("sft.run", *mini_arguments, "--output_dir", root)
    assert Run(root).last_checkpoint() == root / "checkpoints" / "checkpoint-8"
    root.rename(moved)
    call_main("sft.run", *mini_arguments, "--output_dir", moved, "--resume_from_checkpoint", "true")
    assert hash_file(Run(moved).adapter_weights) == hash_file(Run(mini_run).adapter_weights)
    assert Run(moved).environment["training"]["steps"] == 8


@pytest.mark.parametrize("rate", ["1e12", "1e10"])
def test_a_loss_that_is_not_finite_ends_the_training(
    rate: str, mini_arguments: list[str], call_main: Main, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    words = ["--learning_rate", rate, "--warmup_steps", 0, "--max_grad_norm", 0, "--output_dir", root]
    with pytest.raises(RunError, match=r"not finite.*diverged\. .*Try a lower learning_rate"):
        call_main("sft.run", *mini_arguments, *words)
    assert not Run(root).is_finished()


def test_weights_that_are_not_finite_are_not_saved(
    mini_arguments: list[str], call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last step may break the weights, and no loss after it tells."""
    from sft.train import Trainer

    train = Trainer.train

    def train_and_break(self: Trainer, **options: Any) -> None:
        train(self, **options)
        next(p for p in self.model.parameters() if p.requires_grad).data[0] = float("nan")

    monkeypatch.setattr(Trainer, "train", train_and_break)
    with pytest.raises(RunError, match="the adapter's weights are not finite"):
        call_main("sft.run", *mini_arguments, "--output_dir", tmp_path / "run", "--max_steps", 1)
    assert not Run(tmp_path / "run").is_finished()


def test_one_training_a_run_directory(mini_arguments: list[str], call_main: Main, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with hold_run(run), pytest.raises(RunError, match="another process is training here"):
        call_main("sft.run", *mini_arguments, "--output_dir", run.root)
    assert not run.root.exists()


def test_without_validation(mini_arguments: list[str], call_main: Main, tmp_path: Path) -> None:
    words = ["--eval_strategy", "no", "--data.validation", 0, "--max_steps", 1]
    call_main("sft.run", *mini_arguments, *words, "--output_dir", tmp_path / "run")
    assert read_json(tmp_path / "run" / "environment.json")["training"]["validation_loss"] == []


def test_file_in_place_of_the_run(mini_arguments: list[str], call_main: Main, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(RunError, match="a file, expected a folder"):
        call_main("sft.run", *mini_arguments, "--output_dir", tmp_path / "run")


@pytest.mark.slow
def test_launchers_one_thread_becomes_all_cores(tmp_path: Path) -> None:
    """accelerate launch gives a single process OMP_NUM_THREADS=1."""
    script = tmp_path / "threads.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from sft.model import join_processes; join_processes(True)\n"
        "import joblib, torch; print(torch.get_num_threads(), joblib.cpu_count(only_physical_cores=True))"
    )
    launched = run_python("-m", "accelerate.commands.launch", script).stdout.split()
    assert launched and launched[0] == launched[1], launched
    assert (
        run_python(script, env={"OMP_NUM_THREADS": "1"}).stdout.split()[0] == "1"
    )  # a user's own word stands


@pytest.mark.slow
def test_two_processes_train_one_run(mini_arguments: list[str], tmp_path: Path) -> None:
    launcher = ["accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu.yaml"]
    root = tmp_path / "run"
    arguments = [*mini_arguments, "--max_steps", 4, "--eval.batch_size", 4, "--output_dir", root]
    done = run_python("-m", *launcher, "sft/run.py", *arguments)
    assert done.returncode == 0, done.stderr
    run = Run(root)
    assert run.is_finished()
    assert read_json(run.environment_path)["processes"] == 2
    assert [line["step"] for line in read_json_lines(run.log_path) if "loss" in line] == [
        2,
        4,
    ]  # once, not once a process
    done = run_python("-m", *launcher, "eval/run.py", root)
    assert done.returncode == 0, done.stderr
    by_two = (run.eval / "predictions.jsonl").read_bytes()
    results = read_json(run.eval / "results.json")
    assert results["processes"] == 2
    assert results["data"]["rows"] > 2 * 4, "both processes had batches"
    done = run_python("eval/run.py", root)
    assert done.returncode == 0, done.stderr
    assert (run.eval / "predictions.jsonl").read_bytes() == by_two
    by_one = read_json(run.eval / "results.json")
    for key in ("created", "generation_seconds", "processes"):
        del results[key], by_one[key]
    assert results == by_one


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp", "deepspeed_zero3"])
def test_accelerate_files_are_ones_that_accelerate_reads(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(PROJECT / "recipes" / "accelerate" / f"{name}.yaml")).num_processes == 2


@pytest.mark.slow
@needs_paradetox
def test_real_paradetox_lowers_the_validation_loss_by_a_third(call_main: Main, tmp_path: Path) -> None:
    root = tmp_path / "run"
    call_main(
        "sft.run", TINY, "--data.source", PARADETOX, "--max_steps", 450, "--output_dir", root, "--save_strategy", "no",
        "--eval_strategy", "steps", "--eval_steps", 450, "--data.validation", 0.02, "--data.test", 0.02,
    )  # fmt: skip
    first, last = read_json(root / "environment.json")["training"]["validation_loss"]
    assert last < first * 2 / 3, f"validation loss {first:.3f} -> {last:.3f}"
    assert load_recipe(root / "recipe.yaml").data.source == str(PARADETOX)


def test_environment_names_no_user(mini_run: Path) -> None:
    environment = read_json(mini_run / "environment.json")
    assert {"versions", "hardware", "git_commit", "seeds", "command", "base", "training"} <= set(environment)
    assert environment["versions"]["trl"]
    assert str(Path.home()) not in json.dumps(
        {key: environment[key] for key in environment if key != "command"}
    )
