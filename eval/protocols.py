"""The field's own measures of detoxification: STA, SIM, FL and J of each protocol, with its own models.

Models come from the Hub when a recipe asks for a protocol (`eval.protocols`); their commits are in
results.json, and `eval.pins` fixes them. Scores of two protocols can't be compared: other classifiers, other
formulas.
"""

import contextlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import Score, average_neighbours, compute_chrf, score_mean
from eval.results import ProtocolScores
from eval.systems import BESIDE, describe_beside_people, take_apart
from sft.command import InputError
from sft.data import Example
from sft.hub import explain_errors, first_line

# Labels, with "-" and "_" as spaces.
NEUTRAL = ("neutral", "non toxic", "not toxic", "nontoxic", "clean")
ACCEPTABLE = ("acceptable", "correct", "grammatical")
LABSE = "sentence-transformers/LaBSE"
XCOMET = "myyycroft/XCOMET-lite"
PARTS = {"tokenizer": "STA", "encoder": "FL"}  # roles of models that another one needs
BATCH, LONGEST = 32, 512  # texts; tokens, as the protocols have them

MEASURES = ("STA", "SIM", "FL")  # of which J is the product

Texts = Sequence[str]
# One row's scores by protocol, then "systems" or "ceiling" (people, and the first system beside them), system
# and measure.
Sentences = dict[str, dict[str, dict[str, dict[str, float]]]]


@dataclass(frozen=True)
class Protocol:
    """One protocol: its models by role, where it is described, what it departs in, and its measures.

    `measures` says of each but J how it is computed: what its signature says, beside the models.
    `score(models, sources, outputs, references)` returns the sentence scores by measure, each of shape
    (rows,), in 0 to 1 (SIM, a cosine, in -1 to 1; XCOMET-lite, a regression, of at most 1); their product is
    J. `references` are the first of each sentence.
    """

    models: Mapping[str, str]
    source: str
    note: str
    measures: Mapping[str, str]
    score: Callable[[Mapping[str, Any], Texts, Texts, Texts], dict[str, np.ndarray]]


