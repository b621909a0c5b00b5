"""The publish folder: exactly the planned files, bound to one another; and the card, held against a golden file."""

import ast
import dataclasses
import itertools
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Main, run_python

from publish.card import (
    BEGIN,
    END,
    CardFacts,
    describe_record,
    find_metadata_faults,
    format_grams,
    format_python,
    name_hardware,
    render_card,
    restore_facts,
    split_card,
)
from publish.folder import read_facts, write_publish_folder
from publish.licence import BLOOM_LICENSE, write_license
from publish.samples import choose_examples, mask_samples, write_samples
from publish.verify import check_card
from sft.command import Refusal, RunError, show
from sft.data import clean_text
from sft.recipe import load_recipe
from sft.run_dir import Run
from sft.storage import PROJECT, hash_file, read_json, read_json_lines, write_json, write_json_lines

EVIL = 'a | b <img src=x onerror="alert(1)"> `c` [d](http://e.org) $f$ **g**\n# h'
LINES = [{"id": str(n), "toxic": EVIL, "prediction": EVIL, "references": [EVIL]} for n in range(7)]
GOLDEN = PROJECT / "tests" / "golden" / "card.md"


@pytest.fixture
def own_run(mini_run: Path, tmp_path: Path) -> Run:
    shutil.copytree(mini_run, tmp_path / "run")
    return Run(tmp_path / "run")


def test_folder_holds_exactly_the_planned_files(
    own_run: Run, call_main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    call_main("publish.run", own_run.root)
    assert {
        str(path.relative_to(own_run.publish)) for path in own_run.publish.rglob("*") if path.is_file()
    } == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "LICENSE",
        "recipe.yaml",
        "results.json",
        "samples.md",
        "card.json",
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
            assert str(own_run.root.parent).encode() not in path.read_bytes(), (
                f"{path.name} holds a path of this machine"
            )


def test_making_it_again_replaces_it(own_run: Run) -> None:
    write_publish_folder(own_run)
    (own_run.publish / "stray.bin").write_bytes(b"x")
    first = {
        path: path.read_bytes()
        for path in own_run.publish.rglob("*")
        if path.is_file() and path.name != "stray.bin"
    }
    write_publish_folder(own_run)
    assert first == {path: path.read_bytes() for path in own_run.publish.rglob("*") if path.is_file()}


def test_card_metadata(own_run: Run) -> None:
    write_publish_folder(own_run)
    text = (own_run.publish / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["library_name"] == "peft"
    assert metadata["pipeline_tag"] == "text-generation"
    assert "base_model" not in metadata, "a local base has no Hub id"
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    results = read_json(own_run.eval / "results.json")["systems"]["adapter"]
    assert {metric["name"]: metric["value"] for metric in metrics}["BLEU"] == results["bleu"]["value"]
    assert {metric["name"]: metric["args"]["signature"] for metric in metrics}["chrF"] == results["chrf"][
        "signature"
    ]


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
def test_scores_of_something_else_are_refused(
    own_run: Run, keys: tuple[str, ...], value: str, message: str
) -> None:
    change(own_run.eval / "results.json", *keys, value=value)
    with pytest.raises(RunError, match=message + r"\. Evaluate again: accelerate launch eval/run\.py"):
        write_publish_folder(own_run)
    assert not own_run.publish.exists()


def test_adapter_changed_after_the_evaluation_is_refused(own_run: Run) -> None:
    content = bytearray(own_run.adapter_weights.read_bytes())
    content[-1] ^= 1
    own_run.adapter_weights.write_bytes(content)
    with pytest.raises(RunError, match="another adapter"):
        write_publish_folder(own_run)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lora_alpha", 64, r"was changed after the evaluation \(its SHA-256 differs\)"),
        ("revision", "0" * 40, r"was changed after the evaluation \(its SHA-256 differs\)"),
    ],
)
def test_config_changed_after_the_evaluation_is_refused(
    own_run: Run, key: str, value: Any, message: str
) -> None:
    change(own_run.adapter_config, key, value=value)
    with pytest.raises(
        Refusal, match=rf"adapter_config\.json: {message}\. Evaluate again: accelerate launch eval/run\.py"
    ):
        write_publish_folder(own_run)
    assert not own_run.publish.exists()


