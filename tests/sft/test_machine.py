"""What a recipe meets on a machine, with a GPU and without, from what torch says of it."""

import pytest
from conftest import TINY

from sft.machine import find_machine, find_machine_conflicts, settle_precision
from sft.recipe import load_recipe


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device that does not compute in bfloat16."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: including_emulation)


@pytest.mark.usefixtures("old_gpu")
def test_gpu_without_bfloat16_is_a_fault_that_names_it() -> None:
    recipe = load_recipe(TINY, ["--optim", "paged_adamw_8bit"])
    machine = find_machine(recipe)
    assert (machine.on_cpu, machine.on_gpu, machine.gpus) == (False, True, ("Tesla T4",))
    (fault,) = find_machine_conflicts(recipe, machine)
    assert (fault.key, str(fault)) == (
        "bf16",
        "Tesla T4 has no bfloat16. Expected bf16: false with dtype: float32 (slower).",
    )
    assert settle_precision(recipe, machine) == (recipe, None), "only a CPU is settled"


@pytest.mark.usefixtures("old_gpu")
def test_recipe_that_says_use_cpu_has_no_gpu() -> None:
    recipe = load_recipe(TINY, ["--use_cpu", "true", "--optim", "paged_adamw_8bit", "--dtype", "float16"])
    machine = find_machine(recipe)
    assert (machine.on_cpu, machine.on_gpu, machine.gpus) == (True, False, ("Tesla T4",))
    assert [fault.key for fault in find_machine_conflicts(recipe, machine)] == ["dtype", "optim"]


def test_peak_is_this_processes_memory_on_a_cpu() -> None:
    machine = find_machine(load_recipe(TINY, ["--use_cpu", "true"]))
    assert 2**26 < machine.measure_peak() < 2**40
