"""The preflight: all faults of recipe, data and model at once; or the report, without loading weights."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from conftest import TINY, Main, run_python

from sft.data import Corpus, Example
from sft.preflight import inspect_recipe, read_checked_splits
from sft.recipe import load_recipe
from sft.schema import DataConfig, RecipeError, RecipeFaults
from sft.stream import read_splits


def find_faults(*words: object) -> list[str]:
    with pytest.raises(RecipeFaults) as caught:
        inspect_recipe(str(TINY), [str(word) for word in words])
    return caught.value.lines


def test_faults_of_recipe_data_and_model_are_told_together(mini_base: Path, tmp_path: Path) -> None:
    words = [
        "--model_name_or_path",
        mini_base,
        "--data.source",
        tmp_path / "none.tsv",
        "--lora_q",
        3,
        "--padding_free",
    ]
    lines = find_faults(*words, "--lora_target_modules", "q_proj")
    assert [line.partition(":")[0] for line in lines] == [
        "--lora_q",
        "--data.source",
        "--padding_free",
        "--lora_target_modules",
    ]


BROKEN = {
    "packing": (
        ["--packing", "true", "--packing_strategy", "wrapped"],
        "--packing: found packing_strategy 'wrapped' and max_length 160. BLOOM packs whole examples: "
        "expected bfd, and a max_length.",
    ),
    "padding-free": (
        ["--padding_free", "true"],
        "--padding_free: BLOOM would attend over the whole batch as one row. Expected false; "
        "packing: true wastes as little on padding.",
    ),
    "attention": (
        ["--attn_implementation", "flash_attention_2"],
        "--attn_implementation: found 'flash_attention_2'. BLOOM has sdpa (also meant by null) and eager.",
    ),
    "float16": (
        ["--dtype", "float16"],
        "--dtype: BLOOM overflows in float16. Expected bfloat16, or float32 where the hardware lacks it.",
    ),
    "fp16": (
        ["--fp16", "true", "--bf16", "false"],
        "--fp16: BLOOM overflows in float16. Expected bfloat16, or float32 where the hardware lacks it.",
    ),
    "pad is EOS": (
        ["--pad_token", "</s>"],
        "--pad_token: pad and EOS are both '</s>': with EOS masked as padding, a model never learns to stop. "
        "Name another token of the vocabulary.",
    ),
    "pad unknown": (
        ["--pad_token", "<nope>"],
        "--pad_token: found '<nope>', expected a token of MINI's vocabulary.",
    ),
    "LoRA modules": (
        ["--lora_target_modules", "q_proj"],
        "--lora_target_modules: no layer of MINI has the name q_proj. Expected names among dense, dense_4h_to_h, "
        "dense_h_to_4h, query_key_value, or all-linear.",
    ),
    "unknown tracker": (
        ["--report_to", "nowhere"],
        "--report_to: found 'nowhere', expected none, all, or some of azure_ml, clearml, codecarbon, comet_ml, dagshub, "
        "dvclive, flyte, kubeflow, mlflow, neptune, swanlab, tensorboard, trackio, wandb.",
    ),
    "tracker not installed": (
        ["--report_to", "clearml"],
        "--report_to: clearml is not installed. Install it, or use report_to: none.",
    ),
    "country without a grid": (
        ["--publish.emissions_country", "LIE"],
        "--publish.emissions_country: found 'LIE', which codecarbon has no power grid of. Expected a country's code (ISO 3166).",
    ),
    "no country": (
        ["--publish.emissions_country", "fr"],
        "--publish.emissions_country: found 'fr', expected a country's three letters (ISO 3166), such as FRA.",
    ),
    "all too long": (
        ["--max_length", "16"],
        "--max_length: found 16, and every train pair is longer. Expected more tokens.",
    ),
    "too few sentences": (
        ["--data.test", "0.001"],
        "--data.test: 150 sentences of small.tsv left none for test (validation 0.1, test 0.001). "
        "Give more data, of more kinds, or larger shares.",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_fault_that_the_model_or_the_data_shows(case: str, mini_base: Path, small_data: Path) -> None:
    words, expected = BROKEN[case]
    lines = find_faults("--model_name_or_path", mini_base, "--data.source", small_data, *words)
    assert lines == [expected.replace("MINI", mini_base.name)]


def test_splits_that_leak_are_refused(
    mini_base: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leak(config: DataConfig) -> tuple[Corpus, dict[str, list[Example]]]:
        corpus, splits = read_splits(config)
        return corpus, splits | {"train": [*splits["train"], *splits["test"][:2]]}

    monkeypatch.setattr("sft.preflight.read_splits", leak)
    (line,) = find_faults("--model_name_or_path", mini_base, "--data.source", small_data)
    assert re.fullmatch(r"--data\.source: the splits leak: '.*' stands in test and train, and 1 more\.", line)


@pytest.mark.parametrize("name", ["bloom", "report-3"])
def test_lora_keys_of_the_bloom_recipes_fit_bloom(name: str, mini_base: Path, small_data: Path) -> None:
    words = ["--model_name_or_path", str(mini_base), "--data.source", str(small_data), "--data.test", "0.1"]
    trainable, _ = inspect_recipe(f"recipes/{name}.yaml", words).parameters
    # Two blocks, 64 wide: rank 16 on all four layers; rank 8 on query_key_value alone.
    assert trainable == {"bloom": 2 * 16 * (256 + 128 + 320 + 320), "report-3": 2 * 8 * 256}[name]


def test_report(
    mini_base: Path, small_data: Path, call_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    # A file without weights: the check must not need them.
    folder = mini_base.parent / "no-weights"
    shutil.copytree(mini_base, folder)
    save_file({}, folder / "model.safetensors")
    call_main("sft.check", TINY, "--model_name_or_path", folder, "--data.source", small_data)
    text = " ".join(capsys.readouterr().out.split())
    assert "lora_r: 32" in text
    assert "rows read 150" in text
    assert "leak check: passed" in text
    assert "### Rewrite this without the toxicity:" in text
    # rank 32 on the four linear layers of two blocks, 64 wide: 2 * 32 * (64+192 + 64+64 + 64+256 + 256+64)
    assert f"trainable parameters: {2 * 32 * (256 + 128 + 320 + 320):,}" in text


@pytest.mark.parametrize(
    ("in_hardware", "overrides", "expected"),
    [
        (False, [], (False, "float32")),
        (False, ["--bf16", "false"], (False, "float32")),  # of 4-bit weights, dtype is the compute type
        (False, ["--attn_implementation", "eager"], (True, "bfloat16")),
        (True, [], (True, "bfloat16")),
    ],
)
def test_a_cpu_without_bfloat16_computes_in_float32(
    in_hardware: bool,
    overrides: list[str],
    expected: tuple[bool, str],
    mini_base: Path,
    small_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": in_hardware})
    words = [
        "--model_name_or_path",
        str(mini_base),
        "--data.source",
        str(small_data),
        "--use_cpu",
        "true",
        *overrides,
    ]
    preflight = inspect_recipe(str(TINY), words)
    assert (preflight.recipe.trl["bf16"], preflight.recipe.trl["dtype"]) == expected
    assert any("does not compute in bfloat16" in note for note in preflight.list_notes()) == (
        expected[1] == "float32"
    )


@pytest.mark.slow
def test_check_of_the_tiny_recipe_is_quick_and_writes_nothing(tmp_path: Path) -> None:
    """Ten seconds on an idle machine; on any, 2.5 times what its libraries take to import, the best of three."""
    libraries = (
        "import torch, datasets, peft, trl; from transformers import AutoModelForCausalLM, BloomForCausalLM"
    )
    ratios: list[float] = []
    while not ratios or (min(ratios) >= 2.5 and len(ratios) < 3):  # again where the machine was busy
        begin = time.monotonic()
        assert run_python("-c", libraries).returncode == 0
        middle = time.monotonic()
        done = run_python("-m", "sft.check", "recipes/tiny.yaml", "--output_dir", tmp_path / "run")
        ratios.append((time.monotonic() - middle) / (middle - begin))
        assert done.returncode == 0, done.stderr
    assert min(ratios) < 2.5
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_faults_end_with_status_2_without_traceback(tmp_path: Path) -> None:
    done = run_python("sft/run.py", "recipes/tiny.yaml", "--lora_q", "3", "--output_dir", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --lora_q: unknown key. Did you mean lora_r?\n"
    assert not list(tmp_path.iterdir())


def test_resolved_recipe_of_a_run_passes_the_check(mini_run: Path) -> None:
    preflight = inspect_recipe(str(mini_run / "recipe.yaml"), [])
    manifest = json.loads((mini_run / "data" / "manifest.json").read_text())
    assert preflight.describe_data() == manifest
    assert preflight.recipe.output_dir == mini_run


def test_near_copies_that_leave_a_split_empty_are_named(tmp_path: Path) -> None:
    rows = "".join(
        f"where did you leave the {word} , you fool\tWhere is the {word}?\n" for word in map(str, range(60))
    )
    (tmp_path / "like.tsv").write_text(f"toxic\tneutral1\n{rows}")
    recipe = load_recipe(TINY, ["--data.source", str(tmp_path / "like.tsv")])
    message = r"60 sentences of .*like\.tsv, in 1 group of near copies and rewrites, which stay together, left none for "
    with pytest.raises(RecipeError, match=message):
        read_checked_splits(recipe)
