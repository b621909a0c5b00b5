"""What was read and tokenised is recalled by content: never stale, never torn, never in the way."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sft import cache, data
from sft.data import DataConfig, Example, read_corpus, tokenise_pairs
from sft.model import load_tokenizer, resolve_base

ROWS = "toxic\tneutral1\tneutral2\nwhat a damn day\twhat a day\t\nshut up now\tbe quiet now\tplease be quiet\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "detox-sft"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.tsv"
    path.write_text(ROWS)
    return path


def refuse(*_: object) -> None:
    raise AssertionError("was read again")


@pytest.mark.usefixtures("folder")
def test_a_second_read_recalls_the_first(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_corpus(DataConfig(source=str(file)))
    monkeypatch.setattr(data, "load_files", refuse)
    assert read_corpus(DataConfig(source=str(file))) == first
    moved = tmp_path / "moved" / "pairs.tsv"
    moved.parent.mkdir()
    file.rename(moved)  # the content counts, not the place or the time
    os.utime(moved, (1, 1))
    assert read_corpus(DataConfig(source=str(moved))).examples == first.examples
    with pytest.raises(AssertionError, match="was read again"):
        read_corpus(DataConfig(source=str(moved), cache=False))


@pytest.mark.usefixtures("folder")
def test_another_content_column_or_code_is_read_anew(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_corpus(DataConfig(source=str(file)))
    assert [len(example.references) for example in first.examples] == [1, 2]
    assert [len(e.references) for e in read_corpus(DataConfig(source=str(file), neutral=("neutral1",))).examples] == [1, 1]
    stat = file.stat()
    file.write_text(ROWS.replace("what a day", "what a sea"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same path, length and time
    assert read_corpus(DataConfig(source=str(file))).examples[0].references == ("what a sea",)
    monkeypatch.setattr(cache, "CODE", ("cache.py",))
    monkeypatch.setattr(data, "load_files", refuse)
    with pytest.raises(AssertionError, match="was read again"):
        read_corpus(DataConfig(source=str(file)))


DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda body: body[: len(body) // 2],
    lambda body: body.replace(b"day", b"sea"),
    lambda _: b"",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_or_changed_file_is_made_anew(folder: Path, file: Path, damage: Callable[[bytes], bytes]) -> None:
    first = read_corpus(DataConfig(source=str(file)))
    (kept,) = folder.glob("*.json")
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert read_corpus(DataConfig(source=str(file))) == first
    assert kept.read_bytes() == whole


def test_without_a_place_to_write_the_work_goes_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "no-folder"))
    assert len(read_corpus(DataConfig(source=str(file))).examples) == 2
    assert "going on without it (data.cache: false skips it)" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_tokens_are_recalled_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(resolve_base("recipes/bloom-tiny"))
    examples = [Example("what a damn day", ("what a day", "a day")), Example("shut up", ("be quiet",))]
    plain = tokenise_pairs(examples, tokenizer, 12)
    assert tokenise_pairs(examples, tokenizer, 12, cache=True) == plain
    monkeypatch.setattr(data, "tokenise_texts", refuse)
    assert tokenise_pairs(examples, tokenizer, 12, cache=True) == plain
    assert len(tokenise_pairs(examples, tokenizer, None, cache=True).rows) == 3  # cut and scored after the recall
    with pytest.raises(AssertionError, match="was read again"):
        tokenise_pairs(examples[:1], tokenizer, 12, cache=True)


def test_old_values_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "KEPT", 3)
    for number in range(5):
        assert cache.recall([number], lambda number=number: number) == number  # type: ignore[misc]
        for age, kept in enumerate(sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)):
            os.utime(kept, (1e9 - age, 1e9 - age))
    assert len(list(folder.glob("*.json"))) == 3
