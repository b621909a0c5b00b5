"""The memory that a training will take, estimated from one step of its first layers on fake tensors."""

import copy
import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from sft.machine import Machine
from sft.schema import Recipe, RecipeError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BUFFERS = 160 * 2**20  # on a CPU: what the trainer imports, and the code and buffers that oneDNN keeps
GAPS = (
    0.2  # on a CPU: what the heap has more than its tensors, of the activations (tests/benchmarks/RESULTS.md)
)
GPU_VOCABULARY_TILE = 32_768  # TRL's kernels hold the logits of so many words at a time
CHANGES = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "activation_checkpointing",
    "load_in_4bit", "load_in_8bit", "dtype",
)  # fmt: skip
CGROUP = Path("/sys/fs/cgroup")  # of a container
SPARE = 0.9  # an estimate may be a tenth too low


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step with the longest rows, and while the weights are loaded."""

    libraries: int  # this process as it is, on a CPU; nothing on a GPU
    weights: int  # the base, quantised or not
    adapter: int  # with its optimizer's states
    activations: int  # kept for the backward pass
    rest: int  # logits, gradients, weights turned back from 4 bit, buffers, gaps in the heap
    loading: int  # while the weights are loaded, in place of adapter, activations and rest

    @property
    def peak(self) -> int:
        return self.libraries + self.weights + max(self.loading, self.adapter + self.activations + self.rest)

    def describe(self) -> dict[str, float]:
        """Return GiB, rounded."""
        sizes = dataclasses.asdict(self) | {"peak": self.peak}
        return {name: round(size / 2**30, 3) for name, size in sizes.items()}


@dataclass(frozen=True)
class Fit:
    """A training's memory, held against what there is."""

    memory: Memory
    available: int  # bytes
    change: str | None  # overrides with which a recipe that does not fit would

    def describe(self) -> dict[str, float]:
        """Return GiB, rounded."""
        return self.memory.describe() | {"available": round(self.available / 2**30, 3)}

    def warn(self) -> str | None:
        """Return what to say of a recipe that does not seem to fit."""
        if fits(self.memory, self.available):
            return None
        cure = (
            f"With {self.change} it would fit." if self.change else "No batch would fit; take a smaller base."
        )
        peak, available = self.memory.peak / 2**30, self.available / 2**30
        found = f"{peak:.1f} GiB at the peak, by estimate, with {available:.1f} GiB available"
        return f"this training may not fit into memory: {found}. {cure}"


class Ledger(TorchDispatchMode):
    """Counts the bytes of live tensors (`live`), and the most that were live at once (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.seen:
            self.seen[storage] = True
            self.change(storage.nbytes())
            weakref.finalize(storage, self.change, -storage.nbytes())

    def change(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return result


class FromBits(torch.autograd.Function):
    """A product with a quantised weight, which bitsandbytes dequantises in each forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        ctx.shape = shape
        return hidden @ hidden.new_empty(shape).mT

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad @ grad.new_empty(ctx.shape), None


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is so many bytes."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            hidden = hidden.to(torch.get_autocast_dtype("cpu"))
        product = FromBits.apply(hidden, (self.out_features, self.in_features))
        return product if self.bias is None else product + self.bias


def estimate_memory(
    recipe: Recipe,
    config: "PretrainedConfig",
    rows: Sequence[Mapping[str, list[int]]],
    parameters: int,
    libraries: int | None,
) -> Memory:
    """Estimate a training's memory on each device, for tokenised rows and a base of so many `parameters`.

    On a CPU, Python and its `libraries` take so many bytes; None stands for a GPU.

    The model's first layer, and its first two, take a step with the longest rows on fake tensors, which have
    sizes and no contents; the other layers are like the second. Optimizers are taken to be AdamW, and 8-bit
    weights to cost a byte.
    """
    on_gpu = libraries is None
    depth = config.num_hidden_layers
    one, two = (trace_step(recipe, config, layers, rows, on_gpu) for layers in (1, 2))
    steps = {key: one[key] + (depth - 1) * (two[key] - one[key]) for key in one}
    weights = steps["weights"]
    loading = 0
    if not on_gpu and (recipe.trl["load_in_4bit"] or recipe.trl["load_in_8bit"]):
        loading = (
            parameters * (getattr(config, "dtype", None) or torch.bfloat16).itemsize
        )  # the file, mapped as a whole
    activations = steps["forward"] - weights - steps["adapter"]
    return Memory(
        libraries=libraries or 0,
        weights=weights,
        adapter=steps["adapter"],
        activations=activations,
        rest=steps["peak"] - steps["forward"] + (0 if on_gpu else int(GAPS * activations)),
        loading=loading,
    )


