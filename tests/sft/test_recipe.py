"""The recipe: every shipped one loads, every fault has its exact line, overrides and round trips hold."""

import json
from pathlib import Path

import pytest

from sft.command import run_command
from sft.recipe import dump_yaml, export_trl, load_recipe, parse_recipe
from sft.schema import RecipeFaults
from sft.storage import PROJECT, find_path
from sft.trl_keys import extract_trl_keys

RECIPES = sorted((PROJECT / "recipes").glob("*.yaml"))
GOOD = "model_name_or_path: recipes/bloom-tiny\nuse_peft: true\ndata:\n  source: recipes/tiny-corpus.tsv\n"
NO_LORA = GOOD.replace("use_peft: true\n", "")

# name: (recipe, overrides, the exact faults); R stands for the recipe's path
BROKEN: dict[str, tuple[str, list[str], list[str]]] = {
    "misspelt key": (
        GOOD + "learning_rat: 1e-4\n",
        [],
        ["R:5: learning_rat: unknown key. Did you mean learning_rate?"],
    ),
    "unknown key": (
        GOOD + "colour: blue\n",
        [],
        ["R:5: colour: unknown key. `python -m sft.check --help` lists all keys."],
    ),
    "dropped key": (
        GOOD + "max_seq_length: 128\n",
        [],
        ["R:5: max_seq_length: this key is gone; use max_length."],
    ),
    "dropped key with a new meaning": (
        GOOD + "warmup_ratio: 0.1\n",
        [],
        ["R:5: warmup_ratio: this key is gone; use warmup_steps (a number below 1 is a share of all steps)."],
    ),
    "misspelt dropped key": (
        GOOD + "torch_dtyp: bfloat16\n",
        [],
        ["R:5: torch_dtyp: unknown key. The nearest one, torch_dtype, is gone; use dtype."],
    ),
    "token in a recipe": (
        GOOD + "hub_token: hf_abc\n",
        [],
        [
            "R:5: hub_token: not taken here: a token does not belong in a recipe; log in with `hf auth login` or set HF_TOKEN."
        ],
    ),
    "push by the trainer": (
        GOOD + "push_to_hub: true\n",
        [],
        [
            "R:5: push_to_hub: not taken here: the trainer never pushes, as its push uploads a pickle with the token; "
            "use python -m publish.run."
        ],
    ),
    "list for a number": (GOOD + "lora_r: [3]\n", [], ["R:5: lora_r: found [3], expected a whole number."]),
    "fraction for a whole number": (
        GOOD + "per_device_train_batch_size: 2.5\n",
        [],
        ["R:5: per_device_train_batch_size: found 2.5, expected a whole number."],
    ),
    "truth for a number": (
        GOOD + "lora_r: true\n",
        [],
        ["R:5: lora_r: found true, expected a whole number."],
    ),
    "text for a number": (
        GOOD + "learning_rate: fast\n",
        [],
        ["R:5: learning_rate: found 'fast', expected a number."],
    ),
    "text for a truth": (
        GOOD + "load_in_4bit: maybe\n",
        [],
        ["R:5: load_in_4bit: found 'maybe', expected true or false."],
    ),
    "empty batch": (
        GOOD + "per_device_train_batch_size: 0\n",
        [],
        ["R:5: per_device_train_batch_size: found 0, expected more than 0."],
    ),
    "negative rate": (
        GOOD + "learning_rate: -1e-4\n",
        [],
        ["R:5: learning_rate: found -0.0001, expected more than 0."],
    ),
    "dropout of everything": (
        GOOD + "lora_dropout: 1.0\n",
        [],
        ["R:5: lora_dropout: found 1.0, expected at least 0 and below 1."],
    ),
    "wrong choice": (
        GOOD + "bnb_4bit_quant_type: nf5\n",
        [],
        ["R:5: bnb_4bit_quant_type: found 'nf5', expected fp4, nf4."],
    ),
    "duplicate key": (
        GOOD + "lora_r: 8\nlora_alpha: 16\nlora_r: 16\n",
        [],
        ["R:7: lora_r: stands there twice, first in line 5. Remove one."],
    ),
    "duplicate key in a section": (
        GOOD + "  test: 0.1\n  test: 0.2\n",
        [],
        ["R:6: data.test: stands there twice, first in line 5. Remove one."],
    ),
    "section's key at the top": (
        GOOD + "revision: main\n",
        [],
        ["R:5: revision: unknown key. Did you mean data.revision?"],
    ),
    "unknown key in a section": (
        GOOD + "  sauce: x\n",
        [],
        ["R:5: data.sauce: unknown key. Did you mean data.source?"],
    ),
    "section without keys": (
        "model_name_or_path: m/x\nuse_peft: true\ndata: s-nlp/paradetox\n",
        [],
        [
            "R:3: data: found 's-nlp/paradetox', expected a section of keys with values.",
            "R: data.source: is missing. Expected a Hub id, a file or a folder, such as s-nlp/paradetox.",
        ],
    ),
    "no model": (
        "use_peft: true\ndata:\n  source: recipes/tiny-corpus.tsv\n",
        [],
        ["R: model_name_or_path: is missing. Expected a Hub id or a folder, such as bigscience/bloom-560m."],
    ),
    "4 bit without LoRA": (
        NO_LORA + "load_in_4bit: true\n",
        [],
        ["R:4: load_in_4bit: quantised weights can't be trained without LoRA. Add use_peft: true."],
    ),
    "no LoRA": (
        GOOD.replace("use_peft: true", "use_peft: false"),
        [],
        ["R:2: use_peft: this project trains adapters. Expected true."],
    ),
    "two quantisations": (
        GOOD + "load_in_4bit: true\nload_in_8bit: true\n",
        [],
        ["R:6: load_in_8bit: 4 bit and 8 bit at once. Keep one."],
    ),
    "two precisions": (
        GOOD + "bf16: true\nfp16: true\n",
        [],
        ["R:6: fp16: bf16 and fp16 at once. Keep one."],
    ),
    "no compute type": (
        GOOD + "load_in_4bit: true\ndtype: auto\n",
        [],
        ["R:6: dtype: 'auto' names no compute type for 4-bit weights. Expected bfloat16 or float32."],
    ),
    "splits that leave nothing": (
        GOOD + "  validation: 0.5\n  test: 0.6\n",
        [],
        [
            "R:6: data.test: validation 0.5 and test 0.6 leave nothing to train on. Their sum must stay below 1."
        ],
    ),
    "no test split": (
        GOOD + "  test: 0\n",
        [],
        ["R:5: data.test: without test sentences no score can be believed. Expected a share above 0."],
    ),
    "evaluation without validation": (
        GOOD + "  validation: 0\neval_strategy: epoch\n",
        [],
        ["R:6: eval_strategy: needs validation sentences, and data.validation is 0."],
    ),
    "no beams": (
        GOOD + "eval:\n  num_beams: 0\n",
        [],
        ["R:6: eval.num_beams: found 0, expected more than 0."],
    ),
    "baseline that is none": (
        GOOD + "eval:\n  baselines: [copy, oracle]\n",
        [],
        ["R:6: eval.baselines: found 'oracle', expected some of copy, delete, base, few_shot, human."],
    ),
    "repository without owner": (
        GOOD + "publish:\n  repo_id: just-a-name\n",
        [],
        ["R:6: publish.repo_id: found 'just-a-name', expected owner/name."],
    ),
    "max_length below the prompt": (
        GOOD + "max_length: 4\n",
        [],
        ["R:5: max_length: found 4, expected at least 16 tokens (the prompt alone takes a dozen), or null."],
    ),
    "no YAML": ("a: [1\nb: 2\n", [], ["R:2: not YAML: expected ',' or ']', but got ':'"]),
    "dotted key in a file": (
        GOOD + "data.test: 0.1\n",
        [],
        ["R:5: data.test: in a file, write it inside its section: data: {test: …}."],
    ),
    "YAML tag": (
        GOOD + "lora_target_modules: !x [a]\n",
        [],
        ["R:5: found the YAML tag !x, expected a plain value."],
    ),
    "checkpoint by path": (
        GOOD + "resume_from_checkpoint: runs/x/checkpoint-5\n",
        [],
        ["R:5: resume_from_checkpoint: found 'runs/x/checkpoint-5', expected true or false."],
    ),
    "tab": (GOOD + "\tlora_r: 8\n", [], ["R:5: not YAML: found character '\\t' that cannot start any token"]),
    "nothing": ("\n", [], ["R: the recipe is empty. Expected at least model_name_or_path and data: source."]),
    "no keys": (
        "- a\n- b\n",
        [],
        ["R:1: found a list of texts, expected keys with values, such as lora_r: 16."],
    ),
    "override of an unknown key": (GOOD, ["--lora_q", "3"], ["--lora_q: unknown key. Did you mean lora_r?"]),
    "override out of range": (
        GOOD,
        ["--data.test", "2"],
        ["--data.test: found 2.0, expected at least 0 and below 1."],
    ),
    "override without a flag": (
        GOOD,
        ["fast"],
        ["fast: found a word without a flag. Overrides are written --key value."],
    ),
    "several at once": (
        GOOD + "lora_r: x\nlearning_rat: 1\n",
        ["--data.test", "1.5"],
        [
            "R:6: learning_rat: unknown key. Did you mean learning_rate?",
            "R:5: lora_r: found 'x', expected a whole number.",
            "--data.test: found 1.5, expected at least 0 and below 1.",
        ],
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_recipe(case: str, tmp_path: Path) -> None:
    text, overrides, expected = BROKEN[case]
    path = tmp_path / "recipe-under-test.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeFaults) as caught:
        load_recipe(path, overrides)
    assert caught.value.lines == [
        line.replace("R:", f"{path}:", 1) if line.startswith("R:") else line for line in expected
    ]


TAG = "found the YAML tag {}, expected a plain value."
# A fifth line of a recipe, and what is said of it.
WILD = {
    "a tag that does not fit": ("bf16: !!bool maybe", TAG.format("!!bool")),
    "a tag that does": ("lora_r: !!int 3", TAG.format("!!int")),
    "a set": ("lora_target_modules: !!set {a: null}", TAG.format("!!set")),
    "a call": ("seed: !!python/object/apply:os.system [ls]", TAG.format("!!python/object/apply:os.system")),
    "bytes": ("output_dir: !!binary aGk=", TAG.format("!!binary")),
    "brackets": (f"lora_target_modules: {'[' * 3000}{']' * 3000}", "found 21 brackets in one another, expected at most 20."),
    "mappings": ("lr_scheduler_kwargs: " + "{a: " * 3000 + "1" + "}" * 3000, "found 21 brackets in one another, expected at most 20."),
    "an alias": ("lr_scheduler_kwargs: {a: &x [1, 1], b: [*x, *x, *x]}", "found the alias *x, expected the value itself."),
    "a circle": ("lr_scheduler_kwargs: &x {a: *x}", "found the alias *x, expected the value itself."),
    "digits": (f"seed: {'9' * 5000}", "found 99999999999999999999… of 5,000 characters, expected at most 1,000."),
    "digits in a mapping": (f"lr_scheduler_kwargs: {{a: {'9' * 5000}}}", "found 99999999999999999999… of 5,000 characters, expected at most 1,000."),
    "hexadecimal digits": (f"lr_scheduler_kwargs: {{a: 0x{'f' * 5000}}}", "found 0xffffffffffffffffff… of 5,002 characters, expected at most 1,000."),
    "a long name": (f"output_dir: {'n' * 5000}", "found nnnnnnnnnnnnnnnnnnnn… of 5,000 characters, expected at most 1,000."),
    "a NUL": ('output_dir: "a\\0b"', "found 'a\\x00b', expected no control characters."),
    "half a surrogate pair": ('output_dir: "\\ud800"', "found '\\ud800', expected no control characters."),
    "a list for a key": ("[a]: 1", "found [a] as a key, expected a name."),
    "a file's name": (f"output_dir: runs/{'n' * 300}", "output_dir: found a name of 300 characters in it, and file systems take 255 bytes at most."),
    "a seed": ("seed: 4294967296", "seed: found 4,294,967,296, expected 4,294,967,295 at most."),
    "another seed": ("data_seed: 99999999999999999999999", "data_seed: found 1e+23, expected 4,294,967,295 at most."),
    "a batch": ("per_device_train_batch_size: 1000000000000", "per_device_train_batch_size: found 1,000,000,000,000, expected 1,000,000 at most."),
    "pairs without end": ("data.swaps", "data.swaps: found 1,000,000,000.0, expected 100 at most."),
    "no number": ("lr_scheduler_kwargs: {a: .nan}", "lr_scheduler_kwargs: can't be read: Out of range float values are not JSON compliant"),
    "a date": ("lr_scheduler_kwargs: {a: 2020-01-01}", "lr_scheduler_kwargs: can't be read: Object of type date is not JSON serializable."),
    "no date": ("lr_scheduler_kwargs: {a: 2020-13-45}", "lr_scheduler_kwargs: can't be read: month must be in 1..12"),
}  # fmt: skip


@pytest.mark.parametrize("case", WILD)
def test_wild_yaml_is_a_fault_in_a_moment(case: str, tmp_path: Path) -> None:
    line, message = WILD[case]
    text = f"{GOOD}  swaps: 1e9\n" if line == "data.swaps" else f"{GOOD}{line}\n"
    path = tmp_path / "wild.yaml"
    path.write_text(text)
    with pytest.raises(RecipeFaults) as caught:
        load_recipe(path)
    (found,) = caught.value.lines
    assert found.startswith(f"{path}:5: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "9" * 5000], "--seed: found 99999999999999999999… of 5,000 characters, expected at most 1,000."),
        (["--lr_scheduler_kwargs", "{a: &x [1], b: *x}"], "--lr_scheduler_kwargs: found the alias *x, expected the value itself."),
        (["--bf16", "!!bool maybe"], "--bf16: found the YAML tag !!bool, expected a plain value."),
        (["--data.inserts", "1e9"], "--data.inserts: found 1,000,000,000.0, expected 100 at most."),
        (["--data.source", "x" * 300], None),
    ],
)  # fmt: skip
def test_wild_overrides(words: list[str], message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    _, faults = parse_recipe(path, words)
    assert faults.lines == ([message] if message else [])
    assert find_path("x" * 5000) is None


@pytest.mark.parametrize(
    ("encoding", "found", "charset"),
    [("utf-16", "0x00", "utf16"), ("utf-16-le", "0x00", "utf16"), ("utf-16-be", "0x00", "utf16"), ("latin-1", "0xe9", "latin1")],
)  # fmt: skip
def test_recipe_in_another_encoding(encoding: str, found: str, charset: str, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_bytes((GOOD + "# caf\u00e9\n").encode(encoding))
    with pytest.raises(RecipeFaults) as caught:
        load_recipe(path)
    assert caught.value.lines == [
        f"{path}: not UTF-8 (byte {found}). Convert it: iconv -f {charset} -t utf8."
    ]
    path.write_text("\ufeff" + GOOD)
    assert load_recipe(path).data.source == "recipes/tiny-corpus.tsv"


def test_missing_recipe() -> None:
    with pytest.raises(
        RecipeFaults, match=r"^tinny\.yaml: no such recipe\. Did you mean recipes/tiny\.yaml\?$"
    ):
        load_recipe("tinny.yaml")


def test_there_are_recipes_to_load() -> None:
    assert {"tiny", "bloom", "bloom-560m", "bloom-7b1", "phi-2", "report-3"} <= {
        path.stem for path in RECIPES
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_loads_and_opens_with_its_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.output_dir == Path("runs") / path.stem
    assert f"accelerate launch sft/run.py recipes/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_resolved_recipe_gives_the_same_values(path: Path, tmp_path: Path) -> None:
    values = load_recipe(path).values()
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_yaml(values), encoding="utf-8")
    assert load_recipe(resolved).values() == values


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_export_passes_trls_strict_parser(path: Path, tmp_path: Path) -> None:
    from trl import ModelConfig, SFTConfig, TrlParser

    recipe = load_recipe(path)
    exported = tmp_path / "trl.yaml"
    exported.write_text(export_trl(recipe), encoding="utf-8")
    # use_cpu: TRL refuses bf16 without a GPU otherwise.
    arguments = ["--config", str(exported), "--use_cpu", "true"]
    sft_config, model_config = TrlParser((SFTConfig, ModelConfig)).parse_args_and_config(
        arguments, fail_with_unknown_args=True
    )
    assert model_config.lora_r == recipe.trl["lora_r"]
    assert sft_config.learning_rate == recipe.trl["learning_rate"]


def test_known_keys_are_those_of_the_installed_trl() -> None:
    assert json.loads((PROJECT / "sft" / "trl_keys.json").read_text()) == extract_trl_keys()


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--learning_rate", "2e-4"], "learning_rate", 2e-4),
        (["--learning_rate=3e-4"], "learning_rate", 3e-4),
        (["--lora-r", "4"], "lora_r", 4),
        (["--load_in_4bit"], "load_in_4bit", True),
        (
            ["--lora_target_modules", "dense", "query_key_value"],
            "lora_target_modules",
            ["dense", "query_key_value"],
        ),
        (["--lora_target_modules", "dense"], "lora_target_modules", ["dense"]),
        (["--max_length", "null"], "max_length", None),
        (["--eval_strategy", "no"], "eval_strategy", "no"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint", True),
        (["--run_name", "a: b"], "run_name", "a: b"),
        (["--run_name", "2024"], "run_name", "2024"),
        (["--pad_token", "!"], "pad_token", "!"),
        (["--pad_token", "null"], "pad_token", None),
        (["--model_name_or_path", "my model #1"], "model_name_or_path", "my model #1"),
    ],
)
def test_override(words: list[str], key: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert load_recipe(path, words).trl[key] == value


def test_override_of_a_section_and_the_last_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    recipe = load_recipe(
        path, ["--data.test", "0.2", "--data.neutral", "a", "b", "--data.toxic", "t", "--data.test", "0.3"]
    )
    assert (recipe.data.test, recipe.data.neutral, recipe.data.toxic) == (0.3, ("a", "b"), "t")


def test_yaml_1_1_words_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        GOOD + "learning_rate: 2e-4\neval_strategy: no\nsave_strategy: no\nnum_train_epochs: 2\n",
        encoding="utf-8",
    )
    trl = load_recipe(path).trl
    assert (trl["learning_rate"], trl["eval_strategy"], trl["save_strategy"], trl["num_train_epochs"]) == (
        2e-4,
        "no",
        "no",
        2.0,
    )


def test_recipe_is_frozen(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD, encoding="utf-8")
    recipe, faults = parse_recipe(path)
    assert not faults.lines
    with pytest.raises(TypeError):
        recipe.trl["lora_r"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        recipe.data.test = 0.5  # type: ignore[misc]


def test_an_interrupted_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted: started again, the same command goes on, or says how\n"
