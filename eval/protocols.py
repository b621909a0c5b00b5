"""The field's own measures of detoxification, STA, SIM, FL and J, each protocol under its own name with its own models.

Models come from the Hub when a recipe asks for a protocol (`eval.protocols`); their commits stand in results.json, and
`eval.pins` fixes them. Scores of two protocols can't be compared: other classifiers, other formulas.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import Score, score_mean
from eval.results import describe_systems
from sft.data import Example
from sft.hub import explain_errors
from sft.recipe import InputError

NEUTRAL = ("neutral", "non-toxic", "not toxic", "nontoxic", "non_toxic", "clean")
ACCEPTABLE = ("acceptable", "correct", "grammatical")
LABSE = "sentence-transformers/LaBSE"
XCOMET = "myyycroft/XCOMET-lite"
PARTS = ("tokenizer", "encoder")  # roles of models that another one needs
BATCH, LONGEST = 32, 512  # texts; tokens, as the protocols have them

Texts = Sequence[str]


@dataclass(frozen=True)
class Protocol:
    """One protocol: its models by role, what it deviates in, where it is described, and its sentence scores.

    `score(models, sources, outputs, references)` returns the sentence scores by measure, each of shape (rows,), in 0 to 1
    (SIM, a cosine, in -1 to 1; XCOMET-lite, a regression, of at most 1); their product is J. `references` are the first of
    each sentence.
    """

    models: Mapping[str, str]
    source: str
    note: str
    score: Callable[[Mapping[str, Any], Texts, Texts, Texts], dict[str, np.ndarray]]


class Classifier:
    """A sequence classifier and the label that counts as success: known by its name, else by the protocol's `index`."""

    def __init__(self, name: str, commits: Mapping[str, str], labels: Sequence[str], index: int, tokenizer: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, revision=commits[tokenizer])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForSequenceClassification.from_pretrained(name, revision=commits[name]).to(device).eval()
        named = [number for number, label in self.model.config.id2label.items() if str(label).lower() in labels]
        self.index = named[0] if named else index

    def estimate(self, texts: Texts) -> np.ndarray:
        """Return the probability of success for each text, shape (rows,)."""
        import torch

        parts = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            inputs = self.tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=LONGEST)
            with torch.inference_mode():
                logits = self.model(**inputs.to(self.model.device)).logits.float()
            parts.append(logits.softmax(-1)[:, self.index].cpu().numpy())
        return np.concatenate(parts)


