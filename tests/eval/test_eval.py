"""Evaluation of a run: what it writes, what it is bound to, and what it refuses."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import Main, run_python

from eval.adapter import GenerationSettings, find_adapter, open_adapter
from eval.generate import PREFIX_CACHING, Rewriter, load_rewriter
from eval.metrics import compute_scores
from eval.report import choose_samples, escape_markdown
from eval.results import GENERATED
from eval.rows import (
    MOST_UNREWRITTEN,
    choose_rows,
    choose_shots,
    choose_unrewritten,
    read_splits,
    read_unrewritten,
)
from eval.toxicity import fit_toxicity
from sft.command import InputError, Refusal, RunError, tell_once
from sft.data import Example
from sft.lexicon import delete_listed, fit_lexicon
from sft.model import load_tokenizer, resolve_base
from sft.prompt import format_prompt
from sft.run_dir import Run, open_run
from sft.splits import hash_examples
from sft.storage import (
    PROJECT,
    hash_file,
    read_json,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text,
)

TEXTS = [
    "you damn fool",
    "shut up",
    "what a load of crap , i want my money back right now please",
    "get out of my way , idiot",
]


@pytest.fixture
def own_run(mini_run: Path, tmp_path: Path) -> Run:
    """A copy of the run that a test may change."""
    shutil.copytree(mini_run, tmp_path / "run")
    return Run(tmp_path / "run")


def test_results_are_the_scores_of_the_predictions_file(mini_run: Path) -> None:
    results = read_json(mini_run / "eval" / "results.json")
    lines = read_json_lines(mini_run / "eval" / "predictions.jsonl")
    assert len({line["prediction"] for line in lines}) > len(lines) / 2, "gibberish, but not all the same"
    test = read_json_lines(mini_run / "data" / "test.jsonl")
    assert [(line["toxic"], line["references"]) for line in lines] == [
        (line["toxic"], line["references"]) for line in test
    ]
    references = [line["references"] for line in lines]
    outputs = {"adapter": [line["prediction"] for line in lines]}
    train = Run(mini_run).splits["train"]
    outputs |= {name: [line[name] for line in lines] for name in GENERATED}
    outputs["delete"] = [delete_listed(line["toxic"], fit_lexicon(train)) for line in lines]
    outputs["copy"] = sources = [line["toxic"] for line in lines]
    assert outputs["delete"] != outputs["copy"]
    assert results["systems"].keys() == outputs.keys() | {"human"}
    for system, texts in outputs.items():
        for name, score in compute_scores(texts, references, sources, fit_toxicity(train)).items():
            if system == "adapter":
                assert [line["scores"][name] for line in lines] == pytest.approx(score.sentences, abs=1e-4)
            found = results["systems"][system][name]
            assert (found["value"], found["signature"]) == (score.value, score.signature)
            assert found["low"] <= found["value"] <= found["high"]
    for system, differences in results["differences"].items():
        for name, difference in differences.items():
            values = [results["systems"][key][name]["value"] for key in ("adapter", system)]
            assert difference["value"] == pytest.approx(values[0] - values[1])
            assert difference["low"] <= difference["value"] <= difference["high"]


def test_untuned_base_is_the_base_without_the_adapter(mini_run: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    lines = read_json_lines(mini_run / "eval" / "predictions.jsonl")
    adapter = open_adapter(Run(mini_run))
    rewriter = load_rewriter(adapter, tuned=False)
    assert rewriter.rewrite([line["toxic"] for line in lines]) == [line["base"] for line in lines]
    tuned = dict(load_rewriter(adapter).model.named_parameters())
    assert any(not torch.equal(weight, tuned[name]) for name, weight in rewriter.model.named_parameters())
    # But for the rounding to 4 bits it is the model on the disk.
    original = AutoModelForCausalLM.from_pretrained(adapter.base.path).float()
    for (name, weight), other in zip(rewriter.model.named_parameters(), original.parameters(), strict=True):
        assert (weight - other).norm() < 0.2 * other.norm() + 1e-6, name


@pytest.mark.parametrize(
    ("fast", "dtype", "attention", "expected"),
    [
        (True, "bfloat16", None, "bfloat16"),
        (True, "float32", None, "float32"),
        (True, "bfloat16", "eager", "float32"),
        (False, "bfloat16", None, "float32"),
    ],
)
def test_generation_computes_in_the_recipes_dtype_where_the_cpu_can(
    mini_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
    dtype: str,
    attention: str | None,
    expected: str,
) -> None:
    import torch

    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": fast})
    adapter = open_adapter(Run(mini_run))
    adapter = dataclasses.replace(
        adapter, quantization=adapter.quantization | {"dtype": dtype, "attn_implementation": attention}
    )
    assert {weight.dtype for weight in load_rewriter(adapter).model.parameters()} == {
        getattr(torch, expected)
    }


def test_recipe_says_which_baselines_are_scored(own_run: Run, call_main: Main) -> None:
    text = own_run.recipe_path.read_text()
    write_text(own_run.recipe_path, text.replace("  - delete\n  - base\n  - few_shot\n  - human\n", ""))
    call_main("eval.run", own_run.root, "--limit", 3)
    results = read_json(own_run.eval / "test-first-3" / "results.json")
    assert list(results["systems"]) == ["adapter", "copy"]
    assert list(results["differences"]) == ["copy"]
    assert "ceiling" not in results


def test_results_are_bound_to_adapter_base_and_data(mini_run: Path) -> None:
    results, run = read_json(mini_run / "eval" / "results.json"), Run(mini_run)
    assert results["adapter"]["sha256"] == hash_file(run.adapter_weights)
    assert results["base"] == read_json(run.environment_path)["base"]
    assert results["data"]["sha256"] == read_json(run.manifest_path)["splits"]["test"]["sha256"]
    assert (
        results["data"]["rows"] == results["data"]["rows_of"] == len(read_json_lines(run.split_path("test")))
    )
    assert str(Path.home()) not in json.dumps(results)
    assert "/tmp" not in json.dumps(results)


@pytest.mark.slow
def test_limit_and_split_do_not_replace_the_full_evaluation(own_run: Run, call_main: Main) -> None:
    before = (own_run.eval / "results.json").read_bytes()
    call_main("eval.run", own_run.root, "--limit", 2)
    call_main("eval.run", own_run.root, "--split", "validation", "--limit", 3)
    assert (own_run.eval / "results.json").read_bytes() == before
    limited = read_json(own_run.eval / "test-first-2" / "results.json")["data"]
    assert (limited["rows"], limited["rows_of"] > 2) == (2, True)
    assert read_json(own_run.eval / "validation-first-3" / "results.json")["data"]["split"] == "validation"


def test_source_leaves_out_what_the_run_has_seen(own_run: Run, call_main: Main, tmp_path: Path) -> None:
    trained = read_json_lines(own_run.split_path("train"))[:3]
    text = (
        "toxic\tneutral1\n"
        + "".join(f"{line['toxic'].upper()} !!\tx\n" for line in trained)
        + "a damn new one\tA new one.\n"
    )
    write_text(tmp_path / "other.tsv", text)
    call_main("eval.run", own_run.root, "--source", tmp_path / "other.tsv")
    (folder,) = (own_run.eval / "sources").glob("other-*")
    data = read_json(folder / "results.json")["data"]
    assert (data["rows"], data["left_out_as_seen"], data["source"]) == (1, 3, "other.tsv")
    splits = read_splits(own_run)
    near = next(
        line["toxic"]
        for line in read_json_lines(own_run.split_path("train"))
        if len(line["toxic"].split()) > 8
    )
    added = f"well {near}\tx\na rude one\t{trained[0]['toxic']}\n"
    write_text(tmp_path / "near.tsv", text + added)
    assert choose_rows(own_run, splits, str(tmp_path / "near.tsv"), "test", None).data.left_out_as_seen == 5
    write_text(tmp_path / "seen.tsv", text.replace("a damn new one\tA new one.\n", ""))
    with pytest.raises(
        InputError, match=r"the run trained on all of it \(3 sentences\), so a score would mean nothing"
    ):
        choose_rows(own_run, splits, str(tmp_path / "seen.tsv"), "test", None)


def quote(value: object) -> str:
    """Return a value as ParaDetox's file has it: JSON, in quotes as of a .tsv file."""
    return '"' + json.dumps(value).replace('"', '""') + '"'


