"""Scores of outputs: the human ceiling and the slices, compared with what is counted by hand."""

import dataclasses

import pytest

from eval import metrics
from eval.metrics import compute_scores
from eval.scoring import complete_outputs, score_outputs
from eval.tables import tabulate_systems
from eval.toxicity import ToxicityModel, fit_toxicity
from sft.data import Example, read_corpus
from sft.schema import DataConfig
from sft.storage import PROJECT

ROWS = [
    Example("shut up you fool", ("Please be quiet.", "Be quiet, please.")),
    Example("what a load of rubbish that was , i can not believe that i paid for it", ("That was bad.",)),
    Example("this is a damn good damn day", ("This is a good day.", "What a good day.", "A good day it is.")),
    Example(
        "they will never learn , will they , as they have no brain at all in there", ("They will not learn.",)
    ),
]
OUTPUTS = {
    "adapter": ["Be quiet.", "That was rubbish.", "this is a good day", ""],
    "copy": [row.toxic for row in ROWS],
}


@pytest.fixture(scope="module")
def model() -> ToxicityModel:
    fitted = fit_toxicity(
        read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples
    )
    return dataclasses.replace(fitted, lexicon=frozenset({"fool", "damn"}))


def test_ceiling_scores_each_rewrite_against_the_others(model: ToxicityModel) -> None:
    results, _ = score_outputs(ROWS, OUTPUTS, model)
    ceiling = results.ceiling
    assert ceiling is not None
    assert ceiling.rows == 2
    human = [text for row in (ROWS[0], ROWS[2]) for text in row.references]
    others = [["Be quiet, please."], ["Please be quiet."]]
    others += [["What a good day.", "A good day it is."], ["This is a good day.", "A good day it is."]]
    others += [["This is a good day.", "What a good day."]]
    sources = [ROWS[0].toxic] * 2 + [ROWS[2].toxic] * 3
    for system, texts in {
        "human": human,
        "adapter": ["Be quiet."] * 2 + ["this is a good day"] * 3,
        "copy": sources,
    }.items():
        for name, score in compute_scores(texts, others, sources, model).items():
            assert ceiling.systems[system][name].value == pytest.approx(score.value)
            assert (
                ceiling.systems[system][name].signature
                == f"{score.signature}|each rewrite against the others"
            )
    assert results.systems["human"] == ceiling.systems["human"]
    rows = tabulate_systems(results)
    assert list(rows) == [
        "this adapter",
        "input copied",
        "people, on 2 sentences",
        "this adapter, on these 2",
    ]
    assert list(rows.values())[2:] == [ceiling.systems["human"], ceiling.systems["adapter"]]
    values = [ceiling.systems[system]["bleu"].value for system in ("adapter", "human")]
    assert ceiling.differences["human"]["bleu"].value == pytest.approx(values[0] - values[1])


def test_rows_with_one_rewrite_each_have_no_ceiling(model: ToxicityModel) -> None:
    results, _ = score_outputs(ROWS[1:2], {"adapter": ["x"]}, model)
    assert results.ceiling is None
    assert list(results.systems) == ["adapter"]
    assert list(tabulate_systems(results)) == ["this adapter"]
    results, _ = score_outputs(ROWS, OUTPUTS, model, human=False)
    assert list(results.systems) == ["adapter", "copy"]


def test_slices_are_the_scores_of_their_rows(model: ToxicityModel) -> None:
    results, _ = score_outputs(ROWS, OUTPUTS, model)
    slices = {(part.by, part.slice): part for part in results.slices}
    rows = {
        ("rewrites", "1"): [1, 3], ("rewrites", "2"): [0], ("rewrites", "3"): [2],
        ("words", "below 8"): [0, 2], ("words", "from 15"): [1, 3],
        ("listed words", "none (implicit toxicity)"): [1, 3], ("listed words", "one"): [0], ("listed words", "several"): [2],
    }  # fmt: skip
    assert slices.keys() == rows.keys(), "a slice without rows is left out"
    for key, part in rows.items():
        assert slices[key].rows == len(part)
        for system, texts in OUTPUTS.items():
            references, sources = [ROWS[row].references for row in part], [ROWS[row].toxic for row in part]
            scores = compute_scores([texts[row] for row in part], references, sources, model)
            for name, score in slices[key].systems[system].items():
                assert score.value == pytest.approx(scores[name].value)
                assert score.low <= score.value + 1e-9


def test_sentence_scores_are_the_first_systems(model: ToxicityModel) -> None:
    _, sentences = score_outputs(ROWS, OUTPUTS, model)
    assert len(sentences) == len(ROWS)
    for row, example in enumerate(ROWS):
        alone = compute_scores([OUTPUTS["adapter"][row]], [example.references], [example.toxic], model)
        assert sentences[row] == pytest.approx({name: score.sentences[0] for name, score in alone.items()})


def test_without_sources_or_model_only_references_are_scored(model: ToxicityModel) -> None:
    rows = [Example("", row.references) for row in ROWS]
    results, _ = score_outputs(rows, {"adapter": OUTPUTS["adapter"]}, model)
    assert {"bleu", "rougeL"} <= results.systems["adapter"].keys()
    assert not {"toxicity", "joint", "chrf_source"} & results.systems["adapter"].keys()
    assert {part.by for part in results.slices} == {"rewrites"}
    outputs = complete_outputs({"adapter": ["x"]}, ["a damn fool"], None, ("delete", "copy"))
    assert outputs == {"adapter": ["x"], "copy": ["a damn fool"]}


def check_costless_texts() -> None:
    """On rows that the classifier does not know, compare people with what anybody gets for nothing."""
    examples = read_corpus(DataConfig(source=str(PROJECT / "recipes" / "tiny-corpus.tsv"))).examples[:2000]
    fitted, held_out = fit_toxicity(examples[::2]), examples[1::2]
    people = [example.references[0] for example in held_out]
    systems = {"people": people, "other": people[1:] + people[:1]}
    outputs = complete_outputs(systems, [example.toxic for example in held_out], fitted, ("delete", "copy"))
    for half, whole in (("half", outputs["delete"]), ("half of people's", people)):
        outputs[half] = [" ".join(words[: len(words) // 2]) for words in map(str.split, whole)]
    results, _ = score_outputs(held_out, outputs, fitted, human=False)
    joint = {system: scores["joint"].value for system, scores in results.systems.items()}
    assert joint["people"] > joint["delete"] > joint["half"] > joint["copy"]
    assert joint["delete"] > max(joint["other"], joint["half of people's"])


@pytest.mark.slow
def test_texts_that_cost_nothing_never_win_the_joint_score() -> None:
    check_costless_texts()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["toxicity", "chrf_source", "length_ratio"])
def test_a_joint_score_that_lacks_a_part_is_found_out(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if part == "toxicity":
        monkeypatch.setattr(ToxicityModel, "predict", lambda _, texts: [0.0] * len(texts))
    else:
        monkeypatch.setattr(
            metrics, {"chrf_source": "KEPT_ENOUGH", "length_ratio": "LONG_ENOUGH"}[part], 1e-9
        )
    with pytest.raises(AssertionError):
        check_costless_texts()