class Encoder:
    """A sentence encoder."""

    def __init__(self, name: str, revision: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(name, revision=revision)

    def compare(self, one: Texts, other: Texts) -> np.ndarray:
        """Return the cosine of each pair's embeddings, shape (rows,)."""
        first, second = (self.model.encode(list(texts), batch_size=BATCH, show_progress_bar=False) for texts in (one, other))
        norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return np.asarray((first * second).sum(1) / np.maximum(norms, 1e-12))


def score_paradetox_2022(models: Mapping[str, Any], sources: Texts, outputs: Texts, _: Texts) -> dict[str, np.ndarray]:
    """Shares of outputs that are classified as neutral and as acceptable, and the similarity to the source."""
    return {
        "STA": (models["STA"].estimate(outputs) > 0.5).astype(float),
        "SIM": models["SIM"].compare(sources, outputs),
        "FL": (models["FL"].estimate(outputs) > 0.5).astype(float),
    }


def score_pan_2024(models: Mapping[str, Any], sources: Texts, outputs: Texts, references: Texts) -> dict[str, np.ndarray]:
    """Probability of neutral, similarity to the source, and chrF to the reference in place of fluency."""
    from sacrebleu.metrics.chrf import CHRF

    chrf = CHRF()
    pairs = zip(outputs, references, strict=True)
    return {
        "STA": models["STA"].estimate(outputs),
        "SIM": models["SIM"].compare(sources, outputs),
        "FL": np.array([chrf.sentence_score(output, [reference]).score / 100 for output, reference in pairs]),
    }


def score_pan_2025(models: Mapping[str, Any], sources: Texts, outputs: Texts, references: Texts) -> dict[str, np.ndarray]:
    """Probability of neutral, raised where the output is as neutral as source or reference; similarity to both; XCOMET-lite."""
    neutral, before, human = (models["STA"].estimate(texts) for texts in (outputs, sources, references))
    style = np.maximum((neutral + (before <= neutral)) / 2, human <= neutral)
    similarity = 0.4 * models["SIM"].compare(sources, outputs) + 0.6 * models["SIM"].compare(references, outputs)
    return {"STA": style, "SIM": similarity, "FL": models["FL"].estimate(sources, outputs, references)}


PROTOCOLS = {
    "paradetox-2022": Protocol(
        {"STA": "s-nlp/roberta_toxicity_classifier", "SIM": LABSE, "FL": "cointegrated/roberta-large-cola-krishna2020"},
        "Logacheva et al., ParaDetox: Detoxification with Parallel Data, ACL 2022",
        "SIM by LaBSE: the paper's encoder (Wieting et al., 2019) is not on the Hub. J can't be set beside the paper's.",
        score_paradetox_2022,
    ),
    "pan-2024": Protocol(
        {"STA": "textdetox/xlmr-large-toxicity-classifier", "SIM": LABSE},
        "PAN at CLEF 2024, Text Detoxification: github.com/pan-webis-de/pan-code, clef24/text-detoxification/evaluate.py",
        "FL is chrF to the first reference.",
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
        "PAN at CLEF 2025, Text Detoxification: github.com/pan-webis-de/pan-code, clef25/text-detoxification/evaluation",
        "FL is XCOMET-lite. The reference is the first of each sentence.",
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
            raise InputError(f"eval.protocols: {package} is not installed. Install it: pip install -e '.[protocols]'")
    pinned = dict(pin.split("@", 1) for pin in pins)
    models = dict.fromkeys(model for name in names for model in PROTOCOLS[name].models.values())
    if unknown := sorted(pinned.keys() - models.keys()):
        raise InputError(f"eval.pins: no protocol asked for uses {', '.join(unknown)}. Expected some of {', '.join(models)}.")
    return {model: resolve_commit(model, pinned.get(model)) for model in models}


def score_protocols(
    names: Sequence[str], commits: Mapping[str, str], examples: Sequence[Example], outputs: Mapping[str, Texts]
) -> list[dict[str, Any]]:
    """Return each protocol's part of results.json: its scores of each system, with intervals, differences and models.

    Args:
        names: keys of PROTOCOLS.
        commits: see `resolve_models`.
        outputs: for each system a text a row.

    Raises:
        InputError: a model can't be downloaded.
    """
    sources, references = [example.toxic for example in examples], [example.references[0] for example in examples]
    described = []
    for name in names:
        protocol = PROTOCOLS[name]
        models = {role: load_model(role, protocol, commits) for role in protocol.models if role not in PARTS}
        systems = {}
        for system, texts in outputs.items():
            values = protocol.score(models, sources, texts, references)
            values["J"] = values["STA"] * values["SIM"] * values["FL"]
            systems[system] = {measure: sign_score(name, measure, protocol, commits, rows) for measure, rows in values.items()}
        used = {model: commits[model] for model in protocol.models.values()}
        part: dict[str, Any] = {"protocol": name, "source": protocol.source, "note": protocol.note, "models": used}
        described.append(part | describe_systems(systems))
    return described


def sign_score(name: str, measure: str, protocol: Protocol, commits: Mapping[str, str], values: np.ndarray) -> Score:
    model = protocol.models.get(measure)
    by = f"|model:{model}@{commits[model][:12]}" if model else ""
    return score_mean(f"{name} {measure}", f"{name}|{measure}{by}|refs:first|aggregate:mean", values.tolist())


def resolve_commit(model: str, revision: str | None) -> str:
    """Return the commit that a model's revision, or its newest one, stands for."""
    from huggingface_hub import hf_hub_download

    file = "model.safetensors" if model == XCOMET else "config.json"  # PyTorchModelHubMixin does not always save the latter
    with explain_errors(model, "model", revision):
        return Path(hf_hub_download(model, file, revision=revision)).parent.name


def load_model(role: str, protocol: Protocol, commits: Mapping[str, str]) -> Any:
    model = protocol.models[role]
    with explain_errors(model, "model", commits[model]):
        if role == "SIM":
            return Encoder(model, commits[model])
        if role == "FL" and "encoder" in protocol.models:
            from eval.xcomet import Xcomet

            return Xcomet(model, protocol.models["encoder"], commits)
        labels = NEUTRAL if role == "STA" else ACCEPTABLE
        # Index 0 is neutral in all three toxicity classifiers, and acceptable in this CoLA classifier (others have it as 1).
        tokenizer = protocol.models.get("tokenizer", model) if role == "STA" else model
        return Classifier(model, commits, labels, 0, tokenizer)
