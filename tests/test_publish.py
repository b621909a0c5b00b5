"""The publish folder: exactly the planned files, bound to one another; and the card, held against a golden file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Main, run_python

from publish.card import CardFacts, render_card
from publish.plan import read_facts, write_publish_folder
from sft.recipe import load_recipe
from sft.run_dir import RunDir, RunError, hash_file, read_json, read_json_lines, write_json, write_json_lines

GOLDEN = Path(__file__).parent / "golden" / "card.md"
EVIL = 'a | b <img src=x onerror="alert(1)"> `c` [d](http://e.org) $f$ **g**\n# h'


@pytest.fixture
def own_run(mini_run: Path, tmp_path: Path) -> RunDir:
    shutil.copytree(mini_run, tmp_path / "run")
    return RunDir(tmp_path / "run")


def test_folder_holds_exactly_the_planned_files(own_run: RunDir, call_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    call_main("publish.run", own_run.root)
    assert {str(path.relative_to(own_run.publish)) for path in own_run.publish.rglob("*") if path.is_file()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
        "results.json",
        "samples.md",
        "plots/loss.png",
        "plots/scores.png",
        "plots/lengths.png",
    }
    assert hash_file(own_run.publish / "adapter_model.safetensors") == hash_file(own_run.adapter_weights)
    output = capsys.readouterr().out
    assert "adapter_model.safetensors" in output
    assert "Nothing has left this machine." in output
    for path in own_run.publish.rglob("*"):
        if path.is_file():
            assert str(own_run.root.parent).encode() not in path.read_bytes(), f"{path.name} holds a path of this machine"


def test_making_it_again_replaces_it(own_run: RunDir) -> None:
    write_publish_folder(own_run)
    (own_run.publish / "stray.bin").write_bytes(b"x")
    first = {path: path.read_bytes() for path in own_run.publish.rglob("*") if path.is_file() and path.name != "stray.bin"}
    write_publish_folder(own_run)
    assert first == {path: path.read_bytes() for path in own_run.publish.rglob("*") if path.is_file()}


def test_card_metadata(own_run: RunDir) -> None:
    write_publish_folder(own_run)
    text = (own_run.publish / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["library_name"] == "peft"
    assert metadata["pipeline_tag"] == "text-generation"
    assert "base_model" not in metadata, "a local base has no Hub id"
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    results = read_json(own_run.eval / "results.json")["systems"]["adapter"]
    assert {metric["name"]: metric["value"] for metric in metrics}["BLEU"] == results["bleu"]["value"]
    assert {metric["name"]: metric["args"]["signature"] for metric in metrics}["chrF"] == results["chrf"]["signature"]


def change(path: Path, *keys: str, value: Any) -> None:
    content = read_json(path)
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    write_json(path, content)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("adapter", "sha256"), "0" * 64, r"its scores are of another adapter \(its SHA-256 differs\)"),
        (("base", "revision"), "0" * 40, "its scores are of another base model"),
        (("prompt",), "x", "its scores are of another prompt"),
        (("data", "sha256"), "0" * 64, "its scores are of other rows than the run's test split"),
    ],
)
def test_scores_of_something_else_are_refused(own_run: RunDir, keys: tuple[str, ...], value: str, message: str) -> None:
    change(own_run.eval / "results.json", *keys, value=value)
    with pytest.raises(RunError, match=message + r"\. Evaluate again: accelerate launch eval/run\.py"):
        write_publish_folder(own_run)
    assert not own_run.publish.exists()


def test_adapter_changed_after_the_evaluation_is_refused(own_run: RunDir) -> None:
    content = bytearray(own_run.adapter_weights.read_bytes())
    content[-1] ^= 1
    own_run.adapter_weights.write_bytes(content)
    with pytest.raises(RunError, match="another adapter"):
        write_publish_folder(own_run)


def test_scores_that_are_not_those_of_the_predictions_are_refused(own_run: RunDir) -> None:
    change(own_run.eval / "results.json", "systems", "adapter", "bleu", "value", value=94.0)
    with pytest.raises(RunError, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(own_run)


def test_results_of_another_version_are_refused(own_run: RunDir) -> None:
    change(own_run.eval / "results.json", "schema", value=1)
    with pytest.raises(RunError, match=r"made by another version of this project\. Evaluate again: accelerate launch"):
        write_publish_folder(own_run)


@pytest.mark.parametrize(
    "keys",
    [
        ("systems", "copy", "bleu", "value"),
        ("systems", "base", "listed", "high"),
        ("systems", "human", "joint", "low"),
        ("differences", "delete", "bleu", "low"),
        ("ceiling", "systems", "adapter", "bleu", "value"),
        ("toxicity_accuracy",),
    ],
)
def test_baselines_and_differences_are_held_against_the_predictions_too(own_run: RunDir, keys: tuple[str, ...]) -> None:
    change(own_run.eval / "results.json", *keys, value=1.5)
    with pytest.raises(RunError, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(own_run)


def test_predictions_of_other_rows_are_refused(own_run: RunDir) -> None:
    lines = read_json_lines(own_run.eval / "predictions.jsonl")
    write_json_lines(own_run.eval / "predictions.jsonl", lines[1:] + lines[:1])
    with pytest.raises(RunError, match="not the rows of the run's test split"):
        write_publish_folder(own_run)


def test_a_prediction_changed_afterwards_is_refused(own_run: RunDir) -> None:
    lines = read_json_lines(own_run.eval / "predictions.jsonl")
    lines[3]["prediction"] = lines[3]["references"][0]
    write_json_lines(own_run.eval / "predictions.jsonl", lines)
    with pytest.raises(RunError, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(own_run)


def test_run_without_evaluation_is_refused(own_run: RunDir) -> None:
    shutil.rmtree(own_run.eval)
    done = run_python("-m", "publish.run", own_run.root)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {own_run.root}: its whole test split is not evaluated yet. Run: accelerate launch eval/run.py {own_run.root}\n"
    )


def golden_facts() -> CardFacts:
    """Facts of a run on the Hub's data and base, fixed here, with hostile samples."""
    recipe = load_recipe("recipes/bloom.yaml", ["--publish.repo_id", "me/bloom-3b-detox"])
    bleu: dict[str, Any] = {"value": 61.25, "low": 59.5, "high": 63.0}
    bleu["signature"] = "nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    rouge: dict[str, Any] = {"value": 0.8125, "low": 0.75, "high": 0.875}
    rouge["signature"] = "rouge1|measure:f|refs:best|stemmer:no|aggregate:mean|version:0.1.2"
    listed: dict[str, Any] = {"value": 0.0625, "low": 0.05, "high": 0.075}
    listed["signature"] = "listed|words:110|sha256:0|aggregate:mean"
    scores = {"bleu": bleu, "bleu_first": bleu, "chrf": bleu, "rouge1": rouge, "rouge2": rouge, "rougeL": rouge}
    scores |= {"toxicity": listed, "listed": listed, "joint": rouge}
    copied = {name: score | {"value": score["value"] / 2} for name, score in scores.items()}
    split = {"examples": 591, "references": 930, "sha256": "5" * 64}
    base = {"name": "bigscience/bloom-3b", "revision": "b" * 40, "weights": {}}
    return CardFacts(
        name="bloom-3b-detox",
        recipe=recipe.values(),
        environment={
            "base": base,
            "parameters": {"trainable": 19660800, "total": 3022218240},
            "training": {
                "steps": 1671,
                "seconds": 1234.5,
                "train_seconds": 1200.0,
                "samples_per_second": 43.3,
                "peak_memory_gib": 7.25,
            },
            "hardware": {"gpus": ["NVIDIA T4"], "cpu": "x86_64", "cpu_count": 2},
            "git_commit": "c" * 40,
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
        },
        manifest={
            "source": "s-nlp/paradetox",
            "revision": "d" * 40,
            "sha256": {"train.tsv": "f" * 64},
            "splits": dict.fromkeys(("train", "validation", "test"), split),
            "leaks": 0,
        },
        results={
            "adapter": {"sha256": "a" * 64},
            "base": base,
            "data": {"source": "s-nlp/paradetox", "revision": "d" * 40, "split": "test", "rows": 591, "sha256": "5" * 64},
            "generation": {"num_beams": 1, "max_new_tokens": 90, "batch_size": 64},
            "systems": {"adapter": scores, "base": copied, "copy": copied, "human": scores},
            "ceiling": {
                "rows": 402,
                "systems": {"adapter": scores, "human": scores},
                "differences": {"human": {"bleu": {"value": -4.5, "low": -6.25, "high": -3.0}}},
            },
            "toxicity_accuracy": 0.9375,
            "differences": {
                "base": {"bleu": {"value": 30.625, "low": 28.5, "high": 32.75}},
                "copy": {"bleu": {"value": 30.625, "low": -0.25, "high": 61.5}},
            },
            "intervals": {"method": "percentile bootstrap over sentences", "level": 95, "resamples": 1000, "seed": 0},
        },
        predictions=[{"id": str(n), "toxic": EVIL, "prediction": EVIL, "references": [EVIL]} for n in range(7)],
    )


def test_card_is_the_golden_one() -> None:
    """After a wanted change: python tests/test_publish.py writes the golden file anew; read its diff."""
    assert render_card(golden_facts()) == GOLDEN.read_text(encoding="utf-8")


def test_hostile_samples_stay_text() -> None:
    card = render_card(golden_facts())
    body = card.split("## Samples")[1].split("## Training")[0]
    assert "<img" not in body
    assert "](http" not in body
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert all(line.count("|") == 4 for line in rows)


def test_a_fact_that_is_missing_is_an_error_not_a_blank() -> None:
    import jinja2

    facts = golden_facts()
    results = {key: value for key, value in facts.results.items() if key != "adapter"}
    with pytest.raises(jinja2.UndefinedError):
        render_card(CardFacts(facts.name, facts.recipe, facts.environment, facts.manifest, results, facts.predictions))


def test_facts_of_a_run_are_complete(mini_run: Path) -> None:
    facts = read_facts(RunDir(mini_run))
    assert json.dumps(facts.manifest)
    assert render_card(facts).startswith("---\n")


if __name__ == "__main__":
    GOLDEN.write_text(render_card(golden_facts()), encoding="utf-8")
