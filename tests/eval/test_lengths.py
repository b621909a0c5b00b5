"""Texts that a base has learnt no positions for are told before a model is loaded."""

from pathlib import Path

import pytest
from test_architectures import make_base

from eval.adapter import Adapter, GenerationSettings
from eval.lengths import check_lengths
from sft.command import InputError
from sft.data import Example
from sft.model import resolve_base

SHOTS = [Example("damn fool " * 60, ("you " * 40,))] * 4


@pytest.mark.parametrize(
    ("kind", "ends"), [("gpt2", True), ("opt", True), ("llama", False), ("bloom", False)]
)
def test_text_beyond_the_learnt_positions(kind: str, ends: bool, mini_base: Path, tmp_path: Path) -> None:
    base = resolve_base(str(make_base(kind, mini_base, tmp_path / kind)))
    adapter = Adapter(
        tmp_path, base, {}, GenerationSettings(1, 20, 4), {"pad_token": None, "eos_token": None}, {}
    )
    assert check_lengths(adapter, ["you fool", ""], []) == []
    texts = ["you fool", "moron " * 600]
    if ends:
        with pytest.raises(
            InputError, match=r"^text 2 of 2, 'moron .* tokens, .* has learnt 512 positions\."
        ):
            check_lengths(adapter, texts, [])
        assert 0 < len(check_lengths(adapter, ["moron " * 60], SHOTS)) < 4
    else:
        assert check_lengths(adapter, texts, SHOTS) == SHOTS
