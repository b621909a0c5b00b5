"""The metrics as `evaluate.Metric` classes: no download, added in batches, gathered over several processes.

    from eval.hf_metrics import Bleu
    bleu = Bleu(num_process=2, process_id=rank, experiment_id="my-run")
    bleu.add_batch(predictions=["…"], references=[["…", "…"]])
    bleu.compute()  # on process 0 {"bleu": …, "signature": …}, on the others None

`evaluate.load` would want the network even for these; they are instantiated instead.
"""

from typing import Any

import datasets
import evaluate

from eval.metrics import (
    References,
    Score,
    compute_bleu,
    compute_chrf,
    compute_joint,
    compute_kept,
    compute_rouge,
)
from eval.toxicity import ToxicityModel

TEXT = datasets.Value("string")


def describe_metric(function: Any, **features: Any) -> evaluate.MetricInfo:
    """Return what `evaluate` knows of a metric: its columns, and the docstring of its function."""
    return evaluate.MetricInfo(
        description=function.__doc__, citation="", inputs_description="", features=datasets.Features(features)
    )


def describe_score(score: Score) -> dict[str, Any]:
    return {score.name: score.value, "signature": score.signature}


class Bleu(evaluate.Metric):
    """Corpus BLEU: see `eval.metrics.compute_bleu`."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric(compute_bleu, predictions=TEXT, references=datasets.List(TEXT))

    def _compute(
        self, predictions: list[str], references: References, lowercase: bool = False
    ) -> dict[str, Any]:
        return describe_score(compute_bleu(predictions, references, lowercase=lowercase))


class Chrf(evaluate.Metric):
    """Corpus chrF: see `eval.metrics.compute_chrf`."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric(compute_chrf, predictions=TEXT, references=datasets.List(TEXT))

    def _compute(self, predictions: list[str], references: References) -> dict[str, Any]:
        return describe_score(compute_chrf(predictions, references))


class Rouge(evaluate.Metric):
    """ROUGE-1, ROUGE-2 and ROUGE-L, by the best and the first reference: see `eval.metrics.compute_rouge`."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric(compute_rouge, predictions=TEXT, references=datasets.List(TEXT))

    def _compute(self, predictions: list[str], references: References) -> dict[str, Any]:
        scores = compute_rouge(predictions, references)
        return {score.name: score.value for score in scores} | {
            "signatures": {score.name: score.signature for score in scores}
        }


class Joint(evaluate.Metric):
    """Toxicity and joint score of predictions for toxic sources: see `eval.metrics.compute_joint`."""

    def _info(self) -> evaluate.MetricInfo:
        return describe_metric(compute_joint, predictions=TEXT, references=TEXT)

    def _compute(self, predictions: list[str], references: list[str], model: ToxicityModel) -> dict[str, Any]:
        toxicity, joint = compute_joint(predictions, compute_kept(predictions, references), model)
        return describe_score(joint) | {"toxicity": toxicity.value}