UNREWRITTEN = f"""\tINPUT:toxic_comment\tOUTPUT:reasons
0\t{quote('all "blondes" are  stupid')}\t{quote({"toxic_content": True, "unclear": False})}
1\twhat a damn day\t{{"not_toxic":true,"unclear":true}}
2\t{quote("what the hell")}\t{{}}
"""


def test_sentences_that_annotators_could_not_rewrite_are_read_with_their_reasons(tmp_path: Path) -> None:
    write_text(tmp_path / "cannot.tsv", UNREWRITTEN)
    expected = {
        'all "blondes" are stupid': ["toxic_content"],
        "what a damn day": ["not_toxic", "unclear"],
        "what the hell": [],
    }
    assert read_unrewritten(tmp_path / "cannot.tsv") == expected
    write_text(tmp_path / "cannot.txt", "one  of them\r\n\nanother\n")
    assert read_unrewritten(tmp_path / "cannot.txt") == {"one of them": [], "another": []}


@pytest.mark.parametrize(
    "sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"], ids=ascii
)
def test_a_line_ends_where_its_file_says_so(sign: str, tmp_path: Path) -> None:
    write_text(tmp_path / "cannot.txt", f"you{sign}moron\nstop it\n")
    assert read_unrewritten(tmp_path / "cannot.txt") == {"you moron": [], "stop it": []}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "none.txt",
            None,
            r"none.txt: no such file. Expected sentences without rewrites: a text a line, or ParaDetox's .tsv file",
        ),
        ("blank.txt", " \n\n", r"blank.txt: the file is empty"),
        (
            "other.tsv",
            "toxic\tneutral1\na\tb\n",
            r"no column 'INPUT:toxic_comment'; it has toxic, neutral1. Expected INPUT",
        ),
        (
            "half.tsv",
            UNREWRITTEN.replace("{}", "true"),
            r"row 3: found 'what the hell' and 'true', expected a JSON text and",
        ),
        (
            "cut.tsv",
            UNREWRITTEN.replace("{}", "{"),
            r"row 3: found 'what the hell' and '{', expected a JSON text and",
        ),
    ],
)
def test_broken_file_of_unrewritten_sentences_is_told(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        write_text(tmp_path / name, text)
    with pytest.raises(InputError, match=message):
        read_unrewritten(tmp_path / name)


def test_unrewritten_sentences_that_the_run_has_seen_are_left_out(mini_run: Path, tmp_path: Path) -> None:
    run = Run(mini_run)
    seen = [run.splits["train"][0].toxic.upper(), run.splits["validation"][0].references[0]]
    long = next(example.toxic for example in run.splits["train"] if len(example.toxic.split()) > 8)
    seen.append(f"{long} indeed")
    texts = [f"damn number {number}" for number in range(MOST_UNREWRITTEN + 5)]
    write_text(tmp_path / "one.txt", "\n".join([*seen, *texts]))
    write_text(tmp_path / "other.txt", "\n".join([*reversed(texts), *seen]))
    splits = read_splits(run)
    chosen = choose_unrewritten(run, splits, tmp_path / "one.txt")
    assert chosen.lines == choose_unrewritten(run, splits, tmp_path / "other.txt").lines, (
        "the order of the file does not matter"
    )
    assert {line["toxic"] for line in chosen.lines} < set(texts)
    counts = [chosen.description[key] for key in ("rows", "rows_of", "left_out_as_seen")]
    assert counts == [MOST_UNREWRITTEN, MOST_UNREWRITTEN + 5, 3]
    write_text(tmp_path / "seen.txt", "\n".join(seen))
    with pytest.raises(InputError, match=r"seen.txt: the run trained on all of it \(3 sentences\)"):
        choose_unrewritten(run, splits, tmp_path / "seen.txt")


@pytest.mark.slow
def test_unrewritten_sentences_are_scored_shown_and_published(
    own_run: Run, call_main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import jsonschema

    write_text(tmp_path / "cannot.tsv", UNREWRITTEN)
    call_main("eval.run", own_run.root, "--unrewritten", tmp_path / "cannot.tsv")
    assert "cannot.tsv: sentences that annotators could not rewrite" in capsys.readouterr().out
    results, lines = (
        read_json(own_run.eval / "results.json"),
        read_json_lines(own_run.eval / "unrewritten.jsonl"),
    )
    jsonschema.validate(results, read_json(PROJECT / "eval" / "results.schema.json"))
    slices = {part["slice"]: part for part in results["unrewritten"]["slices"]}
    assert {name: part["rows"] for name, part in slices.items()} == {
        "all": 3,
        "not_toxic": 1,
        "toxic_content": 1,
        "unclear": 1,
    }
    model, texts = fit_toxicity(own_run.splits["train"]), [line["toxic"] for line in lines]
    assert slices["all"]["systems"]["copy"]["toxicity"]["value"] == pytest.approx(
        sum(model.predict(texts)) / 3
    )
    (day,) = (line["scores"] for line in lines if line["toxic"] == "what a damn day")
    assert slices["not_toxic"]["systems"]["adapter"]["joint"]["value"] == pytest.approx(
        day["joint"], abs=1e-4
    )
    assert "could not rewrite" in (own_run.eval / "report.html").read_text()

    call_main("publish.run", own_run.root)
    assert "| what it says is toxic | 1 |" in (own_run.publish / "README.md").read_text()
    write_json_lines(
        own_run.eval / "unrewritten.jsonl", [line | {"prediction": "thank you"} for line in lines]
    )
    with pytest.raises(RunError, match=r"its scores are not those of predictions.jsonl or unrewritten.jsonl"):
        call_main("publish.run", own_run.root)
    others = [line | {"toxic": f"{line['toxic']} !"} for line in lines]
    write_json_lines(own_run.eval / "unrewritten.jsonl", others)
    with pytest.raises(RunError, match=r"unrewritten.jsonl"):
        call_main("publish.run", own_run.root)

    call_main("eval.run", own_run.root)
    assert not (own_run.eval / "unrewritten.jsonl").exists()
    assert "unrewritten" not in read_json(own_run.eval / "results.json")
    call_main("publish.run", own_run.root)


def test_changed_test_split_is_refused(own_run: Run) -> None:
    lines = own_run.split_path("test").read_text().splitlines(keepends=True)
    write_text(own_run.split_path("test"), "".join(lines[1:]))
    with pytest.raises(RunError, match="not the test split that the run was made with"):
        read_splits(own_run)


def test_leak_is_refused_though_the_manifest_fits_it(own_run: Run, call_main: Main) -> None:
    lines = read_json_lines(own_run.split_path("train")) + read_json_lines(own_run.split_path("test"))[:1]
    write_json_lines(own_run.split_path("train"), lines)
    manifest = read_json(own_run.manifest_path)
    manifest["splits"]["train"]["sha256"] = hash_examples(
        [Example(line["toxic"], tuple(line["references"])) for line in lines]
    )
    write_json(own_run.manifest_path, manifest)
    shutil.rmtree(own_run.eval)
    with pytest.raises(
        Refusal, match=r"the splits leak: '.*' stands in test and train, and 0 more\. .* Train again"
    ):
        call_main("eval.run", own_run.root)
    assert not own_run.eval.exists()


def test_source_is_read_by_the_recipes_columns_or_by_a_layout(own_run: Run, tmp_path: Path) -> None:
    text = own_run.recipe_path.read_text()
    assert "  toxic: null\n  neutral: null\n" in text
    write_text(
        own_run.recipe_path,
        text.replace("  toxic: null\n  neutral: null\n", "  toxic: rude\n  neutral: [kind]\n"),
    )
    for header in ("rude\tkind\n", "toxic\tneutral1\n"):
        write_text(tmp_path / "other.tsv", header + "a damn new one\tA new one.\n")
        rows = choose_rows(own_run, read_splits(own_run), str(tmp_path / "other.tsv"), "test", None)
        assert rows.examples == [Example("a damn new one", ("A new one.",))]
    write_text(tmp_path / "other.tsv", "one\tother\na damn new one\tA new one.\n")
    with pytest.raises(
        InputError,
        match=r"no toxic column; it has one, other\. Expected toxic or en_toxic_comment, or the names",
    ):
        choose_rows(own_run, read_splits(own_run), str(tmp_path / "other.tsv"), "test", None)


def test_changed_prompt_is_refused(own_run: Run) -> None:
    manifest = read_json(own_run.manifest_path)
    write_json(own_run.manifest_path, manifest | {"prompt": "### detoxified:\n{text}"})
    with pytest.raises(RunError, match="trained with another prompt"):
        open_adapter(own_run)


def test_changed_base_is_refused(own_run: Run) -> None:
    environment = read_json(own_run.environment_path)
    environment["base"]["weights"] = {"model.safetensors": "0" * 64}
    write_json(own_run.environment_path, environment)
    with pytest.raises(RunError, match="no longer the one that the adapter was trained on"):
        open_adapter(own_run)


@pytest.mark.slow
def test_unfinished_run_is_refused_with_the_command_that_mends_it(own_run: Run) -> None:
    shutil.rmtree(own_run.adapter)
    with pytest.raises(
        RunError, match=r"its training did not finish .* Go on with: accelerate launch sft/run\.py"
    ):
        open_run(own_run.root)
    done = run_python("eval/run.py", own_run.root)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_rewrites_do_not_depend_on_company(mini_run: Path) -> None:
    """Each text's answer is its own, whatever else is in the call and in which order; empty texts stay empty."""
    rewriter = load_rewriter(find_adapter(str(mini_run)))
    texts = [
        "you damn fool",
        "",
        "what a load of crap , i want my money back right now please",
        "   ",
        "shut up",
    ]
    together = rewriter.rewrite(texts)
    assert len(together) == len(texts)
    assert together[1] == together[3] == ""
    assert rewriter.rewrite(texts[::-1]) == together[::-1]
    assert [rewriter.rewrite([text])[0] for text in texts] == together


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("shots", [0, 2])
def test_prefix_caching_computes_less_of_the_same(mini_run: Path, beams: int, shots: int) -> None:
    run, read = Run(mini_run), []
    adapter = open_adapter(run)
    settings = dataclasses.replace(adapter.settings, num_beams=beams, max_new_tokens=8)
    adapter = dataclasses.replace(
        adapter, quantization=adapter.quantization | {"dtype": "float32"}, settings=settings
    )
    cached = load_rewriter(adapter)
    plain = dataclasses.replace(cached, settings=dataclasses.replace(settings, prefix_caching=False))
    cached.model.register_forward_pre_hook(
        lambda *call: read.append(call[-1]["input_ids"].numel()), with_kwargs=True
    )
    texts = [example.toxic for example in run.splits["test"]]
    solved = run.splits["train"][:shots]
    rewrites, tokens = [], []
    for rewriter in (plain, cached):
        read.clear()
        rewrites.append(rewriter.rewrite(texts, shots=solved))
        tokens.append(sum(read))
    assert rewrites[1] == rewrites[0]
    assert any(rewrites[0])
    assert tokens[1] < (0.9 if beams == 1 else 0.75) * tokens[0]
    assert [cached.rewrite([text], shots=solved)[0] for text in texts[:3]] == rewrites[0][:3]


def make_random_rewriter(kind: str, beams: int, **changes: object) -> Rewriter:
    """Return a rewriter with a random miniature of another architecture."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(resolve_base("recipes/bloom-tiny"))
    sizes = {
        "tie_word_embeddings": False,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    named = {
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
        "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    }
    named |= {"gpt2": {"n_embd": 32}, "qwen2": {"num_key_value_heads": 2}}
    torch.manual_seed(0)
    ends = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(
        kind, **sizes | named.get(kind, {}) | {"vocab_size": len(tokenizer)} | ends | changes
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4)  # else every prompt has the same answer
    return Rewriter(model, tokenizer, GenerationSettings(beams, 6, 4))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", PREFIX_CACHING)
def test_prefix_caching_with_other_architectures(
    kind: str, beams: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once.cache_clear()
    cached = make_random_rewriter(kind, beams)
    plain = dataclasses.replace(cached, settings=dataclasses.replace(cached.settings, prefix_caching=False))
    expected = plain.rewrite(TEXTS)
    assert len(set(expected)) > 2
    assert cached.rewrite(TEXTS) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("kind", "changes", "cache_implementation"),
    [
        ("mpt", {}, None),  # its distances would count the padding
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, None),
        ("bloom", {}, "dynamic"),
    ],
)
def test_no_prefix_caching_where_it_would_change_the_rewrites(
    kind: str,
    changes: dict[str, object],
    cache_implementation: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_once.cache_clear()
    cached = make_random_rewriter(kind, 1, **changes)
    cached.model.generation_config.cache_implementation = cache_implementation
    plain = dataclasses.replace(cached, settings=dataclasses.replace(cached.settings, prefix_caching=False))
    assert cached.rewrite(TEXTS) == plain.rewrite(TEXTS)
    assert capsys.readouterr().err.startswith(f"{kind}: no prefix caching, which is for bloom, gpt2,")


def test_merged_model_on_the_cpu_is_the_trained_one(mini_run: Path) -> None:
    """The dequantised, merged model against the 4-bit base with the adapter beside it, as it was trained."""
    import torch
    from peft import PeftModel

    from sft.model import load_base, resolve_base
    from sft.recipe import load_recipe

    recipe = load_recipe(mini_run / "recipe.yaml")
    adapter = open_adapter(Run(mini_run))
    trained = PeftModel.from_pretrained(
        load_base(recipe, resolve_base(recipe.trl["model_name_or_path"])), str(adapter.folder)
    )
    merged = load_rewriter(adapter).model
    ids = torch.arange(4, 60).reshape(2, 28)
    with torch.no_grad():
        reference, logits = trained.eval()(input_ids=ids).logits.float(), merged(input_ids=ids).logits
    assert (reference - logits).abs().max() < 0.05 * reference.abs().max()


@pytest.mark.slow
def test_recipe_keeps_the_adapter_beside_its_quantised_base(own_run: Run, call_main: Main) -> None:
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel

    whole = read_json_lines(own_run.eval / "predictions.jsonl")
    write_text(
        own_run.recipe_path,
        own_run.recipe_path.read_text().replace("merge_adapter: true", "merge_adapter: false"),
    )
    adapter = open_adapter(own_run)
    model = load_rewriter(adapter).model
    assert isinstance(model, PeftModel)
    assert any(isinstance(module, Linear4bit) for module in model.modules())
    assert any(
        isinstance(module, Linear4bit) for module in load_rewriter(adapter, tuned=False).model.modules()
    )
    unquantised = dataclasses.replace(adapter, quantization=adapter.quantization | {"load_in_4bit": False})
    rewriter = load_rewriter(unquantised)
    assert isinstance(rewriter.model, PeftModel)
    assert len({parameter.dtype for parameter in rewriter.model.parameters()}) == 1
    assert all(rewriter.rewrite(TEXTS[:1]))
    unquantised = dataclasses.replace(
        unquantised, quantization=unquantised.quantization | {"dtype": "float32"}
    )
    merged = load_rewriter(
        dataclasses.replace(unquantised, settings=dataclasses.replace(adapter.settings, merge_adapter=True))
    )
    assert not isinstance(merged.model, PeftModel)
    assert load_rewriter(unquantised).rewrite(TEXTS) == merged.rewrite(TEXTS)
    call_main("eval.run", own_run.root)
    assert read_json(own_run.eval / "results.json")["generation"]["merge_adapter"] is False
    # In float32: greedy answers of a random model part for good at the first token that is rounded the other way.
    exact = dataclasses.replace(adapter, quantization=adapter.quantization | {"dtype": "float32"})
    settings = [dataclasses.replace(adapter.settings, merge_adapter=merge) for merge in (True, False)]
    texts = [line["toxic"] for line in whole]
    joined, beside = (
        load_rewriter(dataclasses.replace(exact, settings=it)).rewrite(texts) for it in settings
    )
    same = sum(one == other for one, other in zip(joined, beside, strict=True))
    assert same > 0.8 * len(whole), "the same model but for rounding"


@pytest.mark.slow
def test_detoxify_gives_a_line_for_a_line(mini_run: Path) -> None:
    done = run_python(
        "-m",
        "eval.detoxify",
        mini_run,
        stdin="you damn fool\n\nwhat the hell is this\r\nlast line without end",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert len(lines) == 5
    assert (lines[1], lines[4]) == ("", "")
    again = run_python("-m", "eval.detoxify", mini_run, "you damn fool", "what the\nhell is this")
    assert again.stdout.split("\n")[:2] == [lines[0], lines[2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["./nowhere"],
            "error: ./nowhere: no such folder. Expected a run directory, such as runs/tiny, or an adapter's Hub id.\n",
        ),
        (
            ["eval"],
            "error: eval: not a run directory (no recipe.yaml in it). Expected one that sft/run.py made.\n",
        ),
        (
            ["a/b"],
            "error: the Hub could not be reached, and a/b is not in the local cache. "
            "Go online once, or name a local run or adapter.\n",
        ),
    ],
)
def test_detoxify_with_something_else(arguments: list[str], message: str) -> None:
    done = run_python("-m", "eval.detoxify", *arguments, "text")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.slow
def test_detoxify_says_which_line_is_not_utf8(mini_run: Path) -> None:
    import subprocess
    import sys

    from sft.storage import PROJECT

    command = [sys.executable, "-m", "eval.detoxify", str(mini_run)]
    done = subprocess.run(command, cwd=PROJECT, input=b"fine\ncaf\xe9\n", capture_output=True, timeout=300)
    assert done.returncode == 2
    assert b"error: standard input, line 2: not UTF-8. Convert it: iconv -f latin1 -t utf8.\n" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_limit_must_be_a_number_above_0(limit: str) -> None:
    done = run_python("eval/run.py", "runs/tiny", f"--limit={limit}")
    assert done.returncode == 2
    assert f"argument --limit: found '{limit}', expected a whole number above 0" in done.stderr


def test_samples_do_not_depend_on_the_predictions() -> None:
    lines = [{"id": f"{number:016x}", "prediction": str(number)} for number in (5, 3, 9, 1)]
    assert [line["id"][-1] for line in choose_samples(lines, 2)] == ["1", "3"]


@pytest.mark.parametrize(
    "text",
    [
        "a | b",
        "<img src=x onerror=alert(1)>",
        "`code`",
        "*bold* _it_ ~~no~~",
        "[x](http://e.org)",
        "$x^2$",
        "http://e.org",
        "@me",
        "# h",
    ],
)
def test_escaped_text_holds_no_markup(text: str) -> None:
    import html

    escaped = escape_markdown(text)
    assert html.unescape(escaped) == text
    # Entities aside, nothing is left that Markdown reads.
    import re

    assert not re.search(r"[|<>`*_\[\]$@#~^]|://", re.sub(r"&#?\w+;", "", escaped))


def test_plots_are_pictures(mini_run: Path) -> None:
    for name in ("loss", "scores", "lengths"):
        content = (mini_run / "plots" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_pad_token_of_the_ordinary_vocabulary_does_not_reach_the_answer(
    mini_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    rewriter = load_rewriter(find_adapter(str(mini_run)))
    rewriter.tokenizer.pad_token = "!"
    ids = [rewriter.tokenizer(text)["input_ids"] for text in ("fine", "a longer answer!")]
    pad, end = rewriter.tokenizer.pad_token_id, rewriter.tokenizer.eos_token_id

    def generate(input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        rows = torch.tensor([(row + [end] + [pad] * 20)[:20] for row in ids])
        return SimpleNamespace(sequences=torch.cat([input_ids, rows], dim=1))

    monkeypatch.setattr(rewriter.model, "generate", generate)
    assert rewriter.generate_batch([[5, 6], [7]]) == ["fine", "a longer answer!"]


@pytest.mark.slow
def test_interrupted_evaluation_goes_on_and_gives_the_same_files(
    own_run: Run, call_main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = own_run.recipe_path.read_text().replace("  batch_size: 64", "  batch_size: 4")
    write_text(own_run.recipe_path, text)
    generate_batch, batches = Rewriter.generate_batch, []

    def note(self: Rewriter, prompts: list[list[int]], prefix: object) -> list[str]:
        batches.append(prompts)
        return generate_batch(self, prompts, prefix)

    monkeypatch.setattr(Rewriter, "generate_batch", note)
    call_main("eval.run", own_run.root)
    number = len(batches)
    batches.clear()
    whole = {name: (own_run.eval / name).read_bytes() for name in ("predictions.jsonl", "samples.md")}
    results = read_json(own_run.eval / "results.json")
    shutil.rmtree(own_run.eval)

    def break_off(self: Rewriter, prompts: list[list[int]], prefix: object) -> list[str]:
        if len(batches) == 5:
            raise KeyboardInterrupt
        return note(self, prompts, prefix)

    monkeypatch.setattr(Rewriter, "generate_batch", break_off)
    with pytest.raises(KeyboardInterrupt):
        call_main("eval.run", own_run.root)
    assert not (own_run.eval / "results.json").exists()
    journals = list((own_run.eval / "unfinished").glob("*/0.jsonl"))
    assert sum(len(path.read_text().splitlines()) for path in journals) == 5
    with max(journals, key=lambda path: path.stat().st_mtime).open("a") as stream:
        stream.write('{"3": "cut o')  # as a kill leaves it
    (journals[0].parent / ".0.jsonl.k2x.jsonl").write_text(
        '{"0": "what a killed process was about to write"}\n'
    )

    monkeypatch.setattr(Rewriter, "generate_batch", note)
    call_main("eval.run", own_run.root)
    assert len(batches) == number, "nothing was generated twice"
    assert whole == {name: (own_run.eval / name).read_bytes() for name in whole}
    after = read_json(own_run.eval / "results.json")
    for key in ("created", "generation_seconds"):
        del results[key], after[key]
    assert results == after
    assert not (own_run.eval / "unfinished").exists()


@pytest.mark.slow
def test_killed_evaluation_of_two_processes_goes_on_to_the_same_predictions(
    own_run: Run, call_main: Main
) -> None:
    write_text(
        own_run.recipe_path, own_run.recipe_path.read_text().replace("  batch_size: 64", "  batch_size: 4")
    )
    call_main("eval.run", own_run.root)
    whole = (own_run.eval / "predictions.jsonl").read_bytes()
    shutil.rmtree(own_run.eval)

    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "eval/run.py", own_run.root]
    launcher = psutil.Popen(
        [sys.executable, *map(str, command)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def count_batches(process: int) -> int:
        return sum(
            path.read_text().count("\n") for path in (own_run.eval / "unfinished").glob(f"*/{process}.jsonl")
        )

    deadline = time.monotonic() + 120
    while (
        not (count_batches(0) and count_batches(1))
        and launcher.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    processes = [launcher, *launcher.children(recursive=True)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)
    assert count_batches(0)
    assert count_batches(1)
    assert not (own_run.eval / "predictions.jsonl").exists()

    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    assert (own_run.eval / "predictions.jsonl").read_bytes() == whole
    assert not (own_run.eval / "unfinished").exists()


def test_few_shot_prompts_are_solved_examples_and_the_text(mini_run: Path) -> None:
    run = Run(mini_run)
    shots = choose_shots(run.splits["train"])
    assert len(shots) == 4
    adapter = open_adapter(run)
    exact = dataclasses.replace(adapter, quantization=adapter.quantization | {"dtype": "float32"})
    rewriter = load_rewriter(exact, tuned=False)
    ids = rewriter.tokenise_shots(shots)
    text = "".join(f"{format_prompt(shot.toxic)}{shot.references[0]}</s>" for shot in shots)
    assert rewriter.tokenizer.decode(ids) == text
    texts = ["a damn fool", "shut up"]
    alone = [
        rewriter.generate_batch([ids + rewriter.tokenizer(format_prompt(text))["input_ids"]])[0]
        for text in texts
    ]
    assert rewriter.rewrite(texts, shots=shots) == alone
