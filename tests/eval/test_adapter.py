"""Adapters and bases of strangers: their settings are bounded, and no code or pickle of theirs is run."""

import ast
import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import run_python
from hub_double import HubDouble

from eval.adapter import find_foreign_config, find_foreign_settings, read_foreign
from eval.protocols import PROTOCOLS, load_model
from publish.card import TEMPLATE
from sft.command import InputError, RunError
from sft.model import resolve_base
from sft.schema import RecipeError
from sft.storage import PROJECT, hash_file, read_json, write_json, write_text

RESULTS: dict[str, Any] = {
    "prompt": "{text}",
    "adapter": {"sha256": "a" * 64, "config_sha256": "b" * 64},
    "base": {"name": "bigscience/bloom-3b", "revision": "c" * 40, "weights": {}},
    "generation": {
        "num_beams": 1, "max_new_tokens": 90, "batch_size": 64, "merge_adapter": True, "prefix_caching": True,
    },
    "quantization": {
        "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True,
        "dtype": "bfloat16", "attn_implementation": None,
    },
    "tokens": {"pad_token": None, "eos_token": "</s>"},
}  # fmt: skip
CONFIG = {
    "peft_type": "LORA",
    "r": 16,
    "target_modules": ["query_key_value", "dense"],
    "exclude_modules": None,
}
NESTED: list[Any] = []
for _ in range(100_000):
    NESTED = [NESTED]


def test_results_of_this_project_are_taken() -> None:
    assert list(find_foreign_settings(RESULTS)) == []
    assert find_foreign_config(CONFIG) is None


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (
            "generation",
            "batch_size",
            0,
            "generation.batch_size: found 0, expected a whole number from 1 to 4096.",
        ),
        ("generation", "batch_size", 4097, "generation.batch_size: found 4097"),
        (
            "generation",
            "num_beams",
            100_000,
            "generation.num_beams: found 100000, expected a whole number from 1 to 64.",
        ),
        ("generation", "num_beams", True, "generation.num_beams: found True"),
        ("generation", "num_beams", NESTED, "generation.num_beams: found nested values"),
        ("generation", "max_new_tokens", 1e9, "generation.max_new_tokens: found 1000000000.0"),
        ("generation", "max_new_tokens", "90", "generation.max_new_tokens: found '90'"),
        (
            "generation",
            "prefix_caching",
            "no",
            "generation.prefix_caching: found 'no', expected true or false.",
        ),
        ("generation", "listed_words", [{}], "generation.'listed_words': no key of it. Expected num_beams, "),
        ("quantization", "load_in_4bit", 1, "quantization.load_in_4bit: found 1, expected true or false."),
        (
            "quantization",
            "bnb_4bit_quant_type",
            ["nf4"],
            "quantization.bnb_4bit_quant_type: found ['nf4'], expected nf4",
        ),
        ("quantization", "dtype", "float8", "quantization.dtype: found 'float8', expected auto"),
        (
            "quantization",
            "attn_implementation",
            "me/kernel",
            "quantization.attn_implementation: found 'me/kernel'",
        ),
        ("quantization", "llm_int8_threshold", 6, "quantization.'llm_int8_threshold': no key of it"),
        ("tokens", "eos_token", ["</s>"], "tokens.eos_token: found ['</s>'], expected a token or null."),
        ("tokens", "pad_token", "x" * 101, "tokens.pad_token: found 'xxx"),
        ("tokens", "chat_template", "{{ x }}", "tokens.'chat_template': no key of it"),
        ("base", "name", "/etc", "base.name: found '/etc', expected a Hub id, or a path inside the project."),
        ("base", "name", "~", "base.name: found '~'"),
        ("base", "name", "recipes/../../x", "base.name: found 'recipes/../../x'"),
        ("base", "name", "a\x1b[31m", "base.name: found 'a\\x1b[31m'"),
        (
            "base",
            "revision",
            "main",
            "base.revision: found 'main', expected a commit of 40 hex digits, or null.",
        ),
        ("base", "weights", {"a": 1}, "base.weights: found {'a': 1}, expected the SHA-256"),
        ("adapter", "sha256", None, "adapter.sha256: found None, expected a SHA-256."),
    ],
)
def test_settings_of_a_stranger_are_bounded(section: str, key: str, value: Any, message: str) -> None:
    results = copy.deepcopy(RESULTS)
    results[section][key] = value
    (fault,) = find_foreign_settings(results)
    assert fault.startswith(message)
    assert len(fault) < 250


