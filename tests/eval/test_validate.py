"""Metrics held against people: correlations as scipy computes them, and files that are refused."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, Main
from scipy.stats import spearmanr

from eval.validate import correlate, read_judged
from sft.command import InputError

HUMAN = SHARED / "pan2024-english-human.tsv"
HEADER = "system\ttoxic\toutput\tfluency\tcontent\ttoxicity_pairwise\n"


def write(path: Path, rows: list[str]) -> Path:
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def test_correlations_are_scipys() -> None:
    generator = np.random.default_rng(0)
    systems, sources = np.repeat(np.arange(6), 40), np.tile(np.arange(40), 6)
    people = generator.normal(size=240) + systems
    metric = people + generator.normal(size=240)
    found = correlate(metric, people, systems, sources)
    means = [[values[systems == number].mean() for number in range(6)] for values in (metric, people)]
    assert found["system"][0] == pytest.approx(spearmanr(*means).statistic)
    assert found["sentence"][0] == pytest.approx(spearmanr(metric, people).statistic)
    for value, low, high in found.values():
        assert low <= value <= high
    assert found["sentence"][1] > 0.5
    turned = correlate(-metric, people, systems, sources)
    assert turned["sentence"][0] == pytest.approx(-found["sentence"][0])


@pytest.mark.slow
def test_a_table_is_printed(tmp_path: Path, call_main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["you stupid idiot , go away", "what the fuck is this shit", "shut the hell up , moron"]
    outputs = {
        "copy": texts,
        "people": ["Please go away.", "What is this?", "Please be quiet."],
        "off": ["Nice day."] * 3,
    }
    judgements = {"copy": "1\t1\t0.5", "people": "1\t1\t1", "off": "1\t0\t1"}
    rows = [
        f"{name}\t{toxic}\t{output}\t{judgements[name]}"
        for name, mine in outputs.items()
        for toxic, output in zip(texts, mine, strict=True)
    ]
    call_main("eval.validate", write(tmp_path / "human.tsv", rows))
    output = capsys.readouterr().out
    assert "3 systems, 3 sentences, 9 outputs" in output
    assert "joint" in output


@pytest.mark.slow
@pytest.mark.skipif(not HUMAN.exists(), reason=f"{HUMAN} is not here (it is not in the repo)")
def test_the_joint_score_ranks_as_people_do_and_copies_last() -> None:
    """On the outputs of 20 systems that people judged; fitted on the embedded corpus."""
    from eval.validate import score_outputs
    from sft.data import read_corpus
    from sft.lexicon import delete_listed, fit_lexicon
    from sft.schema import DataConfig
    from sft.storage import PROJECT

    judged = read_judged(HUMAN)
    train = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples
    toxic, outputs = [row.toxic for row in judged], [row.output for row in judged]
    lexicon = frozenset(fit_lexicon(train))
    cut = [delete_listed(text, lexicon) for text in toxic]
    joint, copied, words_cut = np.split(score_outputs(train, toxic * 3, outputs + toxic + cut)["joint"], 3)
    names, systems = np.unique([row.system for row in judged], return_inverse=True)
    _, sources = np.unique(toxic, return_inverse=True)
    people = np.array([np.prod(list(row.judgements.values())) for row in judged])
    means, liked = (np.bincount(systems, scores) / np.bincount(systems) for scores in (joint, people))
    assert names[means.argmin()] == "delete_baseline"
    assert copied.mean() < means.min(), "copying is below all"
    below = means < words_cut.mean()
    assert below.sum() <= 5, "cutting words is below three quarters of the systems"
    assert (liked[below] < np.median(liked)).all(), "and below all that people like better than most"
    for _, low, _ in correlate(joint, people, systems, sources).values():
        assert low > 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["a\tx\ty\t1\t1\t2"],
            r":2: found toxicity_pairwise '2', content '1', fluency '1'. Expected numbers from 0 to 1",
        ),
        (["a\tx\ty\t1\t1"], r":2: found toxicity_pairwise None, .* Expected numbers"),
        (["a\tx\ty\t1\tgood\t1"], r":2: found .* content 'good'"),
        (["a\tx\ty\t1\t1\t1", "b\tx\ty\t1\t1\t1"], "Expected those of three systems at least"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_judged(write(tmp_path / "human.tsv", rows))


def test_missing_file_and_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_judged(tmp_path / "none.tsv")
    (tmp_path / "x.tsv").write_text("system\toutput\n")
    with pytest.raises(
        InputError, match=r"no column toxic, toxicity_pairwise, content, fluency\. Found: system, output\."
    ):
        read_judged(tmp_path / "x.tsv")