def trace_step(
    recipe: Recipe,
    config: "PretrainedConfig",
    layers: int,
    rows: Sequence[Mapping[str, list[int]]],
    on_gpu: bool,
) -> dict[str, int]:
    """Return the bytes of `weights`, `adapter` with its states, all after the `forward` pass, and `peak`."""
    from sft.loss import FrozenHeadLogProbs

    trl = recipe.trl
    model = build_fake_model(recipe, config, layers, on_gpu)
    base = model.get_base_model()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = trl["per_device_train_batch_size"]
    longest = sorted(rows, key=lambda row: len(row["input_ids"]))[-batch:]
    tokens = len(longest[-1]["input_ids"])
    labelled = sum(label != -100 for row in longest for label in row["labels"])
    packed = trl["packing"] and config.model_type == "bloom"
    if packed:
        labelled = labelled * batch * trl["max_length"] // sum(len(row["input_ids"]) for row in longest)
        tokens = trl["max_length"]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=trl["bf16"] is not False)
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        fill(model)
        for parameter in model.parameters():
            ledger.add(parameter)
        weights = ledger.live - sum(parameter.nbytes for parameter in trained)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad]
        )
        model.train()
        for _ in range(2):  # the optimizer's states are there from the second step on
            held = ledger.live
            inputs: dict[str, torch.Tensor] = {"input_ids": torch.zeros(batch, tokens, dtype=torch.long)}
            inputs |= {"position_ids": torch.zeros_like(inputs["input_ids"])} if packed else {}
            with autocast:
                hidden = base.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)[:labelled]
                forward = ledger.live
                head = base.get_output_embeddings().weight
                head = head[:GPU_VOCABULARY_TILE] if on_gpu else head
                loss = FrozenHeadLogProbs.apply(hidden, head, torch.zeros(len(hidden), dtype=torch.long))[
                    0
                ].mean()
            del hidden
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"weights": weights, "adapter": held - weights, "forward": forward, "peak": ledger.peak}


def build_fake_model(recipe: Recipe, config: "PretrainedConfig", layers: int, on_gpu: bool) -> Any:
    """Return the model with LoRA as training has it, without contents (on the meta device)."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import get_peft_config

    from sft.bloom import FusedBloomAttention, fuse, quicken_dropout, read_positions
    from sft.model import build_model_config, trains_in_float32

    trl = recipe.trl
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    quantised = trl["load_in_4bit"] or trl["load_in_8bit"]
    dtype = getattr(torch, trl["dtype"], None) or getattr(config, "dtype", None) or torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        if trl["attn_implementation"] != "eager":
            fuse(model)
        if config.model_type == "bloom" and trl["packing"]:
            read_positions(model)
        for module in model.modules():
            if quantised and type(module) is nn.Linear and module is not model.get_output_embeddings():
                module.__class__ = QuantisedLinear
                module.weight = nn.Parameter(
                    torch.empty(count_bytes(module.weight.numel(), trl), dtype=torch.uint8), False
                )
        model = get_peft_model(model, get_peft_config(build_model_config(recipe)))
    for parameter in model.parameters():
        if quantised and parameter.requires_grad and (on_gpu or not trains_in_float32(recipe)):
            parameter.data = parameter.data.bfloat16()  # as TRL trains it
    if trl["activation_checkpointing"]:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    if not on_gpu:
        quicken_dropout(model)
    for module in model.modules():
        if on_gpu and isinstance(module, FusedBloomAttention):
            module.attend_in_steps = attend_fused  # type: ignore[method-assign]
    return model


def attend_fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Attend as on a GPU: the fused kernel keeps no weights for the backward pass."""
    return nn.functional.scaled_dot_product_attention(query, key, value, bias.expand(*query.shape[:3], -1))


def count_bytes(numbers: int, trl: Mapping[str, Any]) -> int:
    """Return the bytes of so many quantised weights: 64 share a scale, of a byte if quantised."""
    if trl["load_in_8bit"]:
        return numbers
    return int(numbers * (0.5 + (1 + 4 / 256 if trl["use_bnb_nested_quant"] else 4) / 64))