@pytest.mark.parametrize(("key", "value"), [("revision", "0" * 40), ("base_model_name_or_path", "me/other")])
def test_config_of_another_base_is_refused(own_run: Run, key: str, value: str) -> None:
    change(own_run.adapter_config, key, value=value)
    change(own_run.eval / "results.json", "adapter", "config_sha256", value=hash_file(own_run.adapter_config))
    with pytest.raises(
        Refusal, match=r"names another base model or revision than results\.json\. Evaluate again"
    ):
        write_publish_folder(own_run)


def test_results_without_the_hash_of_the_config_are_not_published(own_run: Run) -> None:
    results = read_json(own_run.eval / "results.json")
    del results["adapter"]["config_sha256"]
    write_json(own_run.eval / "results.json", results)
    with pytest.raises(
        RunError, match=r"did not hash adapter_config\.json\. Evaluate again: accelerate launch"
    ):
        write_publish_folder(own_run)


def test_scores_that_are_not_those_of_the_predictions_are_refused(own_run: Run) -> None:
    change(own_run.eval / "results.json", "systems", "adapter", "bleu", "value", value=94.0)
    with pytest.raises(RunError, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(own_run)


def test_results_of_another_version_are_refused(own_run: Run) -> None:
    change(own_run.eval / "results.json", "schema", value=1)
    with pytest.raises(
        RunError, match=r"made by another version of this project\. Evaluate again: accelerate launch"
    ):
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
def test_baselines_and_differences_are_held_against_the_predictions_too(
    own_run: Run, keys: tuple[str, ...]
) -> None:
    change(own_run.eval / "results.json", *keys, value=1.5)
    with pytest.raises(RunError, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(own_run)


def test_predictions_of_other_rows_are_refused(own_run: Run) -> None:
    lines = read_json_lines(own_run.eval / "predictions.jsonl")
    write_json_lines(own_run.eval / "predictions.jsonl", lines[1:] + lines[:1])
    with pytest.raises(RunError, match="not the rows of the run's test split"):
        write_publish_folder(own_run)


def test_a_prediction_changed_afterwards_is_refused(own_run: Run) -> None:
    lines = read_json_lines(own_run.eval / "predictions.jsonl")
    lines[3]["prediction"] = lines[3]["references"][0]
    write_json_lines(own_run.eval / "predictions.jsonl", lines)
    with pytest.raises(RunError, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(own_run)


@pytest.mark.slow
def test_run_without_evaluation_is_refused(own_run: Run) -> None:
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
    scores = {
        "bleu": bleu,
        "bleu_first": bleu,
        "chrf": bleu,
        "rouge1": rouge,
        "rouge2": rouge,
        "rougeL": rouge,
    }
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
            "targets": None,
        },
        results={
            "adapter": {"sha256": "a" * 64},
            "base": base,
            "data": {
                "source": "s-nlp/paradetox",
                "revision": "d" * 40,
                "split": "test",
                "rows": 591,
                "sha256": "5" * 64,
            },
            "generation": {"num_beams": 1, "max_new_tokens": 90, "batch_size": 64},
            "quantization": {
                "load_in_4bit": True,
                "load_in_8bit": False,
                "bnb_4bit_quant_type": "nf4",
                "use_bnb_nested_quant": True,
                "dtype": "bfloat16",
            },
            "tokens": {"pad_token": None, "eos_token": None},
            "slices": [
                {
                    "by": "words",
                    "slice": "below 10",
                    "rows": 201,
                    "systems": {"adapter": scores, "copy": copied},
                }
            ],
            "stress": [
                {
                    "group": group,
                    "rule": "says something, without the marked word",
                    "passed": 5,
                    "of": 6,
                    "cases": [{"text": EVIL, "output": EVIL, "passed": True}],
                }
                for group in ("disguised swearing", "clean sentences")
            ],
            "systems": {"adapter": scores, "base": copied, "copy": copied, "human": scores},
            "ceiling": {
                "rows": 402,
                "systems": {"adapter": scores, "human": scores},
                "differences": {
                    "human": {
                        "bleu": {"value": -4.5, "low": -6.25, "high": -3.0},
                        "chrf": {"value": 1.0, "low": -1.0, "high": 3.0},
                    }
                },
            },
            "toxicity_accuracy": 0.9375,
            "differences": {
                "base": {"bleu": {"value": 30.625, "low": 28.5, "high": 32.75}},
                "copy": {
                    "bleu": {"value": 30.625, "low": -0.25, "high": 61.5},
                    "chrf": {"value": 2.0, "low": 1.0, "high": 3.0},
                    "rougeL": {"value": 0.1, "low": -0.1, "high": 0.3},
                },
            },
            "intervals": {
                "method": "percentile bootstrap over sentences",
                "level": 95,
                "resamples": 1000,
                "seed": 0,
            },
        },
        samples=mask_samples(LINES, {"src"}),
        examples=[(clean_text(EVIL), EVIL)] * 2,
    )


def test_card_is_the_golden_one() -> None:
    """After a wanted change: PYTHONPATH=tests python tests/publish/test_publish.py writes the golden file anew; read its diff."""
    assert render_card(golden_facts()) == GOLDEN.read_text(encoding="utf-8")


HOSTILE = [
    EVIL,
    "</td></table><script>alert(1)</script>",
    "```\n# heading\n```",
    "---\ntitle: x\n---",
    "- item\n1. one\n> quote",
    "[x]: http://e.org 'title'",
    "![i](http://e.org/i.png) <a href=x>y</a> <!-- c -->",
    "&lt;b&gt; &#60;b&#62; <http://e.org> www.e.org me@e.org",
    "a\\| b \\\\| c || d",
    "$$x^2$$ ~~s~~ ==m== :smile: @user #1",
    "<details open><summary>x</summary>",
    "{{ title }} {% for x in y %}",
    "\u202e\u2028line\u2029para\x0bvt",
    BEGIN,
    END,
]


MARKUP = "\\`*_{}[]<>#|~$@^&"  # of Markdown, HTML, GitHub's additions and formulas
PIECES = [
    *MARKUP, *MARKUP, "$$", "\\(", "\\[", "~~", "```", "---", "- ", "1. ", "> ", "# ", "\n", "\n\n", " ", " ", "\t", "\u2028",
    "://", "www.", "&lt;", "&#36;", "<b>", "</td>", "<!--", "-->", "<script>", "](x)", "![", "'", '"', "word", "é", "{{", "%}",
]  # fmt: skip


def read_page(markdown: str) -> tuple[list[str], str]:
    """Return elements and text of a page made of `markdown`, with HTML let through, in order, as a browser would have them."""
    from html.parser import HTMLParser

    from markdown_it import MarkdownIt

    elements: list[str] = []
    texts: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            elements.append(
                " ".join([tag, *sorted(f"{k}={v}" for k, v in attrs if k in ("href", "src", "onerror"))])
            )

        def handle_endtag(self, tag: str) -> None:
            elements.append(f"/{tag}")

        def handle_comment(self, data: str) -> None:
            elements.append(f"comment {data}")

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Page().feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
    return elements, "".join(texts)


def count_markup(markdown: str) -> Counter[str]:
    """Count what some renderer may take for markup, code blocks and character references aside."""
    text = re.sub(r"&(#\d+|[a-z]+);", "", re.sub(r"```.*?\n```\n", "", markdown, flags=re.DOTALL))
    text = re.sub(r"(?<=[^\W_])_(?=[^\W_])", "", text)  # inside a word it is none
    return Counter(re.findall(rf"[{re.escape(MARKUP)}]|://|www\.", text))


def check_texts(texts: Iterator[str]) -> str:
    """Hold a card and samples.md with these texts against harmless ones: the same elements, and each text as it is."""
    facts, lines = facts_with(texts, golden_facts())
    plain, plain_lines = facts_with(itertools.repeat("harmless words"), golden_facts())
    card = render_card(facts)
    base = facts.results["base"]
    shown = [facts.name, base["name"], *base["weights"], facts.results["data"]["source"]]
    shown += [facts.recipe["publish"]["data_license"], facts.manifest["source"], *facts.manifest["sha256"]]
    samples = [text for line in lines for text in (line["toxic"], line["prediction"], *line["references"])]
    sources = facts.results["data"]["source"], plain.results["data"]["source"]
    for ours, theirs, seen in (
        (split_card(card)[1], split_card(render_card(plain))[1], shown + samples[:9]),
        (write_samples(lines, (), 7, sources[0]), write_samples(plain_lines, (), 7, sources[1]), samples),
    ):
        elements, text = read_page(ours)
        assert elements == read_page(theirs)[0]
        assert count_markup(ours) == count_markup(theirs)
        assert [line for line in seen if show(" ".join(line.split())) not in text] == []
    return card


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_text(text: str) -> None:
    card = check_texts(itertools.repeat(text))
    assert {
        line.count("|") for line in card.split("## Samples")[1].split("## How")[0].splitlines() if line
    } == {0, 4}
    assert [split_card(card)[1].count(marker) for marker in (BEGIN, END)] == [1, 1]
    metadata = split_card(card)[0]
    assert metadata["widget"][0]["output"]["text"] == text
    assert metadata["model-index"][0]["name"] == text


@pytest.mark.parametrize("seed", range(12))
def test_random_hostile_texts_stay_text(seed: int) -> None:
    """Some thirty texts a seed, made of what means something to a renderer."""
    chance = random.Random(seed)
    check_texts("".join(["x", *chance.choices(PIECES, k=chance.randint(1, 12))]) for _ in itertools.count())


def facts_with(texts: Iterator[str], facts: CardFacts) -> tuple[CardFacts, list[dict[str, Any]]]:
    """Return the facts with these texts as samples, cases, rewrites, names of files, data, base, licence and run.

    And the lines of the predictions, of which the samples are some.
    """
    stress = [
        group | {"cases": [{"text": next(texts), "output": next(texts), "passed": True}]}
        for group in facts.results["stress"]
    ]
    # Local, as is the data.
    base = facts.results["base"] | {"name": next(texts), "revision": None, "weights": {next(texts): "e" * 64}}
    data = facts.results["data"] | {"source": next(texts), "revision": None}
    tokens = {"pad_token": next(texts), "eos_token": next(texts)}
    lines = [
        line | {"toxic": next(texts), "prediction": next(texts), "references": [next(texts)]}
        for line in LINES
    ]
    publish = facts.recipe["publish"] | {"repo_id": None, "data_license": next(texts)}
    results = facts.results | {"stress": stress, "base": base, "data": data, "tokens": tokens}
    changed = dataclasses.replace(
        facts,
        name=next(texts),
        recipe=dict(facts.recipe) | {"publish": publish},
        results=results,
        samples=mask_samples(lines, ()),
        examples=choose_examples(results, ()),
        manifest=facts.manifest | {"source": next(texts), "sha256": {next(texts): "f" * 64}},
    )
    return changed, lines


def test_listed_words_are_masked_in_samples() -> None:
    text, lexicon = "what a Darn day , you crud!", {"darn", "crud"}
    lines = [line | {"toxic": text, "prediction": text, "references": [text]} for line in LINES]
    facts = dataclasses.replace(golden_facts(), samples=mask_samples(lines, lexicon))
    card = render_card(facts).split("## Samples")[1].split("## How")[0]
    for shown in (card, write_samples(lines, lexicon, 7, "a.tsv")):
        assert "what a D&#42;&#42;&#42; day , you c&#42;&#42;&#42;!" in shown
        assert "Darn" not in shown


def test_examples_that_are_shown_in_full_hold_no_listed_word_if_there_are_such() -> None:
    facts = golden_facts()

    def show(*cases: tuple[str, str]) -> tuple[list[str], str]:
        stress = [
            {
                "group": group,
                "rule": "",
                "passed": 0,
                "of": 1,
                "cases": [{"text": a, "output": b} for a, b in cases[number:]],
            }
            for number, group in enumerate(("disguised swearing", "shouting"))
        ]
        examples = choose_examples({"stress": stress}, {"crud"})
        card = render_card(dataclasses.replace(facts, examples=examples))
        return [item["output"]["text"] for item in split_card(card)[0]["widget"]], card

    outputs, card = show(("you Crud", "you"), ("oh cr*d", "crud"), ("oh cr*d", "oh dear"))
    assert outputs == ["oh dear", "oh dear"]
    assert 'text = "oh cr*d"' in card
    assert "answer to this text: oh dear" in card
    assert show(("oh cr*d", "oh dear"), ("oh crud", "oh"))[0] == ["oh dear"], (
        "none for the group that has none"
    )
    assert show(("oh crud", "oh"), ("you crud", "you"))[0] == ["oh", "you"], "none at all: as they are"


def test_trackio_gives_the_tags_of_the_metrics_tab() -> None:
    facts = golden_facts()

    def list_tags(**keys: object) -> list[str]:
        recipe = {**facts.recipe, **keys}
        return split_card(render_card(dataclasses.replace(facts, recipe=recipe)))[0]["tags"]

    assert not any("trackio" in tag for tag in list_tags())
    assert list_tags(report_to=["tensorboard", "trackio"])[-1] == "trackio"
    tags = list_tags(report_to="trackio", trackio_space_id="me/board")
    assert tags[-2:] == ["trackio", "trackio:https://huggingface.co/spaces/me/board"]


def test_another_number_of_processes_is_on_the_card() -> None:
    facts = golden_facts()
    segments = [{"from_step": 0, "processes": 2}, {"from_step": 900, "processes": 1}]
    training = facts.environment["training"] | {"elastic": segments}
    card = render_card(dataclasses.replace(facts, environment=facts.environment | {"training": training}))
    assert "\n- on 2 processes from step 0 on, 1 process from step 900 on, with the same batch" in card


def test_emissions_that_were_measured_are_on_the_card() -> None:
    facts = golden_facts()
    assert "CO2" not in render_card(facts)
    emissions = {"kg_co2eq": 0.0123456, "country": "FRA", "estimated_by": "codecarbon 3.3.2"}
    training = facts.environment["training"] | {"emissions": emissions}
    card = render_card(dataclasses.replace(facts, environment=facts.environment | {"training": training}))
    assert split_card(card)[0]["co2_eq_emissions"] == {
        "emissions": 12.3456,
        "source": "codecarbon 3.3.2",
        "training_type": "fine-tuning",
        "geographical_location": "FRA",
        "hardware_used": name_hardware(facts.environment["hardware"]),
    }
    assert (
        "- 12.3 g of CO2 equivalents, as codecarbon 3.3.2 estimates them for this machine on the power grid of FRA\n"
        in card
    )
    assert [format_grams(kilograms) for kilograms in (0.00009, 0.9994, 1.26, 1234)] == [
        "0.09 g",
        "999 g",
        "1.3 kg",
        "1,234.0 kg",
    ]


def test_people_are_not_compared_on_other_rows() -> None:
    rows = render_card(golden_facts()).split("## Results")[1].splitlines()
    assert any(row.startswith("| this adapter | 61.2 [59.5, 63.0] | 61.2 |") for row in rows)
    assert any(row.startswith("| people, on 402 sentences | 61.2 [") for row in rows)
    assert any(row.startswith("| this adapter, on these 402 | 61.2 [") for row in rows)


def test_model_index_has_every_metric_of_the_results(mini_run: Path) -> None:
    facts, _ = read_facts(Run(mini_run))
    sta = {"value": 0.5, "low": 0.25, "high": 0.75, "signature": "pan-2024|STA"}
    part = {
        "protocol": "pan-2024",
        "source": "",
        "note": "",
        "models": {"m": "c"},
        "systems": {"adapter": {"STA": sta}},
    }
    part["differences"] = {}
    facts = dataclasses.replace(facts, results=facts.results | {"protocols": [part]})
    metrics = split_card(render_card(facts))[0]["model-index"][0]["results"][0]["metrics"]
    assert metrics[-1] == {
        "type": "sta",
        "name": "STA (pan-2024)",
        "value": 0.5,
        "args": {"signature": "pan-2024|STA"},
    }
    scores = [*facts.results["systems"]["adapter"].values(), sta]
    assert [(m["value"], m["args"]["signature"]) for m in metrics] == [
        (s["value"], s["signature"]) for s in scores
    ]
    assert len({metric["name"] for metric in metrics}) == len(metrics)
    assert {metric["type"] for metric in metrics} >= {"bleu", "chrf", "rouge", "toxicity", "listed", "joint"}


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        (
            {"base_model": "/home/me/bloom"},
            "base_model: found '/home/me/bloom', expected the id of a Hub repository",
        ),
        ({"base_model": "recipes/bloom-tiny/x"}, "base_model"),
        ({"datasets": [None]}, "datasets: found None"),
        ({"datasets": ["../data.tsv"]}, "datasets: found '../data.tsv'"),
        ({"license": "Apache 2.0"}, "license: found 'Apache 2.0'"),
        ({"widget": "x"}, "widget: expected a list"),
        ({"widget": [{"prompt": "x"}]}, "widget: expected a list"),
        (
            {"model-index": [{"results": [{"dataset": {"config": 3}, "metrics": []}]}]},
            "model-index: expected text",
        ),
        (
            {"model-index": [{"results": [{"dataset": {}, "metrics": [{"value": "0.94"}]}]}]},
            "model-index: expected a number",
        ),
    ],
)
def test_metadata_that_the_hub_would_refuse(metadata: dict[str, Any], fault: str) -> None:
    (found,) = find_metadata_faults(metadata)
    assert found.startswith(fault)


