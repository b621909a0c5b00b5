"""Load a published adapter and rewrite texts, with torch, transformers, peft and huggingface_hub alone.

It imports nothing of this project, since a Space carries this file as it is; the project's own generation
(eval/generate.py) rests on the same functions. No code and no pickle of a repository is ever run.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILES = ("adapter_config.json", "adapter_model.safetensors", "results.json")


@dataclass(frozen=True)
class Published:
    """A published adapter on its base, as it was evaluated."""

    model: Any
    tokenizer: Any
    results: Mapping[str, Any]  # results.json

    def rewrite(self, text: str) -> str:
        """Return the trimmed answer to one text; an empty text has an empty one."""
        text = clean_text(text)
        if not text:
            return ""
        prompt = self.results["prompt"].replace("{text}", text)
        inputs = self.tokenizer(prompt, return_tensors="pt", split_special_tokens=True)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if ids[0, -1] == self.tokenizer.eos_token_id:  # some tokenizers append it, and a prompt goes on
            ids, mask = ids[:, :-1], mask[:, :-1]
        settings = {key: self.results["generation"][key] for key in ("num_beams", "max_new_tokens")}
        output = generate(self.model, self.tokenizer, ids, mask, **settings)
        return decode_answer(self.tokenizer, output[0, ids.shape[1] :].tolist())


def load_published(name: str, revision: str | None = None) -> Published:
    """Download an adapter from the Hub and load it on its base, at its commit, quantised as evaluated.

    Raises:
        OSError: a file is missing, or the base has no weights in safetensors.
        ValueError: a token of its results.json is not in the vocabulary, or the base brings code of its own.
    """
    import torch

    folder = download_files(name, revision)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    base, how = results["base"], results["quantization"]
    tokenizer = load_tokenizer(base["name"], base["revision"], **results["tokens"])
    place = {"device_map": "auto"} if torch.cuda.is_available() else {}
    model = load_base(base["name"], base["revision"], how, dtype=how["dtype"], **place)
    return Published(add_adapter(model, folder).eval(), tokenizer, results)


def download_files(name: str, revision: str | None = None) -> Path:
    """Download a repository's files among FILES, no others; return their folder, whose name is the commit."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))


def choose_quantization(how: Mapping[str, Any]) -> Any:
    """Return transformers' configuration for the quantisation that results.json tells of, or None."""
    from transformers import BitsAndBytesConfig

    if how["load_in_4bit"]:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=how["bnb_4bit_quant_type"],
            bnb_4bit_use_double_quant=how["use_bnb_nested_quant"],
            bnb_4bit_compute_dtype=how["dtype"],
        )
    return BitsAndBytesConfig(load_in_8bit=True) if how["load_in_8bit"] else None


def load_base(path: str, revision: str | None, how: Mapping[str, Any], **options: Any) -> Any:
    """Load a base model, from a folder or the Hub, quantised as `how` says; its weights are safetensors.

    Its generation_config.json is left out: a penalty or a temperature in it would be in the answers too.

    Raises:
        OSError: the base has none.
        ValueError: it brings code of its own.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        path,
        revision=revision,
        quantization_config=choose_quantization(how),
        trust_remote_code=False,
        use_safetensors=True,
        **options,
    )
    model.generation_config = GenerationConfig()
    return model


class AdapterError(ValueError):
    """An adapter's weights are not what its configuration asks for, or no numbers."""


def add_adapter(model: Any, folder: Path) -> Any:
    """Put the adapter of a folder on its base.

    Raises:
        AdapterError: its tensors are not those of its configuration, are not finite, or change nothing: the
            base's own answers would pass for the adapter's.
        OSError: there are none in safetensors.
    """
    from peft import PeftModel

    path = folder / "adapter_model.safetensors"
    if not path.is_file():  # peft would go on to a pickle
        raise OSError(f"{folder}: no adapter_model.safetensors in it.")
    try:
        tuned = PeftModel.from_pretrained(model, str(folder))
    except RuntimeError as error:  # of torch, for other shapes
        raise AdapterError(
            f"{path}: its tensors do not fit the base: {str(error).splitlines()[-1].strip()}"
        ) from None
    check_tensors(tuned, path)
    return tuned


def check_tensors(tuned: Any, path: Path) -> None:
    """Raise unless an adapter's file holds what peft has read, as numbers, and changes the base.

    Raises:
        AdapterError: it does not.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except SafetensorError as error:
        raise AdapterError(f"{path}: no safetensors file: {error}") from None
    expected = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    if missing := sorted(expected.keys() - found.keys()):
        raise AdapterError(
            f"{path}: {len(missing)} of {len(expected)} tensors are missing, such as {missing[0]}."
        )
    # peft saves an embedding that it was told to train along with the adapter.
    unknown = sorted(name for name in found.keys() - expected.keys() if "lora_" in name)
    if unknown or not expected:
        raise AdapterError(
            f"{path}: {len(unknown)} tensors are none of its configuration's, such as {unknown[:1]}."
        )
    if infinite := sorted(name for name, tensor in found.items() if not torch.isfinite(tensor).all()):
        raise AdapterError(
            f"{path}: not finite in {len(infinite)} of {len(found)} tensors, such as {infinite[0]}."
        )
    # What peft starts from zero: of layers B, of embeddings A.
    starts = [tensor for name, tensor in found.items() if "lora_B" in name or "lora_embedding_A" in name]
    if all("lora_" in name for name in found) and not any(bool(tensor.any()) for tensor in starts):
        raise AdapterError(f"{path}: all its lora_B are zero, so that it changes nothing in the base.")


def load_tokenizer(
    path: str, revision: str | None, pad_token: str | None = None, eos_token: str | None = None
) -> Any:
    """Load a base's tokenizer with the evaluation's pad and end tokens; without a pad token, the end pads.

    Raises:
        ValueError: a named token is not in the vocabulary, or there is no end token.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    for key, token in (("pad_token", pad_token), ("eos_token", eos_token)):
        if token is not None and token not in tokenizer.get_vocab():
            raise ValueError(f"{key}: found {token!r}, expected a token of the base's vocabulary.")
        if token is not None:
            setattr(tokenizer, key, token)
    if tokenizer.eos_token_id is None:
        raise ValueError("this tokenizer has no end token, without which no answer ends.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked in generation, so any token will do
    return tokenizer


HIDDEN = re.compile(  # as in sft/command.py
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


def show(text: str) -> str:
    """Return a text in which what would steer its reader, unseen, is written out."""
    return HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def clean_text(text: str) -> str:
    """Return `text` in Unicode NFC on one line, as the training's texts are."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def generate(model: Any, tokenizer: Any, ids: Any, mask: Any, **options: Any) -> Any:
    """Return what the model's own `generate` does, without sampling; ids and mask are (prompts, tokens)."""
    import torch

    with torch.inference_mode():
        return model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **options,
        )


def decode_answer(tokenizer: Any, row: Sequence[int]) -> str:
    """Return the trimmed text of an answer's tokens up to its end: padding may be an ordinary word."""
    answer = itertools.takewhile(lambda token: token != tokenizer.eos_token_id, row)
    return str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip()