def fill(model: nn.Module) -> None:
    """Give a model on the meta device tensors on the (fake) CPU; tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                filled = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(filled, parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


# ------------------------------------------------------------------------------------------- what would fit


def find_available(on_gpu: bool) -> int:
    """Return the bytes that a training can have: free ones of the GPU; its share of the RAM, and its own."""
    if on_gpu:
        return torch.cuda.mem_get_info()[0]
    free = psutil.virtual_memory().available
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        used = int((CGROUP / "memory.current").read_text()) - int(
            statistics["inactive_file"]
        )  # page cache is given back
        free = max(0, min(free, int(text) - used))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + psutil.Process().memory_info().rss


def fits(memory: Memory, available: int) -> bool:
    return memory.peak <= SPARE * available


def split_batch(recipe: Recipe, size: int) -> Recipe:
    """Return the recipe with batches of `size` on each device, and as many a step as give its own batch."""
    whole = recipe.trl["per_device_train_batch_size"] * recipe.trl["gradient_accumulation_steps"]
    return recipe.change(per_device_train_batch_size=size, gradient_accumulation_steps=whole // size)


def find_batch(recipe: Recipe, estimate: Callable[[Recipe], Memory], available: int) -> Recipe:
    """Return the recipe with the largest batch a device that fits and divides its own; the step stays.

    Where none fits it has batches of one.
    """
    whole = recipe.trl["per_device_train_batch_size"] * recipe.trl["gradient_accumulation_steps"]
    for size in range(whole, 0, -1):
        if whole % size == 0 and fits(estimate(split_batch(recipe, size)), available):
            return split_batch(recipe, size)
    return split_batch(recipe, 1)


def find_change(recipe: Recipe, estimate: Callable[[Recipe], Memory], available: int) -> str | None:
    """Return which change would fit, as overrides, or None; what a step learns from stays the same."""
    trl = recipe.trl
    dtype = "bfloat16" if trl["dtype"] == "auto" else trl["dtype"]  # 4-bit weights need a compute type
    in_4bit = recipe.change(load_in_4bit=True, load_in_8bit=False, dtype=dtype)
    for start in (recipe, in_4bit):
        for checkpointing in (False, True):
            found = find_batch(start.change(activation_checkpointing=checkpointing), estimate, available)
            if fits(estimate(found), available):
                changed = [key for key in CHANGES if found.trl[key] != trl[key]]
                return " ".join(f"--{key} {str(found.trl[key]).lower()}" for key in changed)
    return None


def settle_memory(
    recipe: Recipe,
    config: "PretrainedConfig",
    rows: Sequence[Mapping[str, list[int]]],
    parameters: int,
    machine: Machine,
    auto_batch: bool,
) -> tuple[Recipe, Fit | None]:
    """Return the recipe with what it leaves to the available memory, and how it fits; see `estimate_memory`.

    That is activation checkpointing, where the recipe does not say: it is for what would not fit without, as
    it costs a second forward pass, and for what can't be estimated. With `auto_batch` it is the batch, too.

    Raises:
        RecipeError: `auto_batch`, and the model's architecture can't be traced without its weights.
    """
    from accelerate.utils import gather_object

    _ = machine.processes  # joined: all must come to the same choice
    available = min(gather_object([find_available(machine.on_gpu)]))
    libraries = None if machine.on_gpu else max(gather_object([psutil.Process().memory_info().rss])) + BUFFERS

    def estimate(recipe: Recipe) -> Memory:
        return estimate_memory(recipe, config, rows, parameters, libraries)

    said = recipe.trl["activation_checkpointing"]
    try:
        for checkpointing in (False, True) if said is None else (said,):
            found = recipe.change(activation_checkpointing=checkpointing)
            found = find_batch(found, estimate, available) if auto_batch else found
            memory = estimate(found)
            if fits(memory, available):
                return found, Fit(memory, available, None)
        return found, Fit(memory, available, find_change(found, estimate, available))
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:  # it reads its tensors' contents, or has other names
        if auto_batch:
            raise RecipeError(
                f"no estimate of memory for {config.model_type}: {error}. Expected no --auto_batch."
            ) from None
        return recipe.change(activation_checkpointing=said is not False), None
