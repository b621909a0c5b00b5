"""The adapter merged into its base, in 16 bit: made, and held against the predictions that were evaluated."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.command import Refusal
from sft.model import Base, build_on_meta, load_config
from sft.run_dir import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What save_pretrained writes for a model and its tokenizer.
MERGED = re.compile(
    r"merged/(?:(?:config|generation_config|model\.safetensors\.index|tokenizer|tokenizer_config|special_tokens_map|added_tokens"
    r"|vocab)\.json|model[\w-]*\.safetensors|merges\.txt|tokenizer\.model|chat_template\.jinja)"
)
LARGEST_LOSS = 1.0  # BLEU; rounding to 16 bit, and a base that was quantised, may change a few rewrites


def restore_conv1d(model: "PreTrainedModel", base: Base) -> None:
    """Turn weights back that quantising has turned: GPT-2's Conv1D layers come back as Linear ones."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    for name, module in build_on_meta(load_config(base)).named_modules():
        linear = model.get_submodule(name) if isinstance(module, Conv1D) else None
        if isinstance(linear, Linear):
            linear.weight.data = linear.weight.data.T.contiguous()


def write_merged(run: Run, folder: Path, predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write the merged model into `folder`; return how well it agrees.

    Returned are `rows`, `same` rewrites, `bleu` and `bleu_unmerged`. The base is what the adapter was
    trained on: the quantised weights, turned back. It is merged in float32 on the CPU, rounded to bfloat16,
    read back, and rewrites the test split.

    Raises:
        Refusal: its BLEU is more than LARGEST_LOSS below that of the unmerged adapter.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    from eval.adapter import open_adapter
    from eval.generate import UNMERGED, Rewriter, load_model
    from eval.metrics import compute_bleu
    from eval.standalone import load_tokenizer
    from sft.bloom import fuse
    from sft.command import quiet_libraries
    from sft.machine import join_processes

    quiet_libraries()
    adapter = open_adapter(run)
    device = join_processes().device
    model = load_model(adapter.base, adapter.folder, adapter.quantization, torch.device("cpu")).to(
        torch.bfloat16
    )
    if isinstance(model, PeftModel):
        raise Refusal(f"{run.adapter}: {UNMERGED} Publish the adapter without --merged.")
    restore_conv1d(model, adapter.base)
    model.config.name_or_path = adapter.base.name
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = load_tokenizer(adapter.base.path, adapter.base.revision, **adapter.tokens)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ends, max_new_tokens=adapter.settings.max_new_tokens)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    dtype = "float32" if device.type == "cpu" else "bfloat16"
    read_back = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, trust_remote_code=False, use_safetensors=True
    )
    fuse(read_back)
    rewriter = Rewriter(read_back.to(device).eval(), tokenizer, adapter.settings)
    rewrites = rewriter.rewrite([line["toxic"] for line in predictions], "merged model")
    references = [line["references"] for line in predictions]
    unmerged = [line["prediction"] for line in predictions]
    bleu, before = (compute_bleu(texts, references).value for texts in (rewrites, unmerged))
    if bleu < before - LARGEST_LOSS:
        raise Refusal(
            f"merged into 16-bit weights, the model has BLEU {bleu:.1f} on the test split, "
            f"and {before:.1f} unmerged: "
            f"more than {LARGEST_LOSS} less. Publish the adapter without --merged."
        )
    same = sum(one == other for one, other in zip(rewrites, unmerged, strict=True))
    return {"rows": len(rewrites), "same": same, "bleu": bleu, "bleu_unmerged": before}
