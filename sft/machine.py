"""What this machine can do: its device, its precision, its processes, and what is installed.

torch and transformers take seconds to import; they are imported where they are used, after arguments are
read.
"""

import importlib.util
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sft.schema import Recipe, RecipeError

if TYPE_CHECKING:
    from accelerate import PartialState


@dataclass(frozen=True)
class Machine:
    """What a recipe is trained on."""

    on_cpu: bool  # there is no accelerator, or the recipe says use_cpu
    on_gpu: bool  # a CUDA device; neither of the two is another accelerator
    gpus: tuple[str, ...]  # names of all that are here, used or not
    in_bfloat16: bool  # whether the device computes in bfloat16

    @cached_property
    def processes(self) -> "PartialState":
        """The processes that the launcher started; the first look joins them (see `join_processes`)."""
        return join_processes(self.on_cpu)

    @cached_property
    def sharding(self) -> str | None:
        """What shards the model, by the launcher's settings (recipes/accelerate): fsdp, deepspeed or None."""
        for name in ("fsdp", "deepspeed"):
            if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() == "true":
                return name
        return None

    def measure_peak(self) -> int:
        """Return the most bytes that this process has held: of the GPU's memory, or of the RAM."""
        import torch

        if self.on_gpu:
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def find_machine(recipe: Recipe) -> Machine:
    """Look at the hardware that a recipe meets here."""
    import torch

    use_cpu = recipe.trl["use_cpu"]
    on_gpu = torch.cuda.is_available() and not use_cpu
    return Machine(
        on_cpu=use_cpu or not torch.accelerator.is_available(),
        on_gpu=on_gpu,
        gpus=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        in_bfloat16=torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else has_bfloat16(),
    )


def has_bfloat16() -> bool:
    """Say whether this CPU computes in bfloat16; on another, products are a hundred times slower in it."""
    import torch

    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def join_processes(use_cpu: bool = False) -> "PartialState":
    """Join the processes that the launcher started, set CPU threads and caches, and return their state.

    Without `cpu=True`, accelerate takes each process on a machine without GPU for the only one. Its launcher
    gives a process one thread, where nothing else is said, and leaves the other cores idle. PyTorch and
    oneDNN each keep code and buffers for 1,024 shapes: with batches of many lengths a gigabyte, which also
    slows a training down.
    """
    import torch
    from accelerate import PartialState
    from joblib import cpu_count

    if os.environ.get("OMP_NUM_THREADS") == "1" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, cpu_count(only_physical_cores=True) // local_processes))
    for capacity in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # read at the first operation
        os.environ.setdefault(capacity, "64")
    return PartialState(cpu=use_cpu or not torch.accelerator.is_available())


def settle_precision(recipe: Recipe, machine: Machine) -> tuple[Recipe, str | None]:
    """Return the recipe in float32 where it asks a CPU for bfloat16 that has none, and a line that says so.

    `attn_implementation: eager`, the plain path, stays as it is.
    """
    trl = recipe.trl
    asked = trl["bf16"] is not False or trl["dtype"] != "float32"
    lacking = machine.on_cpu and not machine.in_bfloat16
    if not (asked and lacking) or trl["attn_implementation"] == "eager":
        return recipe, None
    note = "this CPU does not compute in bfloat16: float32 in its place (bf16: false, dtype: float32)"
    return recipe.change(bf16=False, dtype="float32"), note


def find_machine_conflicts(recipe: Recipe, machine: Machine) -> Iterator[RecipeError]:
    """Yield the faults of a recipe on this machine: what is not installed, and what its hardware lacks."""
    yield from find_tracker_conflicts(recipe)
    yield from find_emissions_conflicts(recipe)
    yield from find_hardware_conflicts(recipe, machine)


def find_tracker_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    report_to = recipe.trl["report_to"] or []
    names = [report_to] if isinstance(report_to, str) else report_to
    if set(names) <= {"none"}:  # the integrations take seconds to import
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in (*INTEGRATION_TO_CALLBACK, "none", "all"):
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            yield RecipeError(f"found {name!r}, expected none, all, or some of {known}.", "report_to")
        elif name in INTEGRATION_TO_CALLBACK and name not in get_available_reporting_integrations():
            yield RecipeError(f"{name} is not installed. Install it, or use report_to: none.", "report_to")


def find_emissions_conflicts(recipe: Recipe) -> Iterator[RecipeError]:
    country = recipe.publish.emissions_country
    if country and importlib.util.find_spec("codecarbon") is None:
        message = "codecarbon is not installed. Install it: pip install -e '.[emissions]'"
        yield RecipeError(message, "publish.emissions_country")
    elif country:
        from codecarbon.input import DataSource

        if country not in DataSource().get_global_energy_mix_data():
            found = f"found {country!r}, which codecarbon has no power grid of"
            message = f"{found}. Expected a country's code (ISO 3166)."
            yield RecipeError(message, "publish.emissions_country")


def find_hardware_conflicts(recipe: Recipe, machine: Machine) -> Iterator[RecipeError]:
    trl = recipe.trl
    if trl["use_liger_kernel"] and importlib.util.find_spec("liger_kernel") is None:
        yield RecipeError("liger-kernel is not installed. Install it, or say false.", "use_liger_kernel")
    if not machine.on_gpu:
        if trl["attn_implementation"] == "flex_attention":
            message = "flex_attention trains on a GPU alone. Expected sdpa or eager."
            yield RecipeError(message, "attn_implementation")
        if trl["activation_offloading"]:
            message = "there is no GPU whose memory it would spare. Expected false."
            yield RecipeError(message, "activation_offloading")
        if trl["fp16"] or trl["dtype"] == "float16":
            message = "float16 does not train on a CPU. Expected bf16: true, or dtype: float32."
            yield RecipeError(message, "fp16" if trl["fp16"] else "dtype")
        if trl["optim"].startswith("paged_"):
            yield RecipeError(
                f"found {trl['optim']}, which needs a GPU. Expected adamw_torch_fused.", "optim"
            )
    elif trl["bf16"] is not False and not trl["fp16"] and not machine.in_bfloat16:
        message = f"{machine.gpus[0]} has no bfloat16. Expected bf16: false with dtype: float32 (slower)."
        yield RecipeError(message, "bf16")