@pytest.mark.parametrize("section", ["adapter", "base", "generation", "quantization", "tokens", "prompt"])
@pytest.mark.parametrize("value", [None, [], 3, {}])
def test_sections_of_another_shape_are_told(section: str, value: Any) -> None:
    assert next(find_foreign_settings(RESULTS | {section: value})).startswith(section)
    assert next(
        find_foreign_settings({key: part for key, part in RESULTS.items() if key != section})
    ).startswith(section)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target_modules", "(.*.*.*.*.*)*x"),
        ("target_modules", ["(a*)*$"]),
        ("target_modules", ["x"] * 1001),
        ("target_modules", {"x": 1}),
        ("exclude_modules", "(x+x+)+y"),
        ("modules_to_save", [["x"]]),
        ("layers_pattern", "(.*)*"),
        ("rank_pattern", {"(.*)*x": 8}),
        ("alpha_pattern", [1]),
        ("r", 10**9),
        ("r", "16"),
        ("peft_type", "XLORA"),
        ("peft_type", None),
    ],
)
def test_config_of_a_stranger_is_a_plain_lora(key: str, value: Any) -> None:
    fault = find_foreign_config(CONFIG | {key: value})
    assert fault
    assert fault.startswith(f"{key}: found ")


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", "null", "{", "3"])
def test_json_of_another_shape_is_one_error(text: str, tmp_path: Path) -> None:
    write_text(tmp_path / "results.json", text)
    with pytest.raises(
        RunError, match=r"^me/adapter: its results\.json is no JSON (that can be read|object)\.$"
    ):
        read_foreign("me/adapter", tmp_path / "results.json")


# ------------------------------------------------------------------------------------------- code and pickles


def list_open_calls(source: str) -> list[str]:
    """Return the calls that load something with transformers and leave `trust_remote_code` open."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if re.fullmatch(r"Auto\w+\.from_(pretrained|config)|SentenceTransformer|pipeline", name):
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if told.get("trust_remote_code") != "False":
                found.append(f"{node.lineno}: {name}")
    return found


def test_no_call_leaves_code_of_a_repository_open() -> None:
    paths = [path for folder in ("sft", "eval", "publish") for path in (PROJECT / folder).glob("*.py")]
    assert {path.name: calls for path in paths if (calls := list_open_calls(path.read_text()))} == {}
    assert list_open_calls("AutoConfig.from_pretrained('x')") == ["1: AutoConfig.from_pretrained"]
    calls = re.findall(r"Auto\w+\.from_pretrained\([^)]*\)", TEMPLATE.read_text())
    assert len(calls) == 4
    assert all("trust_remote_code=False" in call for call in calls)


def make_trap(folder: Path, base: Path, file: str, marker: Path) -> None:
    """Write a base into `folder` that names code of its own in `file`; where it runs, it leaves a marker."""
    shutil.copytree(base, folder)
    kind = "AutoTokenizer" if file == "tokenizer_config.json" else "AutoConfig"
    code = [None, "trap.Trap"] if kind == "AutoTokenizer" else "trap.Trap"
    config = read_json(folder / file)
    config |= {"auto_map": {kind: code, "AutoModelForCausalLM": "trap.Trap"}, "model_type": "trap"}
    write_json(folder / file, config | {"tokenizer_class": "Trap"})
    write_text(folder / "trap.py", f"open({str(marker)!r}, 'w').close()\nclass Trap: pass\n")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_local_base_is_refused(file: str, mini_run: Path, mini_base: Path, tmp_path: Path) -> None:
    make_trap(tmp_path / "trap", mini_base, file, tmp_path / "marker")
    shutil.copytree(mini_run, tmp_path / "run")
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    write_text(tmp_path / "run" / "recipe.yaml", recipe.replace(str(mini_base), str(tmp_path / "trap")))
    done = run_python("-m", "eval.detoxify", tmp_path / "run", stdin="y\ny\n")
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert (
        f"its {file} has auto_map, which names code of its own, and such code is never run. Expected" in line
    )
    assert "[y/N]" not in done.stdout + done.stderr
    assert not (tmp_path / "marker").exists()
    with pytest.raises(RecipeError, match="auto_map"):
        resolve_base(str(tmp_path / "trap"))


def publish_on(hub: HubDouble, run: Path, base: Path) -> None:
    """Put a run's adapter on the Hub, with its base there, too."""
    commit = hub.add_repo("model", "me/base", base)
    results, config = (
        read_json(run / "eval" / "results.json"),
        read_json(run / "adapter" / "adapter_config.json"),
    )
    config |= {"base_model_name_or_path": "me/base", "revision": commit}
    results["base"] = {"name": "me/base", "revision": commit, "weights": {}}
    del results["adapter"]["config_sha256"]
    files = {
        "adapter_model.safetensors": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "adapter_config.json": json.dumps(config).encode(),
        "results.json": json.dumps(results).encode(),
    }
    hub.add_repo("model", "me/adapter", files)


@pytest.mark.slow
def test_code_of_a_base_on_the_hub_is_refused(
    hub: HubDouble, mini_run: Path, mini_base: Path, tmp_path: Path
) -> None:
    make_trap(tmp_path / "trap", mini_base, "config.json", tmp_path / "marker")
    publish_on(hub, mini_run, tmp_path / "trap")
    env = hub.environment(tmp_path / "cache")
    done = run_python("-m", "eval.detoxify", "me/adapter", env=env, stdin="y\n")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "error: me/adapter: its base model: " in done.stderr
    assert "has auto_map" in done.stderr
    # What a Space carries, in a process of its own.
    code = "from eval.standalone import load_published; print(load_published('me/adapter').rewrite('x'))"
    done = run_python("-c", code, env=env, stdin="y\n")
    assert done.returncode == 1
    assert "trust_remote_code=True" in done.stderr, "transformers refuses it"
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
def test_a_base_with_pickled_weights_alone_is_refused(
    hub: HubDouble, mini_run: Path, mini_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(mini_base, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = (
        r"its weights are a pickle \(pytorch_model\.bin\), which can .* Expected safetensors\. Convert them"
    )
    with pytest.raises(RecipeError, match=message):
        resolve_base(str(folder))
    publish_on(hub, mini_run, folder)
    done = run_python("-m", "eval.detoxify", "me/adapter", "x", env=hub.environment(tmp_path / "cache"))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    check = ("-m", "sft.check", "recipes/tiny.yaml", "--model_name_or_path", "me/base")
    done = run_python(*check, env=hub.environment(tmp_path / "cache"))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    assert resolve_base(str(folder)).weights == {
        "model.safetensors": hash_file(mini_base / "model.safetensors")
    }


def test_a_model_of_a_protocol_brings_no_code(mini_base: Path, tmp_path: Path) -> None:
    make_trap(tmp_path / "trap", mini_base, "config.json", tmp_path / "marker")
    protocol = PROTOCOLS["pan-2024"]
    model = protocol.models["STA"]
    import dataclasses

    trapped = dataclasses.replace(protocol, models={"STA": str(tmp_path / "trap")})
    with pytest.raises(InputError, match=r"it can't be loaded: "):
        load_model("STA", trapped, {str(tmp_path / "trap"): "main", model: "main"})
    assert not (tmp_path / "marker").exists()
