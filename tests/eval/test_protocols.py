"""The field's protocols with miniature models from the Hub's double: formulas, labels whatever their order, commits."""

import copy
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_python
from hub_double import HubDouble
from mini_xcomet import make_xcomet

from eval import protocols
from eval.protocols import LABSE, PARTS, PROTOCOLS, XCOMET, Classifier
from eval.recheck import read_evaluation
from eval.results import write_value
from eval.tables import tabulate_protocol
from publish.folder import write_publish_folder
from sft import schema
from sft.command import InputError, Refusal
from sft.data import Example
from sft.run_dir import Run
from sft.storage import read_json, read_json_lines, write_json, write_json_lines

GOOD, BAD = (
    ["a good day", "what a good plan", "the plan is good", "a day"],
    ["a bad day", "what a bad plan", "the plan is bad", "bad"],
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bad", "day", "good", "is", "plan", "the", "what"]


def make_bert(folder: Path) -> Any:
    """Return the config of a tiny BERT, with its tokenizer saved in `folder`."""
    import torch
    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertConfig(vocab_size=len(WORDS), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **shape)


def make_classifier(folder: Path, labels: tuple[str, str]) -> Path:
    """Train a classifier that tells GOOD (the label that is no "toxic" or "unacceptable") from BAD."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    config = make_bert(folder)
    config.id2label, config.label2id = (
        dict(enumerate(labels)),
        {label: number for number, label in enumerate(labels)},
    )
    model = BertForSequenceClassification(config)
    inputs = AutoTokenizer.from_pretrained(folder)([*GOOD, *BAD], padding=True, return_tensors="pt")
    bad = next(number for number, label in enumerate(labels) if label in ("toxic", "unacceptable", "LABEL_1"))
    targets = torch.tensor([1 - bad] * len(GOOD) + [bad] * len(BAD))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(60):
        model(**inputs, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def make_encoder(folder: Path) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertModel

    bert = folder.parent / f"{folder.name}-bert"
    BertModel(make_bert(bert)).save_pretrained(bert)
    transformer = Transformer(str(bert))
    SentenceTransformer(modules=[transformer, Pooling(16)]).save(str(folder))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models of all protocols; the two toxicity classifiers of PAN with their labels in opposite orders."""
    root = tmp_path_factory.mktemp("protocols")
    make_xcomet(root / "f", root / "g")
    return {
        "s-nlp/roberta_toxicity_classifier": make_classifier(root / "a", ("neutral", "toxic")),
        "textdetox/xlmr-large-toxicity-classifier": make_classifier(root / "b", ("toxic", "neutral")),
        "textdetox/xlmr-large-toxicity-classifier-v2": make_classifier(root / "c", ("LABEL_0", "LABEL_1")),
        "cardiffnlp/twitter-xlm-roberta-large-2022": root / "c",
        "cointegrated/roberta-large-cola-krishna2020": make_classifier(
            root / "d", ("acceptable", "unacceptable")
        ),
        LABSE: make_encoder(root / "e"),
        XCOMET: root / "f",
        "microsoft/mdeberta-v3-base": root / "g",
    }


def load(folders: dict[str, Path], name: str) -> dict[str, Any]:
    """Return a protocol's models, from folders."""
    protocol = PROTOCOLS[name]
    paths = {role: str(folders[model]) for role, model in protocol.models.items()}
    commits = dict.fromkeys(paths.values())
    local = protocols.Protocol(paths, "", "", {}, protocol.score)
    return {role: protocols.load_model(role, local, commits) for role in paths if role not in PARTS}  # type: ignore[arg-type]


def test_names_are_those_of_the_recipe() -> None:
    assert tuple(PROTOCOLS) == schema.PROTOCOLS


@pytest.mark.parametrize(
    "labels",
    [
        ("neutral", "toxic"),
        ("toxic", "neutral"),
        ("LABEL_0", "LABEL_1"),
        ("toxic", "not_toxic"),
        ("toxic", "Non-Toxic"),
    ],
)
def test_labels_are_found_in_either_order(labels: tuple[str, str], tmp_path: Path) -> None:
    folder = str(make_classifier(tmp_path / "model", labels))
    classifier = Classifier(folder, {folder: None}, protocols.NEUTRAL, 0, folder)  # type: ignore[dict-item]
    good, bad = classifier.estimate(GOOD), classifier.estimate(BAD)
    assert good.min() > 0.8
    assert bad.max() < 0.2
    assert classifier.estimate(GOOD * 20).shape == (80,)


@pytest.mark.parametrize("labels", [("toxic", "fine"), ("clean", "neutral"), ("LABEL_1", "LABEL_2")])
def test_labels_that_are_not_known_are_refused(labels: tuple[str, str], tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    folder = tmp_path / "model"
    config = make_bert(folder)
    config.id2label, config.label2id = (
        dict(enumerate(labels)),
        {label: number for number, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    message = f"{folder}: found the labels {', '.join(labels)}. Expected one of neutral, .*, or LABEL_0. Pin a commit"
    with pytest.raises(InputError, match=message):
        Classifier(str(folder), {str(folder): None}, protocols.NEUTRAL, 0, str(folder))  # type: ignore[dict-item]


SOURCES = ["a bad day", "what a bad plan", "the plan is bad"]
OUTPUTS = ["a good day", "what a bad plan", "the plan"]
REFERENCES = ["a day", "what a good plan", "the plan is good"]


def test_paradetox_2022_counts_classes(folders: dict[str, Path]) -> None:
    scores = PROTOCOLS["paradetox-2022"].score(load(folders, "paradetox-2022"), SOURCES, OUTPUTS, REFERENCES)
    assert scores["STA"].tolist()[:2] == [1, 0]
    assert scores["FL"].tolist()[:2] == [1, 0]
    assert scores["SIM"][1] == pytest.approx(1, abs=1e-5)
    assert scores["SIM"][0] < 0.999


def test_paradetox_2022_detokenises_for_the_classifier_of_acceptability() -> None:
    models = {
        "STA": Fixed({"oh , no ( really ) !": 1}),
        "SIM": Fixed({"x": 1}),
        "FL": Fixed({"oh, no (really)!": 0.7}),
    }
    assert PROTOCOLS["paradetox-2022"].score(models, ["x"], ["oh , no ( really ) !"], [""])[
        "FL"
    ].tolist() == [1]


def test_pan_2024_by_its_formula(folders: dict[str, Path]) -> None:
    from sacrebleu.metrics import CHRF

    models = load(folders, "pan-2024")
    scores = PROTOCOLS["pan-2024"].score(models, SOURCES, OUTPUTS, REFERENCES)
    assert scores["STA"][0] > 0.8 > 0.2 > scores["STA"][1]
    assert scores["FL"].tolist() == [
        CHRF().sentence_score(o, [r]).score / 100 for o, r in zip(OUTPUTS, REFERENCES, strict=True)
    ]
    assert scores["SIM"][1] == pytest.approx(1, abs=1e-5)


def test_pan_2025_rewards_what_is_as_neutral_as_the_reference(folders: dict[str, Path]) -> None:
    models = load(folders, "pan-2025")
    scores = PROTOCOLS["pan-2025"].score(models, SOURCES, OUTPUTS, REFERENCES)
    p = models["STA"].estimate
    for row, (source, output, reference) in enumerate(zip(SOURCES, OUTPUTS, REFERENCES, strict=True)):
        neutral, before, human = (p([text])[0] for text in (output, source, reference))
        expected = max((neutral + float(before <= neutral)) / 2, float(human <= neutral))
        assert scores["STA"][row] == pytest.approx(expected, abs=1e-5)
    copied = PROTOCOLS["pan-2025"].score(models, SOURCES, REFERENCES, REFERENCES)
    np.testing.assert_allclose(copied["STA"], 1)
    assert (copied["SIM"] <= 1 + 1e-6).all()
    assert (copied["SIM"] >= 0.6 - 0.4).all()


def test_pan_2025_scores_fluency_against_source_and_reference(folders: dict[str, Path]) -> None:
    models = load(folders, "pan-2025")
    scores = PROTOCOLS["pan-2025"].score(models, SOURCES, OUTPUTS, REFERENCES)
    np.testing.assert_array_equal(scores["FL"], models["FL"].estimate(SOURCES, OUTPUTS, REFERENCES))
    swapped = PROTOCOLS["pan-2025"].score(models, REFERENCES, OUTPUTS, SOURCES)
    assert (np.abs(swapped["FL"] - scores["FL"]) > 0.01).all()


class Fixed:
    """A model whose scores are given: of a classifier and of an encoder by text, of XCOMET-lite by row."""

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def estimate(self, texts: list[str], *others: list[str]) -> np.ndarray:
        return np.array(self.scores if others else [self.scores[text] for text in texts])

    def compare(self, one: list[str], _: list[str]) -> np.ndarray:
        return np.array([self.scores[text] for text in one])


def test_j_is_the_mean_of_the_sentences_products(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {
        "STA": Fixed(
            {"rude 1": 0.1, "mild 1": 0.8, "kind 1": 0.9, "rude 2": 0.1, "mild 2": 0.6, "kind 2": 0.5}
        ),
        "SIM": Fixed({"rude 1": 0.5, "kind 1": 1.0, "rude 2": 0.25, "kind 2": 0.5}),
        "FL": Fixed([0.5, -0.25]),
    }
    monkeypatch.setattr(protocols, "load_model", lambda role, *_: models[role])
    examples = [Example(f"rude {number}", (f"kind {number}", "unused")) for number in (1, 2)]
    commits = dict.fromkeys(PROTOCOLS["pan-2025"].models.values(), "0" * 40)
    rows = protocols.score_protocols(
        ["pan-2025"], commits, examples, {"adapter": ["mild 1", "mild 2"]}, human=False
    )
    assert rows[1]["pan-2025"]["systems"]["adapter"] == {"STA": 1, "SIM": 0.4, "FL": -0.25}
    (part,) = protocols.describe_protocols(rows, commits)
    scores = {measure: score.value for measure, score in part.systems["adapter"].items()}
    # STA: (0.8 + 1) / 2, below the reference's 0.9; and 1, as 0.6 is above 0.5. SIM: 0.4 * 0.5 + 0.6 * 1; 0.4 * 0.25 + 0.6 * 0.5.
    expected = {
        "STA": (0.9 + 1) / 2,
        "SIM": (0.8 + 0.4) / 2,
        "FL": (0.5 - 0.25) / 2,
        "J": (0.9 * 0.8 * 0.5 - 1 * 0.4 * 0.25) / 2,
    }
    assert scores == pytest.approx(expected)


def test_people_are_scored_against_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, paradetox-2022 on two sentences with two rewrites and three, and one with a single one, which does not count."""
    neutral = {"a1": 1, "a2": 0, "b1": 1, "b2": 1, "b3": 0, "c1": 1, "out a": 1, "out b": 1, "out c": 0}
    models = {
        "STA": Fixed(neutral),
        "SIM": Fixed({"a": 0.8, "b": 0.6, "c": 0.1}),  # by the source
        "FL": Fixed(neutral | {"b2": 0, "out a": 0}),
    }
    monkeypatch.setattr(protocols, "load_model", lambda role, *_: models[role])
    examples = [Example("a", ("a1", "a2")), Example("c", ("c1",)), Example("b", ("b1", "b2", "b3"))]
    commits = dict.fromkeys(PROTOCOLS["paradetox-2022"].models.values(), "0" * 40)
    outputs = {"adapter": ["out a", "out c", "out b"], "copy": ["a1", "c1", "b1"]}
    rows = protocols.score_protocols(["paradetox-2022"], commits, examples, outputs)
    assert "ceiling" not in rows[1]["paradetox-2022"]
    (part,) = protocols.describe_protocols(rows, commits)
    assert part.ceiling is not None
    people, beside = part.ceiling.systems["human"], part.ceiling.systems["adapter"]
    # J of a: (1 * 0.8 * 1 + 0) / 2; of b: (1 * 0.6 * 1 + 1 * 0.6 * 0 + 0) / 3.
    expected = {"STA": (1 / 2 + 2 / 3) / 2, "SIM": 0.7, "FL": (1 / 2 + 1 / 3) / 2, "J": (0.4 + 0.2) / 2}
    assert {measure: score.value for measure, score in people.items()} == pytest.approx(expected, abs=1e-6)
    assert {measure: score.value for measure, score in beside.items()} == pytest.approx(
        {"STA": 1, "SIM": 0.7, "FL": 0.5, "J": 0.3}
    )
    assert part.ceiling.rows == 2
    assert part.systems["human"] == people
    assert people["J"].signature.endswith("|each rewrite against the others|aggregate:mean")
    assert part.systems["adapter"]["J"].value == pytest.approx(0.2)  # of all three
    labels = [row[0] for row in tabulate_protocol(part)]
    assert labels == [
        "paradetox-2022",
        "this adapter",
        "input copied",
        "people, on 2 sentences",
        "this adapter, on these 2",
    ]


def test_signatures_name_models_and_formulas() -> None:
    commits = dict.fromkeys(
        (model for protocol in PROTOCOLS.values() for model in protocol.models.values()), "0123456789abcdef"
    )
    signatures = {name: protocols.sign_measures(name, commits) for name in PROTOCOLS}
    chrf = f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{importlib.metadata.version('sacrebleu')}"
    assert signatures["pan-2024"]["FL"] == f"pan-2024|FL|chrF/100|refs:first|{chrf}"
    assert signatures["paradetox-2022"]["FL"] == (
        "paradetox-2022|FL|acceptable>0.5|detokenised|model:cointegrated/roberta-large-cola-krishna2020@0123456789ab"
    )
    for name, protocol in PROTOCOLS.items():
        assert all(
            f"model:{model}@0123456789ab" in signatures[name]["J"] for model in protocol.models.values()
        )
    assert chrf in signatures["pan-2024"]["J"]


@pytest.mark.slow
def test_scores_that_are_not_those_of_the_sentences_are_refused(mini_run: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(mini_run, run.root)
    lines, results = read_json_lines(run.eval / "predictions.jsonl"), read_json(run.eval / "results.json")
    commits = dict.fromkeys(PROTOCOLS["pan-2024"].models.values(), "0" * 40)
    for number, line in enumerate(lines):
        scores = {"STA": 0.5, "SIM": 0.9, "FL": number / len(lines)}
        line["protocols"] = {"pan-2024": {"systems": {"adapter": scores, "copy": scores | {"STA": 0.1}}}}
        if number % 2:
            people = scores | {"J": 0.4}
            line["protocols"]["pan-2024"]["ceiling"] = {"adapter": people, "human": people | {"SIM": 0.7}}
    results["protocols"] = write_value(
        protocols.describe_protocols([line["protocols"] for line in lines], commits)
    )
    write_json_lines(run.eval / "predictions.jsonl", lines)
    write_json(run.eval / "results.json", results)
    read_evaluation(run)
    for system, measure, part, value in (
        ("adapter", "J", "value", 0.9),
        ("copy", "STA", "low", 0.9),
        ("adapter", "J", "signature", "another"),
    ):
        changed = copy.deepcopy(results)
        changed["protocols"][0]["systems"][system][measure][part] = value
        write_json(run.eval / "results.json", changed)
        with pytest.raises(Refusal, match=r"its scores are not those of predictions\.jsonl"):
            write_publish_folder(run)
    changed = copy.deepcopy(results)
    changed["protocols"][0]["ceiling"]["systems"]["human"]["SIM"]["value"] = 0.9
    write_json(run.eval / "results.json", changed)
    with pytest.raises(Refusal, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(run)
    write_json(run.eval / "results.json", results | {"protocols": []})
    with pytest.raises(Refusal, match=r"its scores are not those of predictions\.jsonl"):
        write_publish_folder(run)


@pytest.fixture
def asked(mini_run: Path, tmp_path: Path) -> Path:
    """A run whose recipe asks for all protocols."""
    root = tmp_path / "run"
    shutil.copytree(mini_run, root)
    shutil.rmtree(root / "eval")
    text = (root / "recipe.yaml").read_text()
    assert "  protocols: []\n" in text
    (root / "recipe.yaml").write_text(
        text.replace("  protocols: []\n", f"  protocols: [{', '.join(PROTOCOLS)}]\n")
    )
    return root


@pytest.mark.slow
def test_all_protocols_from_the_hub(
    hub: HubDouble, folders: dict[str, Path], asked: Path, tmp_path: Path
) -> None:
    import jsonschema

    commits = {name: hub.add_repo("model", name, folder) for name, folder in folders.items()}
    env = hub.environment(tmp_path / "cache")
    done = run_python("eval/run.py", asked, env=env)
    assert done.returncode == 0, done.stderr
    results = json.loads((asked / "eval" / "results.json").read_text())
    jsonschema.validate(results, json.loads(Path("eval/results.schema.json").read_text()))
    assert all(measure in done.stdout for measure in ("STA", "SIM", "FL", "J"))
    parts = {part["protocol"]: part for part in results["protocols"]}
    assert list(parts) == list(PROTOCOLS)
    for name, part in parts.items():
        assert part["models"] == {model: commits[model] for model in PROTOCOLS[name].models.values()}
        assert {"adapter", "copy", "delete"} <= part["systems"].keys()
        assert part["systems"]["copy"]["SIM"]["value"] <= 1 + 1e-6
        assert (
            part["systems"]["adapter"].keys()
            == part["ceiling"]["systems"]["human"].keys()
            == {"STA", "SIM", "FL", "J"}
        )
        signatures = {score["signature"] for score in part["systems"]["adapter"].values()}
        assert all(signature.startswith(f"{name}|") for signature in signatures)
    lines = read_json_lines(asked / "eval" / "predictions.jsonl")
    assert all(
        line["protocols"]["pan-2025"]["systems"]["adapter"].keys() == {"STA", "SIM", "FL"} for line in lines
    )
    done = run_python("-m", "publish.run", asked, env=env | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    card = (asked / "publish" / "README.md").read_text()
    assert all(f"Protocol {name}" in card for name in PROTOCOLS)


@pytest.mark.slow
def test_a_model_that_is_not_there_ends_it_before_anything_is_generated(
    hub: HubDouble, asked: Path, tmp_path: Path
) -> None:
    done = run_python("eval/run.py", asked, env=hub.environment(tmp_path / "cache"))
    assert done.returncode == 2
    assert "s-nlp/roberta_toxicity_classifier is neither a local model nor one on the Hub" in done.stderr
    assert not (asked / "eval").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--eval.protocols", "pan-2023"],
            "--eval.protocols: found 'pan-2023', expected some of paradetox-2022, pan-2024, pan-2025.",
        ),
        (
            ["--eval.pins", "a/b"],
            "--eval.pins: found 'a/b', expected model@commit, such as owner/name@0123abc.",
        ),
    ],
)
def test_broken_recipes(words: list[str], message: str) -> None:
    done = run_python("-m", "sft.check", "recipes/tiny.yaml", *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_pin_that_no_protocol_uses() -> None:
    with pytest.raises(InputError, match=r"eval\.pins: no protocol asked for uses a/b"):
        protocols.resolve_models(["pan-2024"], ["a/b@123"])