class Classifier:
    """A sequence classifier and the label of success: one of these names, or the protocol's LABEL_`index`."""

    def __init__(
        self, name: str, commits: Mapping[str, str], labels: Sequence[str], index: int, tokenizer: str
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(
            tokenizer, revision=commits[tokenizer], trust_remote_code=False
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForSequenceClassification.from_pretrained(
            name, revision=commits[name], trust_remote_code=False
        )
        self.model = model.to(device).eval()
        found = {
            re.sub("[-_ ]+", " ", str(label).lower()): number
            for number, label in self.model.config.id2label.items()
        }
        named = [number for label, number in found.items() if label in (*labels, f"label {index}")]
        if len(named) != 1:
            raise InputError(
                f"{name}: found the labels {', '.join(map(str, self.model.config.id2label.values()))}. "
                "Expected one of "
                f"{', '.join(labels)}, or LABEL_{index}. Pin a commit of it that has one in eval.pins."
            )
        self.index = named[0]

    def estimate(self, texts: Texts) -> np.ndarray:
        """Return the probability of success for each text, shape (rows,)."""
        import torch

        parts = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            inputs = self.tokenizer(
                batch, return_tensors="pt", padding=True, truncation=True, max_length=LONGEST
            )
            with torch.inference_mode():
                logits = self.model(**inputs.to(self.model.device)).logits.float()
            parts.append(logits.softmax(-1)[:, self.index].cpu().numpy())
        return np.concatenate(parts)


class Encoder:
    """A sentence encoder."""

    def __init__(self, name: str, revision: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(name, revision=revision, trust_remote_code=False)

    def compare(self, one: Texts, other: Texts) -> np.ndarray:
        """Return the cosine of each pair's embeddings, shape (rows,)."""
        first, second = (
            self.model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)
            for texts in (one, other)
        )
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return np.asarray((first * second).sum(1) / np.maximum(norms, 1e-12))


def detokenise(text: str) -> str:
    """Return `text` as ParaDetox's script gives it to the acceptability classifier, without inner spaces.

    github.com/s-nlp/paradetox, evaluation_detox/metric_tools/fluency.py.
    """
    return re.sub(r" ([.,!?)])", r"\1", text).replace("( ", "(")


def score_paradetox_2022(
    models: Mapping[str, Any], sources: Texts, outputs: Texts, _: Texts
) -> dict[str, np.ndarray]:
    """Shares of outputs classified as neutral and as acceptable, and the similarity to the source."""
    return {
        "STA": (models["STA"].estimate(outputs) > 0.5).astype(float),
        "SIM": models["SIM"].compare(sources, outputs),
        "FL": (models["FL"].estimate([detokenise(text) for text in outputs]) > 0.5).astype(float),
    }


def score_pan_2024(
    models: Mapping[str, Any], sources: Texts, outputs: Texts, references: Texts
) -> dict[str, np.ndarray]:
    """Probability of neutral, similarity to the source, and chrF to the reference in place of fluency."""
    return {
        "STA": models["STA"].estimate(outputs),
        "SIM": models["SIM"].compare(sources, outputs),
        "FL": compute_chrf(outputs, [[reference] for reference in references]).sentences / 100,
    }


def score_pan_2025(
    models: Mapping[str, Any], sources: Texts, outputs: Texts, references: Texts
) -> dict[str, np.ndarray]:
    """P(neutral), raised where it reaches the source's or reference's; two similarities; XCOMET-lite."""
    neutral, before, human = (models["STA"].estimate(texts) for texts in (outputs, sources, references))
    style = np.maximum((neutral + (before <= neutral)) / 2, human <= neutral)
    similarity = 0.4 * models["SIM"].compare(sources, outputs) + 0.6 * models["SIM"].compare(
        references, outputs
    )
    return {"STA": style, "SIM": similarity, "FL": models["FL"].estimate(sources, outputs, references)}


PROTOCOLS = {
    "paradetox-2022": Protocol(
        {
            "STA": "s-nlp/roberta_toxicity_classifier",
            "SIM": LABSE,
            "FL": "cointegrated/roberta-large-cola-krishna2020",
        },
        "Logacheva et al., ParaDetox: Detoxification with Parallel Data, ACL 2022",
        "SIM by LaBSE: the paper's encoder (Wieting et al., 2019) is not on the Hub. J can't be set beside "
        "the paper's.",
        {"STA": "neutral>0.5", "SIM": "cosine to the source", "FL": "acceptable>0.5|detokenised"},
        score_paradetox_2022,
    ),
    "pan-2024": Protocol(
        {"STA": "textdetox/xlmr-large-toxicity-classifier", "SIM": LABSE},
        "PAN at CLEF 2024, Text Detoxification: github.com/pan-webis-de/pan-code, "
        "clef24/text-detoxification/evaluate.py",
        "FL is chrF to the first reference.",
        {"STA": "P(neutral)", "SIM": "cosine to the source", "FL": "chrF/100|refs:first"},
        score_pan_2024,
    ),
    "pan-2025": Protocol(
        {
            "STA": "textdetox/xlmr-large-toxicity-classifier-v2",
            "tokenizer": "cardiffnlp/twitter-xlm-roberta-large-2022",  # of the classifier
            "SIM": LABSE,
            "FL": XCOMET,
            "encoder": "microsoft/mdeberta-v3-base",  # of XCOMET-lite: its configuration and tokenizer
        },
        "PAN at CLEF 2025, Text Detoxification: github.com/pan-webis-de/pan-code, "
        "clef25/text-detoxification/evaluation",
        "FL is XCOMET-lite. The reference is the first of each sentence.",
        {
            "STA": "max((P(neutral)+(P(source)<=P(neutral)))/2,P(reference)<=P(neutral))|refs:first",
            "SIM": "0.4*cosine to the source+0.6*cosine to the reference|refs:first",
            "FL": "XCOMET-lite|refs:first",
        },
        score_pan_2025,
    ),
}


def resolve_models(names: Sequence[str], pins: Sequence[str]) -> dict[str, str]:
    """Return the commit of each model of these protocols.

    Args:
        names: keys of PROTOCOLS.
        pins: "model@revision", for models that are not to be the newest.

    Raises:
        InputError: a model is not on the Hub, or a package is not installed.
    """
    for package in ("sentence-transformers", "sentencepiece") if names else ():
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise InputError(
                f"eval.protocols: {package} is not installed. Install it: pip install -e '.[protocols]'"
            )
    pinned = dict(pin.split("@", 1) for pin in pins)
    models = dict.fromkeys(model for name in names for model in PROTOCOLS[name].models.values())
    if unknown := sorted(pinned.keys() - models.keys()):
        raise InputError(
            f"eval.pins: no protocol asked for uses {', '.join(unknown)}. Expected some of "
            f"{', '.join(models)}."
        )
    return {model: resolve_commit(model, pinned.get(model)) for model in models}


def score_protocols(
    names: Sequence[str],
    commits: Mapping[str, str],
    examples: Sequence[Example],
    outputs: Mapping[str, Texts],
    human: bool = True,
) -> list[Sentences]:
    """Return the sentence scores of each row, laid out as `Sentences` says: what `describe_protocols` takes.

    Args:
        names: keys of PROTOCOLS.
        commits: see `resolve_models`.
        outputs: for each system a text a row.
        human: whether each human rewrite is scored against the others of its sentence, and the first system
            beside it; of a sentence with several the mean is taken, of J of the products.

    Raises:
        InputError: a model can't be downloaded, or is not what the protocol takes it for.
    """
    first = next(iter(outputs))
    others, texts, starts = take_apart(examples, {first: outputs[first]}) if human else ([], {}, [])
    rows: list[Sentences] = [{} for _ in examples]
    for name in names:
        protocol = PROTOCOLS[name]
        models = {role: load_model(role, protocol, commits) for role in protocol.models if role not in PARTS}
        for row in rows:
            row[name] = {"systems": {}}
        for system, values in outputs.items():
            put_scores(rows, name, "systems", system, score_texts(protocol, models, examples, values))
        several = [row for row, example in zip(rows, examples, strict=True) if len(example.references) > 1]
        for system, values in texts.items() if others else ():
            scores = score_texts(protocol, models, others, values)
            scores["J"] = multiply(scores)
            means = {measure: average_neighbours(column, starts) for measure, column in scores.items()}
            put_scores(several, name, "ceiling", system, means)
    return rows


def score_texts(
    protocol: Protocol, models: Mapping[str, Any], examples: Sequence[Example], texts: Texts
) -> dict[str, np.ndarray]:
    return protocol.score(models, [e.toxic for e in examples], texts, [e.references[0] for e in examples])


def multiply(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return J of each row, shape (rows,)."""
    return np.prod([scores[measure] for measure in MEASURES], axis=0)


def put_scores(
    rows: Sequence[Sentences], name: str, part: str, system: str, scores: Mapping[str, np.ndarray]
) -> None:
    for measure, values in scores.items():
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name].setdefault(part, {}).setdefault(system, {})[measure] = round(value, 6)


def describe_protocols(rows: Sequence[Sentences], commits: Mapping[str, str]) -> tuple[ProtocolScores, ...]:
    """Return each protocol's scores of each system and of people, with intervals, and its models' commits."""
    described = []
    for name in rows[0]:
        protocol, signatures = PROTOCOLS[name], sign_measures(name, commits)
        systems = {}
        for system, columns in gather_scores([row[name]["systems"] for row in rows]).items():
            systems[system] = score_means(name, signatures, columns | {"J": multiply(columns)})
        ceiling = {}
        several = [row[name]["ceiling"] for row in rows if "ceiling" in row[name]]
        for system, columns in gather_scores(several).items():
            signed = {measure: f"{signature}|{BESIDE}" for measure, signature in signatures.items()}
            ceiling[system] = score_means(name, signed, columns)
        used = {model: commits[model] for model in protocol.models.values()}
        beside = describe_beside_people(systems, ceiling, len(several))
        described.append(ProtocolScores(name, protocol.source, protocol.note, used, *beside))
    return tuple(described)


def gather_scores(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, np.ndarray]]:
    """Return for each system and measure the rows' scores, of shape (rows,)."""
    first = rows[0] if rows else {}
    return {
        system: {measure: np.array([row[system][measure] for row in rows]) for measure in measures}
        for system, measures in first.items()
    }


def score_means(
    name: str, signatures: Mapping[str, str], columns: Mapping[str, np.ndarray]
) -> dict[str, Score]:
    return {
        measure: score_mean(f"{name} {measure}", signatures[measure], values.tolist())
        for measure, values in columns.items()
    }


def sign_measures(name: str, commits: Mapping[str, str]) -> dict[str, str]:
    """Return the signature of each measure of a protocol: how it is computed, by which models; of J, all."""
    protocol = PROTOCOLS[name]
    parts = {}
    for measure in MEASURES:
        used = [model for role, model in protocol.models.items() if PARTS.get(role, role) == measure]
        models = [f"model:{model}@{commits[model][:12]}" for model in used] or [
            compute_chrf(["a"], [["a"]]).signature
        ]
        parts[measure] = "|".join([measure, protocol.measures[measure], *models])
    parts["J"] = f"J|{'*'.join(MEASURES)}|{'|'.join(parts.values())}"
    return {measure: f"{name}|{part}" for measure, part in parts.items()}


def resolve_commit(model: str, revision: str | None) -> str:
    """Return the commit that a model's revision, or its newest one, stands for."""
    from huggingface_hub import hf_hub_download

    # PyTorchModelHubMixin does not always save config.json.
    file = "model.safetensors" if model == XCOMET else "config.json"
    with explain_errors(model, "model", revision):
        return Path(hf_hub_download(model, file, revision=revision)).parent.name


@contextlib.contextmanager
def explain_values(model: str) -> Iterator[None]:
    """Turn what transformers says of a model that it won't load into one clear error."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{model}: it can't be loaded: {first_line(error)}") from None


def load_model(role: str, protocol: Protocol, commits: Mapping[str, str]) -> Any:
    """Load the model of a role.

    Raises:
        InputError: it can't be downloaded, brings code of its own, or is not what the protocol takes it for.
    """
    model = protocol.models[role]
    with explain_errors(model, "model", commits[model]), explain_values(model):
        if role == "SIM":
            return Encoder(model, commits[model])
        if role == "FL" and "encoder" in protocol.models:
            from eval.xcomet import Xcomet

            return Xcomet(model, protocol.models["encoder"], commits)
        labels = NEUTRAL if role == "STA" else ACCEPTABLE
        # Index 0 is neutral in all three toxicity classifiers, and acceptable in this CoLA classifier (others
        # have it as 1).
        tokenizer = protocol.models.get("tokenizer", model) if role == "STA" else model
        return Classifier(model, commits, labels, 0, tokenizer)
