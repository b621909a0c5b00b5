"""XCOMET-lite against unbabel-comet on a miniature checkpoint; its spans by hand; its tokens; checkpoints that are none."""

from pathlib import Path

import numpy as np
import pytest
from mini_xcomet import make_xcomet

from eval import xcomet
from eval.xcomet import Xcomet, score_spans
from sft.command import InputError

# Source, output, reference, and the score that unbabel-comet 2.2.1 gives, with transformers 4.44.2, torch 2.13.0 and XCOMETLite
# of PAN's evaluation (metrics/fluency/deberta_encoder.py):
#   XCOMETLite.from_pretrained(checkpoint, pretrained_model=encoder).predict(rows, batch_size=512, gpus=0).scores
ROWS = [
    ("a bad day", "a good day", "a good day", -0.0085945),
    ("what a bad plan", "what a good plan", "the day is good", 0.3098307),
    ("the plan is bad", "the plan is good", "the plan", 0.7571753),
    ("you idiot", "", "day", 0.6158961),
    ("a day", "a bad, bad day!", "the plan is good", 0.2610814),
    ("you really are an idiot", "you really idiots", "you", 0.4604085),
    ("the plan is bad...", "the plan…", "the plan is good...", 0.5442237),
    ("fine plan", "ﬁne  plan ", "what a plan", 0.2814783),
    ("what a plan", "What a plan", "a really good day", 0.2747962),
    ("bad " * 30, "day " * 30, "a fine plan", 0.2441703),
    ("a bad day", "the plan is really good and you are planning a day", "what a plan", 0.9120001),
    ("what a bad plan", "idiot", "a really good day", 0.3949143),
    ("the plan is bad", "plan! plan! plan!", "a fine plan", 0.6537722),
    ("you idiot", "ｇｏｏｄ day", "a good day", 0.4747640),
    ("a day", "xyz 🙂 day", "the day is good", 0.5948101),
    ("you really are an idiot", "a\tgood\nday", "the plan", 0.5926359),
    ("the plan is bad...", "is it a good day", "day", 0.5900753),
    ("fine plan", "[SEP] day", "the plan is good", 0.6973318),
    ("what a plan", "really really bad", "you", 0.3983834),
    ("bad " * 30, "s s s s", "the plan is good...", 0.7235720),
    ("a bad day", "idiot what", "the plan", 0.5621501),
    ("you idiot", "a [PAD] day", "the plan is [PAD]", 0.4335731),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("xcomet")
    make_xcomet(root / "checkpoint", root / "encoder")
    return str(root / "checkpoint"), str(root / "encoder")


def load(checkpoint: str, encoder: str) -> Xcomet:
    return Xcomet(checkpoint, encoder, {checkpoint: None, encoder: None})  # type: ignore[dict-item]


@pytest.mark.parametrize("batch", [3, 32])
def test_scores_are_those_of_unbabel_comet(
    batch: int, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xcomet, "BATCH", batch)
    sources, outputs, references, scores = zip(*ROWS, strict=True)
    np.testing.assert_allclose(
        load(*folders).estimate(sources, outputs, references), scores, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("labels", "score"),
    [
        ([0, 0, 0], 1),
        ([0, 1, 1, 0], 1 - 1 / 25),
        ([0, 1, 3, 0], 1 - 1 / 25),  # one span, minor as its first token
        ([2, 0, 3, 0], 1 - 15 / 25),
        ([3, 0] * 3, 0),
        ([0, 3, 3], 1),  # open at the end
        ([1, 0, 2], 1 - 1 / 25),
    ],
)
def test_spans_by_hand(labels: list[int], score: float) -> None:
    assert score_spans(labels) == pytest.approx(score)


def test_tokens_are_normalised_as_in_training(folders: tuple[str, str]) -> None:
    model = load(*folders)
    assert model.tokenise([" ﬁne\u3000plan… "]) == model.tokenise(["fine plan..."])
    assert len(model.tokenise(["day " * 99])[0]) == model.longest - 4


def test_a_checkpoint_of_another_shape(folders: tuple[str, str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    make_xcomet(checkpoint, tmp_path / "encoder")
    (checkpoint / "config.json").unlink()  # then the sizes are those of the published one
    with pytest.raises(
        InputError, match=r"checkpoint is no XCOMET-lite on .*encoder: .*size mismatch for estimator\.ff\.0"
    ):
        load(str(checkpoint), folders[1])
