"""The estimate of memory, held against what real tensors take."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, Main

import sft.memory
from sft.memory import Fit, Ledger, Memory, estimate_memory, find_batch, find_change, fits, trace_step
from sft.model import build_model_config, load_base, resolve_base
from sft.preflight import inspect_recipe
from sft.recipe import load_recipe
from sft.schema import Recipe, RecipeError
from sft.storage import read_json

ROWS = [{"input_ids": list(range(4, 4 + n)), "labels": [-100] * (n - 7) + [5] * 7} for n in (20, 44, 31, 44)]


@pytest.mark.parametrize("overrides", [[], ["--load_in_4bit", "false"], ["--attn_implementation", "eager"]])
def test_traced_activations_are_those_of_the_real_model(mini_base: Path, overrides: list[str]) -> None:
    from peft import get_peft_model
    from trl import get_peft_config

    from sft.bloom import quicken_dropout

    words = ["--model_name_or_path", str(mini_base), "--per_device_train_batch_size", "4", *overrides]
    recipe = load_recipe(TINY, words)
    model = load_base(recipe, resolve_base(str(mini_base)))
    traced = trace_step(recipe, model.config, model.config.n_layer, ROWS, on_gpu=False)
    model = get_peft_model(model, get_peft_config(build_model_config(recipe)))
    for parameter in model.parameters():
        if parameter.requires_grad and recipe.trl["load_in_4bit"]:
            parameter.data = parameter.data.bfloat16()
    quicken_dropout(model.train())
    frozen = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    assert traced["weights"] == pytest.approx(frozen, rel=0.05)  # quantised: their scales are no parameters
    with Ledger() as ledger, torch.autocast("cpu", torch.bfloat16):
        for parameter in model.parameters():
            ledger.add(parameter)
        before = ledger.live
        hidden = model.get_base_model().base_model(torch.full((4, 44), 5), use_cache=False).last_hidden_state
        activations = ledger.live - before
    assert hidden.shape[:2] == (4, 44)
    assert traced["forward"] - traced["weights"] - traced["adapter"] == pytest.approx(activations, rel=0.05)


def test_layers_extrapolate(mini_base: Path) -> None:
    recipe = load_recipe(TINY, ["--model_name_or_path", str(mini_base), "--per_device_train_batch_size", "4"])
    from sft.model import load_config

    config = load_config(resolve_base(str(mini_base)))
    config.n_layer = 7
    whole = trace_step(recipe, config, 7, ROWS, on_gpu=True)
    memory = estimate_memory(recipe, config, ROWS, 10**6, None)
    assert memory.peak == pytest.approx(whole["peak"], rel=0.02)
    assert memory.weights == pytest.approx(whole["weights"], rel=0.02)


def test_checkpointing_and_smaller_batches_take_less(mini_base: Path) -> None:
    from sft.model import load_config

    config = load_config(resolve_base(str(mini_base)))
    config.n_layer = 12

    def estimate(*overrides: str) -> Memory:
        recipe = load_recipe(TINY, ["--model_name_or_path", str(mini_base), *overrides])
        return estimate_memory(recipe, config, ROWS * 6, 10**6, None)

    plain = estimate()
    assert estimate("--activation_checkpointing", "true").activations < plain.activations / 4
    assert estimate("--per_device_train_batch_size", "12").activations == pytest.approx(
        plain.activations / 2, rel=0.1
    )
    assert estimate("--packing", "true").activations > 2 * plain.activations  # rows of 160 tokens


@pytest.fixture
def estimate_by_batch() -> Callable[[Recipe], Memory]:
    """A batch of n takes n GiB without checkpointing and n / 4 with it, and the base one, or four times that if not 4 bit."""

    def estimate(recipe: Recipe) -> Memory:
        size = recipe.trl["per_device_train_batch_size"] * 2**30
        weights = 2**30 if recipe.trl["load_in_4bit"] else 2**32
        return Memory(0, weights, 0, size // 4 if recipe.trl["activation_checkpointing"] else size, 0, 0)

    return estimate


@pytest.mark.parametrize(
    ("gib", "batch", "cure"),
    [
        (30, 24, ""),
        (14, 8, "--per_device_train_batch_size 8 --gradient_accumulation_steps 3"),
        (2.5, 1, "--per_device_train_batch_size 1 --gradient_accumulation_steps 24"),
        (
            1.8,
            1,
            "--per_device_train_batch_size 2 --gradient_accumulation_steps 12 --activation_checkpointing true",
        ),
        (1, 1, None),
    ],
)
def test_largest_batch_and_cure(
    gib: float, batch: int, cure: str | None, estimate_by_batch: Callable[[Recipe], Memory]
) -> None:
    recipe = load_recipe(TINY, ["--activation_checkpointing", "false"])
    available = int(gib * 2**30)
    found = find_batch(recipe, estimate_by_batch, available)
    assert found.trl["per_device_train_batch_size"] == batch
    assert batch * found.trl["gradient_accumulation_steps"] == 24
    assert find_change(recipe, estimate_by_batch, available) == cure


@pytest.mark.parametrize(
    ("overrides", "cure"),
    [
        ([], "--load_in_4bit true"),
        (["--load_in_8bit", "true"], "--load_in_4bit true --load_in_8bit false"),
        (["--dtype", "auto"], "--load_in_4bit true --dtype bfloat16"),
    ],
)
def test_cure_may_be_4_bit(
    overrides: list[str], cure: str, estimate_by_batch: Callable[[Recipe], Memory]
) -> None:
    words = ["--load_in_4bit", "false", "--activation_checkpointing", "true", *overrides]
    found = find_change(load_recipe(TINY, words), estimate_by_batch, 3 * 2**30)
    assert found is not None and found.endswith(cure)
    assert load_recipe(TINY, [*words, *found.split()]).trl[
        "load_in_4bit"
    ]  # it is one that the check lets pass


@pytest.mark.parametrize(
    ("limit", "processes", "expected"),
    [
        (str(10 * 2**30), 1, 6 * 2**30),  # 10 - (5 - 1) that others and this process have
        (str(10 * 2**30), 2, 3 * 2**30),
        (str(2**30), 1, 0),
        (str(2**50), 1, 100 * 2**30),
        ("max", 2, 50 * 2**30),
        (None, 1, 100 * 2**30),
    ],
)
def test_memory_left_in_a_container(
    limit: str | None, processes: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{5 * 2**30}\n")
        (tmp_path / "memory.stat").write_text(
            f"anon {3 * 2**30}\nfile {2**31}\ninactive_file {2**30}\nactive_file {2**30}\n"
        )
    monkeypatch.setattr(sft.memory, "CGROUP", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=100 * 2**30))
    monkeypatch.setattr(
        "psutil.Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=2**20))
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert sft.memory.find_available(on_gpu=False) == expected + 2**20


def inspect(mini_arguments: list[str], *words: str, auto_batch: bool = False) -> Any:
    return inspect_recipe(mini_arguments[0], [*mini_arguments[1:], *words], auto_batch)


@pytest.mark.slow
def test_recipe_leaves_checkpointing_to_the_memory(
    mini_arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # This process grows from one inspection to the next; its libraries are taken to be as large each time.
    monkeypatch.setattr(
        sft.memory, "estimate_memory", lambda *arguments: estimate_memory(*arguments[:-1], 2**30)
    )
    monkeypatch.setattr(sft.memory, "find_available", lambda _: 2**40)
    roomy = inspect(mini_arguments)
    assert roomy.recipe.trl["activation_checkpointing"] is False and roomy.fit.change is None
    monkeypatch.setattr(
        sft.memory, "find_available", lambda _: int(roomy.fit.memory.peak / sft.memory.SPARE) - 2**20
    )
    tight = inspect(mini_arguments)
    assert tight.recipe.trl["activation_checkpointing"] is True
    assert tight.fit.memory.activations < roomy.fit.memory.activations
    monkeypatch.setattr(sft.memory, "find_available", lambda _: 2**20)
    none = inspect(mini_arguments, "--activation_checkpointing", "false")
    assert none.recipe.trl["activation_checkpointing"] is False
    assert "may not fit" in none.fit.warn() and "smaller base" in none.fit.warn()


def test_auto_batch_is_recorded_and_keeps_the_step(
    mini_arguments: list[str], call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sft.memory, "fits", lambda memory, _: fits(memory, 2**60) and memory.activations < 3 * 2**20
    )
    call_main(
        "sft.run", *mini_arguments, "--output_dir", tmp_path / "run", "--auto_batch", "--max_steps", "1"
    )
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    size = recipe.trl["per_device_train_batch_size"]
    assert 1 <= size < 24 and size * recipe.trl["gradient_accumulation_steps"] == 24
    assert read_json(tmp_path / "run" / "environment.json")["estimated_memory_gib"]["peak"] > 0


def test_architecture_without_an_estimate(mini_arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Memory:
        raise RuntimeError("it reads a tensor")

    monkeypatch.setattr(sft.memory, "estimate_memory", fail)
    preflight = inspect(mini_arguments)
    assert preflight.fit is None and preflight.describe()["memory_gib"] is None
    assert preflight.recipe.trl["activation_checkpointing"] is True  # TRL's default
    assert preflight.list_notes()[-1] == "no estimate of memory for bloom: activation checkpointing is on"
    said = inspect(mini_arguments, "--activation_checkpointing", "false")
    assert said.recipe.trl["activation_checkpointing"] is False
    assert not any("no estimate" in note for note in said.list_notes())
    with pytest.raises(
        RecipeError, match=r"no estimate of memory for bloom: it reads a tensor\. Expected no --auto_batch\."
    ):
        inspect(mini_arguments, auto_batch=True)


def test_preflight_prints_the_estimate(
    mini_arguments: list[str], call_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    call_main("sft.check", *mini_arguments)
    shown = capsys.readouterr().out
    assert "memory at the peak, by estimate" in shown and "fits, with batches of 24, 1 a step" in shown


def test_warning_names_what_would_fit() -> None:
    fit = Fit(Memory(0, 2**31, 0, 2**31, 0, 0), 2**31, "--load_in_4bit true")
    assert fit.warn() == (
        "this training may not fit into memory: 4.0 GiB at the peak, by estimate, with 2.0 GiB available. "
        "With --load_in_4bit true it would fit."
    )