def test_metadata_of_the_golden_card_is_accepted() -> None:
    assert find_metadata_faults(split_card(render_card(golden_facts()))[0]) == []
    facts = golden_facts()
    recipe = dict(facts.recipe) | {"publish": facts.recipe["publish"] | {"license": "My Licence"}}
    with pytest.raises(Refusal, match=r"Name it as publish\.license"):
        render_card(dataclasses.replace(facts, recipe=recipe))


def test_licence_file_passes_the_restrictions_on() -> None:
    text = write_license("bigscience-bloom-rail-1.0", merged=False)
    assert text is not None
    assert text.startswith("This adapter is licensed under bigscience-bloom-rail-1.0.\n")
    assert "must pass them on" in text
    assert "Its base's weights are not here." in text
    assert "https://huggingface.co/spaces/bigscience/license" in text
    assert text.endswith(BLOOM_LICENSE.read_text(encoding="utf-8"))
    assert "The folder merged/ holds its base's weights" in (write_license("openrail++", merged=True) or "")
    for license, expected in (
        ("apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
        ("other", "under other."),
        (None, None),
    ):
        text = write_license(license, merged=False)
        assert text is None if expected is None else text is not None and expected in text
        assert "must pass them on" not in (text or "")


@pytest.mark.parametrize(("key", "expected"), [("load_in_8bit", "load_in_8bit=True"), (None, None)])
def test_code_of_a_card_quantises_as_the_training_did(key: str | None, expected: str | None) -> None:
    facts = golden_facts()
    quantization = facts.results["quantization"] | {
        "load_in_4bit": False,
        "load_in_8bit": key == "load_in_8bit",
    }
    card = render_card(dataclasses.replace(facts, results=facts.results | {"quantization": quantization}))
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "load_in_4bit" not in code
    assert ("BitsAndBytesConfig(load_in_8bit=True)" in code) == bool(expected)
    assert ("import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig" in code) == bool(expected)
    assert ("quantization_config=quantization" in code) == bool(expected)


@pytest.mark.parametrize("value", ["```\n# x", "<!-- x -->", "it's", "\u2028\x1b</s>", None, True, 3])
def test_a_value_in_the_code_of_a_card_stays_one(value: Any) -> None:
    source = format_python(value)
    assert ast.literal_eval(source) == value
    assert source.isprintable()
    assert not set("<>`") & set(source)


WORDS = 700  # of a card, outside of code and folded blocks


@pytest.mark.parametrize("revision", ["b" * 40, None])
def test_card_is_read_in_minutes(revision: str | None) -> None:
    """A card's order, what is folded, and how much is not: with samples of 20 words, and all six systems."""
    facts = golden_facts()
    systems = facts.results["systems"] | dict.fromkeys(
        ("few_shot", "delete"), facts.results["systems"]["copy"]
    )
    base = facts.results["base"] | {"revision": revision, "weights": {"model.safetensors": "e" * 64}}
    samples = [["word " * 20] * 3] * 3
    facts = dataclasses.replace(
        facts, results=facts.results | {"systems": systems, "base": base}, samples=samples
    )
    text = split_card(render_card(facts))[1].partition("-->")[2]
    text = re.sub(r"<!--.*?-->", "", text)
    unfolded = re.sub(
        r"<details>.*?</details>", "", re.sub(r"```.*?\n```\n", "", text, flags=re.DOTALL), flags=re.DOTALL
    )
    assert len(re.findall(r"\S*\w\S*", unfolded)) <= WORDS
    headings = re.findall(r"^#+ (.*)$", unfolded, re.M)
    assert headings[1:] == ["Samples", "How to use it", "Results", "Biases, risks and limits", "Licence"]
    assert (
        text.index("**BLEU") < text.index("## Samples") < text.index("```python") < text.index("| system |")
    )
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 25
    assert (
        text.count("<details>\n<summary>")
        == text.count("</summary>\n\n")
        == text.count("\n\n</details>")
        >= 7
    )
    for told in (
        "nrefs:var",
        "percentile bootstrap",
        "words: below 10",
        "disguised swearing",
        "lora_r",
        "@article",
    ):
        assert told not in unfolded.replace("`", "")
        assert told in text
    assert "&#95;" not in text
    assert "query_key_value" in text


def test_card_of_a_local_base_does_not_load_by_its_name() -> None:
    facts = golden_facts()
    base = {"name": "recipes/bloom-tiny", "revision": None, "weights": {"model.safetensors": "e" * 64}}
    card = render_card(dataclasses.replace(facts, results=facts.results | {"base": base}))
    code = ast.parse(card.split("```python\n")[1].split("```")[0])
    texts = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
    assert "PATH/TO/THE/BASE" in texts
    assert "recipes/bloom-tiny" not in texts
    assert f"The SHA-256 of its weights: model.safetensors `{'e' * 64}`.\n" in card
    assert "the local base model recipes/bloom-tiny (not on the Hub) that" in card
    assert "https://huggingface.co/recipes" not in card


def test_card_is_rendered_again_from_its_files() -> None:
    facts = golden_facts()
    record = json.loads(json.dumps(describe_record(facts)))
    assert render_card(restore_facts(record, facts.results, facts.recipe)) == render_card(facts)


def test_licence_of_bloom_is_whole() -> None:
    text = BLOOM_LICENSE.read_text(encoding="utf-8")
    terms, _, attachment = text.partition("END OF TERMS AND CONDITIONS")
    assert re.findall(r"Section +(\w+):", terms) == ["I", "II", "III", "IV"]
    for title in (
        "1. Definitions", "2. Grant of Copyright", "3. Grant of Patent", "4. Distribution", "5. Use-based", "6.  The Output",
        "7. Updates", "8. Trademarks", "9. Disclaimer", "10. Limitation", "11. Accepting", "12. If any provision",
    ):  # fmt: skip
        assert f"\n{title}" in terms
    assert re.findall(r"^(\d+)\. ", attachment.partition("Use Restrictions")[2], re.M) == [
        str(n) for n in range(1, 14)
    ]
    assert attachment.endswith("[1] https://arxiv.org/pdf/2011.03116.pdf\n")
    assert hash_file(BLOOM_LICENSE) == "424063d0697a82bbb8c1bed3584b27cd807b1491963645a6c7cc8da39744cb6b"


def test_a_fact_that_is_missing_is_an_error_not_a_blank() -> None:
    import jinja2

    facts = golden_facts()
    results = {key: value for key, value in facts.results.items() if key != "adapter"}
    with pytest.raises(jinja2.UndefinedError):
        render_card(dataclasses.replace(facts, results=results))


def test_facts_of_a_run_are_complete(mini_run: Path) -> None:
    facts, _ = read_facts(Run(mini_run))
    assert json.dumps(facts.manifest)
    assert render_card(facts).startswith("---\n")


def test_merged_model_is_checked_and_loads_alone(own_run: Run, call_main: Main) -> None:
    from transformers import AutoModelForCausalLM

    call_main("publish.run", own_run.root, "--merged")
    folder = own_run.publish / "merged"
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert str(own_run.root.parent) not in (folder / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert str(model.dtype) == "torch.bfloat16"
    assert not hasattr(model.config, "quantization_config")
    card = (own_run.publish / "README.md").read_text()
    assert 'allow_patterns="merged/*"' in card
    rows = len(read_json_lines(own_run.eval / "predictions.jsonl"))
    assert f"of its {rows} rewrites are those of the adapter" in card


def test_a_merge_that_loses_too_much_is_refused(own_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from publish import merge

    monkeypatch.setattr(merge, "LARGEST_LOSS", -101.0)  # as if the merged model had lost all
    with pytest.raises(Refusal, match=r"merged into 16-bit weights, .* Publish the adapter without --merged"):
        write_publish_folder(own_run, merged=True)
    assert not own_run.publish.exists()


def test_the_example_card_is_what_its_results_give() -> None:
    folder = PROJECT / "recipes" / "tiny-card"
    card = (folder / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((?!https?:)([^)#]+)\)", re.sub(r"```.*?```", "", card, flags=re.DOTALL)))
    assert {"plots/scores.png", "plots/loss.png", "results.json", "samples.md"} <= linked
    assert all((folder / name).is_file() for name in linked)
    failed = [check for check in check_card(folder) if not check.holds]
    assert failed == [], f"make demo, then copy runs/tiny/publish to {folder}, without the weights"


if __name__ == "__main__":
    GOLDEN.write_text(render_card(golden_facts()), encoding="utf-8")
