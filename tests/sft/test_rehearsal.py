"""What the libraries refuse only when a training begins is told before anything is written; so are idle keys."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Main

from sft.preflight import inspect_recipe
from sft.recipe import parse_recipe
from sft.rehearsal import Trainer, rehearse
from sft.schema import RecipeFaults
from sft.storage import hash_file

STOP = "the training would not start: "
# Further arguments, and the fault. The libraries' own words follow STOP.
REFUSED = {
    "an optimizer that is not installed": (["--optim", "galore_adamw"], f"--optim: {STOP}You need to install `galore_torch`"),
    "another": (["--optim", "schedule_free_adamw"], f"--optim: {STOP}You need to install `schedulefree`"),
    "arguments that can't be read": (["--optim_args", "foo"], f"{TINY}: optim: {STOP}not enough values to unpack"),
    "arguments that nothing reads": (["--optim_args", "foo=bar"], "--optim_args: found foo=bar, which changes nothing of adamw_torch_fused."),
    "Adam's keys for another": (["--optim", "sgd", "--adam_beta1", "0.5"], "--adam_beta1: changes nothing of sgd. Remove it."),
    "a scheduler without its floor": (["--lr_scheduler_type", "cosine_with_min_lr"], f"--lr_scheduler_type: {STOP}One of min_lr or min_lr_rate"),
    "a scheduler's unknown argument": (["--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", "{foo: 1}"], f"--lr_scheduler_type: {STOP}.* unexpected keyword"),
    "a scheduler without its decay": (["--lr_scheduler_type", "warmup_stable_decay"], f"--lr_scheduler_type: {STOP}.*num_decay_steps"),
    "LoRA on the head": (["--lora_target_modules", "dense", "lm_head"], f"--lora_target_modules: {STOP}Applying a PEFT adapter to `lm_head`"),
    "modules that are not there": (["--lora_modules_to_save", "nope"], "--lora_modules_to_save: no module of .* has the name nope."),
    "parameters that are not there": (["--lora_target_parameters", "nope"], "--lora_target_parameters: no parameter of .* has the name nope."),
    "another task": (["--lora_task_type", "SEQ_CLS"], "--lora_task_type: found 'SEQ_CLS', and this project trains causal language models."),
    "a batch larger than the data": (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "4000"], "--dataloader_drop_last: leaves no batch: found [0-9]+ training rows, and a batch takes 4,000."),
    "a multiple of nothing": (["--pad_to_multiple_of", "0"], f"--pad_to_multiple_of: {STOP}integer"),
    "a storage type": (["--bnb_4bit_quant_storage", "foo"], f"--bnb_4bit_quant_storage: {STOP}`bnb_4bit_quant_storage` must be"),
    "a score that training has not": (["--metric_for_best_model", "bleu", "--load_best_model_at_end", "true"], "--metric_for_best_model: found 'bleu', and training measures the loss alone"),
    "the best without a measure": (["--save_strategy", "best", "--save_steps", "500"], "--save_strategy: 'best' needs eval_strategy"),
    "a kernel that is not installed": (["--use_liger_kernel", "true"], "--use_liger_kernel: liger-kernel is not installed."),
    "code from the Hub": (["--attn_implementation", "someone/kernel"], "--attn_implementation: found 'someone/kernel', which is or may be code from the Hub."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_start_is_a_fault(
    case: str, mini_arguments: list[str], tmp_path: Path, call_main: Main
) -> None:
    words, message = REFUSED[case]
    root = tmp_path / "run"
    with pytest.raises(RecipeFaults) as caught:
        call_main("sft.run", *mini_arguments, *words, "--output_dir", root)
    assert re.match(message, caught.value.lines[0]), caught.value.lines
    assert not root.exists()


@pytest.mark.parametrize("key", ["pad_token", "eos_token"])
def test_token_beyond_the_embedding(
    key: str, mini_base: Path, mini_arguments: list[str], tmp_path: Path
) -> None:
    import shutil

    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(mini_base, base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<further>"])
    tokenizer.save_pretrained(base)
    words = [
        "--model_name_or_path",
        str(base),
        f"--{key}",
        "<further>",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    preflight = inspect_recipe(mini_arguments[0], [*mini_arguments[1:], *words])
    with pytest.raises(
        RecipeFaults, match=f"--{key}: '<further>' is token 1,024, and the base has embeddings of 1,024"
    ):
        rehearse(preflight)


IDLE = {
    "label_smoothing_factor": "label_smoothing_factor: 0.3\nloss_type: dft\n",
    "bnb_4bit_quant_type": "bnb_4bit_quant_type: fp4\n",
    "use_bnb_nested_quant": "use_bnb_nested_quant: true\n",
    "packing_strategy": "packing_strategy: wrapped\n",
    "eval_steps": "eval_steps: 5\neval_strategy: epoch\n",
    "save_steps": "save_steps: 5\nsave_strategy: epoch\n",
    "eval_on_start": "eval_on_start: true\n",
    "metric_for_best_model": "metric_for_best_model: loss\n",
    "warmup_steps": "warmup_steps: 10\nlr_scheduler_type: constant\n",
    "num_train_epochs": "num_train_epochs: 2\nmax_steps: 10\n",
    "liger_kernel_config": "liger_kernel_config: {rope: true}\n",
    "data.targets_only": "data.targets_only",
}


@pytest.mark.parametrize("key", IDLE)
def test_a_key_that_changes_nothing_is_a_fault(key: str, tmp_path: Path) -> None:
    path = tmp_path / "idle.yaml"
    good = "model_name_or_path: recipes/bloom-tiny\nuse_peft: true\n"
    data = "data:\n  source: recipes/tiny-corpus.tsv\n"
    path.write_text(
        good + data + "  targets_only: false\n" if key == "data.targets_only" else good + IDLE[key] + data
    )
    _, faults = parse_recipe(path)
    (line,) = faults.lines
    assert re.fullmatch(rf".*:\d+: {key}: changes nothing .*", line), line
    resolved = tmp_path / "recipe.yaml"  # as a run keeps it: with all keys
    resolved.write_text(path.read_text())
    assert parse_recipe(resolved)[1].lines == []


def test_an_override_may_put_keys_of_the_file_to_rest() -> None:
    words = ["--eval_strategy", "no", "--save_strategy", "no", "--max_steps", "2", "--load_in_4bit", "false"]
    assert parse_recipe(TINY, words)[1].lines == []
    assert parse_recipe(TINY, [*words, "--eval_steps", "3"])[1].lines == []
    smoothed = ["--loss_type", "dft", "--label_smoothing_factor", "0.3"]
    assert parse_recipe(TINY, smoothed)[1].keys == {"label_smoothing_factor"}


def test_the_generators_stay_as_they_were(mini_arguments: list[str], tmp_path: Path) -> None:
    preflight = inspect_recipe(
        mini_arguments[0], [*mini_arguments[1:], "--output_dir", str(tmp_path / "run")]
    )
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    rehearse(preflight)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rehearsed_training_gives_the_same_bytes(
    mini_run: Path,
    mini_arguments: list[str],
    tmp_path: Path,
    call_main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sft.rehearsal.rehearse", lambda _: None)
    call_main("sft.run", *mini_arguments, "--output_dir", tmp_path / "run")
    name = "adapter/adapter_model.safetensors"
    assert hash_file(tmp_path / "run" / name) == hash_file(mini_run / name)


def test_what_cannot_be_built_without_weights_is_no_fault(
    mini_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight = inspect_recipe(
        mini_arguments[0], [*mini_arguments[1:], "--output_dir", str(tmp_path / "run")]
    )

    def read_weights(trainer: Trainer) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(Trainer, "create_optimizer", read_weights)
    rehearse(preflight)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_sentences_beyond_the_learnt_positions_are_told_at_once(
    kind: str, mini_base: Path, mini_arguments: list[str], tmp_path: Path
) -> None:
    from test_architectures import make_base

    base, positions = make_base(kind, mini_base, tmp_path / kind), 512
    long = tmp_path / "long.tsv"
    rows = [f"{f'moron{row} ' * positions}\tyou {row}\n" for row in range(40)]
    short = [f"you damn moron number{row}\tyou {row}\n" for row in range(40)]
    long.write_text("toxic\tneutral1\n" + "".join(rows + short))
    arguments = [
        *mini_arguments[1:],
        "--model_name_or_path",
        str(base),
        "--lora_target_modules",
        "all-linear",
    ]
    arguments += ["--data.source", str(long), "--output_dir", str(tmp_path / "run")]
    preflight = inspect_recipe(mini_arguments[0], [*arguments, "--max_length", "160"])
    with pytest.raises(
        RecipeFaults, match=r"test sentences? could not be evaluated: prompts of up to [0-9,]+ tokens"
    ):
        rehearse(preflight)
    preflight = inspect_recipe(mini_arguments[0], [*arguments, "--max_length", "4000"])
    with pytest.raises(RecipeFaults, match=r"--max_length: leaves rows of .* has learnt 512 positions"):
        rehearse(preflight)


@pytest.mark.parametrize("content", ["empty", "cut off", "no header", "a text"])
def test_broken_weights_are_told(
    content: str, mini_base: Path, mini_arguments: list[str], tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(mini_base, base)
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    broken = {
        "empty": b"",
        "cut off": whole[: len(whole) // 2],
        "no header": whole[100:],
        "a text": b"version https",
    }
    weights.write_bytes(broken[content])
    with pytest.raises(
        RecipeFaults, match=r"--model_name_or_path: .* its model\.safetensors is broken or cut off"
    ):
        inspect_recipe(mini_arguments[0], [*mini_arguments[1:], "--model_name_or_path", str(base)])
