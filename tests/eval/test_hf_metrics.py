"""The `evaluate.Metric` classes: the same values as the functions, offline, also over two processes."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from eval.hf_metrics import Bleu, Chrf, Joint, Rouge
from eval.metrics import compute_bleu, compute_chrf, compute_joint, compute_kept, compute_rouge
from eval.toxicity import fit_toxicity
from sft.data import read_corpus
from sft.schema import DataConfig
from sft.storage import PROJECT

EXAMPLES = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples[:40]
SOURCES = [example.toxic for example in EXAMPLES]
TEXTS = [example.references[-1] for example in EXAMPLES]
REFERENCES = [list(example.references[:1]) * 2 for example in EXAMPLES[:20]] + [
    [source] for source in SOURCES[20:]
]


def test_values_are_those_of_the_functions(tmp_path: Path) -> None:
    rows = {"predictions": TEXTS, "references": REFERENCES}
    bleu = compute_bleu(TEXTS, REFERENCES)
    assert Bleu(cache_dir=str(tmp_path)).compute(**rows) == {"bleu": bleu.value, "signature": bleu.signature}
    lower = compute_bleu(TEXTS, REFERENCES, lowercase=True)
    assert Bleu(cache_dir=str(tmp_path)).compute(**rows, lowercase=True)["bleu"] == lower.value
    assert Chrf(cache_dir=str(tmp_path)).compute(**rows)["chrf"] == compute_chrf(TEXTS, REFERENCES).value
    rouge = Rouge(cache_dir=str(tmp_path)).compute(**rows)
    assert {score.name: score.value for score in compute_rouge(TEXTS, REFERENCES)}.items() <= rouge.items()
    model = fit_toxicity(EXAMPLES[:30])
    joint = Joint(cache_dir=str(tmp_path)).compute(predictions=TEXTS, references=SOURCES, model=model)
    assert joint["joint"] == compute_joint(TEXTS, compute_kept(TEXTS, SOURCES), model)[1].value


def add_half(process: int, folder: str, results: Any) -> None:
    metric = Bleu(num_process=2, process_id=process, experiment_id="two", cache_dir=folder)
    half = slice(20 * process, 20 * (process + 1))
    for start in range(0, 20, 7):
        metric.add_batch(
            predictions=TEXTS[half][start : start + 7], references=REFERENCES[half][start : start + 7]
        )
    results.put((process, metric.compute()))


@pytest.mark.slow
def test_two_processes_score_the_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=add_half, args=(number, str(tmp_path), results)) for number in range(2)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
    assert found[1] is None
    assert found[0]["bleu"] == compute_bleu(TEXTS, REFERENCES).value
