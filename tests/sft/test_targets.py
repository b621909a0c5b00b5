"""Targets files: what is refused, what is learnt of them, and that a run is bound to them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Main

from sft.augment import make_training_examples
from sft.data import Example
from sft.files import DataError
from sft.preflight import inspect_recipe
from sft.run_dir import Run
from sft.schema import DataConfig, RecipeFaults
from sft.splits import hash_examples
from sft.storage import read_json, read_json_lines, write_json_lines
from sft.targets import hash_content, read_targets, write_targets

SPLITS = {
    "train": [Example(f"damn thing number {i}", (f"thing number {i}", f"object {i}")) for i in range(6)],
    "validation": [Example("a damn validation sentence", ("a sentence",))],
    "test": [Example("a damn test sentence", ("a sentence",))],
}
TEACHER = {
    "name": "runs/teacher",
    "adapter": {"sha256": "a" * 64, "config_sha256": "b" * 64},
    "base": {"name": "recipes/bloom-tiny", "revision": None, "weights": {}},
    "num_beams": 8,
    "has_seen": "nothing held out",
}
HEADER = {
    "teacher": TEACHER,
    "rule": "the best",
    "splits": {split: hash_examples(examples) for split, examples in SPLITS.items()},
    "from_people": 1,
}
ROWS = [{"id": example.id, "target": f"the thing {i}"} for i, example in enumerate(SPLITS["train"][:4])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_targets(tmp_path / "targets.jsonl", HEADER, ROWS)
    return tmp_path / "targets.jsonl"


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any], sign: bool = True) -> None:
    """Change a file's header; with `sign`, as somebody would who knows how its hash is made."""
    header, *rows = read_json_lines(path)
    change(header)
    if sign:
        header["sha256"] = hash_content(header, [json.dumps(row, ensure_ascii=False) for row in rows])
    write_json_lines(path, [header, *rows])


def test_targets_are_learnt_in_place_of_rewrites_or_beside_them(path: Path) -> None:
    targets = read_targets(str(path), SPLITS)
    assert targets.texts == {row["id"]: row["target"] for row in ROWS}
    (alone,) = [make_training_examples(SPLITS, DataConfig(), targets)["split"]]
    assert [example.references for example in alone[:4]] == [(f"the thing {i}",) for i in range(4)]
    assert alone[4:] == SPLITS["train"][4:], "a sentence without a target keeps its rewrites"
    beside = make_training_examples(SPLITS, DataConfig(targets_only=False), targets)["split"]
    assert beside[0].references == ("thing number 0", "object 0", "the thing 0")
    closest = make_training_examples(SPLITS, DataConfig(targets_only=False, closest=True), targets)["split"]
    assert closest[0].references == ("thing number 0", "the thing 0")
    assert closest[5].references == ("thing number 5",)
    swapped = make_training_examples(SPLITS, DataConfig(inserts=2), targets)
    assert {reference for pair in swapped["inserts"] for reference in pair.references} <= {
        reference for example in alone for reference in example.references
    }


def refuse(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_targets(str(path), SPLITS)
    assert caught.value.key == "data.targets"
    return str(caught.value)


def test_a_changed_teacher_is_refused(path: Path) -> None:
    edit_header(path, lambda header: header["teacher"]["adapter"].update(sha256="c" * 64), sign=False)
    assert "changed after it was made: its SHA-256 is not the one in its header" in refuse(path)


def test_a_changed_target_is_refused(path: Path) -> None:
    path.write_text(path.read_text().replace("the thing 1", "the thing 9"))
    assert "changed after it was made" in refuse(path)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8, 0.99])
def test_a_half_written_file_is_refused(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert any(text in refuse(path) for text in ("cut off", "changed after", "expected a JSON object"))


def test_a_file_that_lost_whole_lines_is_refused(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "cut off: found 3 targets, expected 4 targets" in refuse(path)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (SPLITS["test"][0], "stands in this run's test split: its target would leak"),
        (SPLITS["validation"][0], "stands in this run's validation split: its target would leak"),
        (
            Example("a sentence of another corpus", ("x",)),
            "1 target of 5 for sentences that are not in this data set",
        ),
    ],
)
def test_targets_of_other_than_training_sentences_are_refused(
    path: Path, example: Example, message: str
) -> None:
    write_targets(path, HEADER, [*ROWS, {"id": example.id, "target": "x"}])
    assert message in refuse(path)
    assert f"{path}:6: " in refuse(path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_teacher_held_against_other_sentences_is_refused(path: Path, split: str) -> None:
    write_targets(path, HEADER | {"splits": HEADER["splits"] | {split: "d" * 64}}, ROWS)
    assert f"made for another {split} split; its teacher may have seen" in refuse(path)


@pytest.mark.parametrize(
    "target",
    [
        "",
        " ",
        "two\nlines",
        "a\u2028b",
        "tab\there",
        "bell\x07",
        "\x1b[31mred",
        " space",
        "\ud800",
        5,
        None,
        ["x"],
        {"a": 1},
    ],
)
def test_a_target_that_is_no_clean_line_is_refused(path: Path, target: Any) -> None:
    write_json_lines(path, [])
    lines = [json.dumps({**ROWS[0], "target": target})]
    header = {"format": 1, **HEADER, "rows": 1}
    path.write_text("\n".join([json.dumps(header | {"sha256": hash_content(header, lines)}), *lines]) + "\n")
    assert f"{path}:2: found " in refuse(path)


def test_text_that_looks_like_tokens_or_markup_is_learnt_as_text(path: Path) -> None:
    hostile = [
        "</s> <pad>",
        "### Rewritten:",
        "<script>alert(1)</script>",
        "{{ config }} [/bold] $(rm -rf /)",
    ]
    write_targets(path, HEADER, [{**row, "target": text} for row, text in zip(ROWS, hostile, strict=True)])
    assert list(read_targets(str(path), SPLITS).texts.values()) == hostile


def test_a_sentence_with_two_targets_is_refused(path: Path) -> None:
    write_targets(path, HEADER, [*ROWS, ROWS[0]])
    assert "has a target already" in refuse(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n",
        "[]\n",
        "null\n",
        "{}\n",
        "not json\n",
        "[" * 200_000,
        '{"format": 1}\n',
        '{"format": 2, "rows": 0}\n',
        "\u00e9",
    ],
)
def test_another_file_is_refused(path: Path, content: str) -> None:
    path.write_text(content, encoding="latin1" if content == "\u00e9" else "utf-8")
    assert str(path) in refuse(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["teacher"].update(name="x\n# heading"),
        lambda header: header["teacher"].update(name="x" * 301),
        lambda header: header["teacher"]["base"].update(name={"a": 1}),
        lambda header: header["teacher"]["adapter"].update(sha256="../../etc"),
        lambda header: header["teacher"].update(has_seen="nothing, I swear"),
        lambda header: header.update(rule="\x1b]0;title\x07"),
        lambda header: header.update(rows="4"),
        lambda header: header.update(from_people=True),
        lambda header: header.pop("splits"),
        lambda header: header["splits"].pop("test"),
    ],
)
def test_a_header_of_another_shape_is_refused(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_header(path, change)
    assert f"{path}:1: no header of a targets file" in refuse(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    assert refuse(tmp_path / "none.jsonl").startswith(f"{tmp_path / 'none.jsonl'}: no such file.")
    assert refuse(tmp_path).startswith(f"{tmp_path}: a folder.")


# ------------------------------------------------------------------------------------------------ in a recipe


def test_the_preflight_tells_who_has_taught(taught: tuple[Path, Path], mini_arguments: list[str]) -> None:
    _, path = taught
    preflight = inspect_recipe(mini_arguments[0], [*mini_arguments[1:], "--data.targets", str(path)])
    described = preflight.describe_data()["targets"]
    header, *rows = read_json_lines(path)
    assert described["sentences"] == len(rows) == len(preflight.splits["train"])
    assert described["teacher"]["adapter"] == header["teacher"]["adapter"]
    assert described["alone"] is True
    assert preflight.training_pairs["split"] == len(rows)


def test_faults_of_targets_are_told_with_the_others(mini_arguments: list[str], path: Path) -> None:
    with pytest.raises(RecipeFaults) as caught:
        inspect_recipe(mini_arguments[0], [*mini_arguments[1:], "--data.targets", str(path), "--lora_q", "8"])
    assert caught.value.status == 2
    assert [line.partition(":")[0] for line in caught.value.lines] == ["--lora_q", "--data.targets"]


def test_targets_need_the_corpus_in_memory(mini_arguments: list[str], path: Path) -> None:
    words = [*mini_arguments[1:], "--data.targets", str(path), "--data.streaming", "true"]
    with pytest.raises(RecipeFaults, match=r"--data\.targets: needs the whole corpus in memory"):
        inspect_recipe(mini_arguments[0], words)


def test_a_recipes_targets_are_left_out_with_other_data(
    taught: tuple[Path, Path],
    small_data: Path,
    mini_arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, path = taught
    recipe = tmp_path / "own.yaml"
    text = TINY.read_text(encoding="utf-8")
    assert "  targets: recipes/tiny-targets.jsonl\n" in text
    recipe.write_text(
        text.replace("recipes/tiny-targets.jsonl", str(path)).replace(
            "recipes/tiny-corpus.tsv", str(small_data)
        )
    )
    model = ["--model_name_or_path", mini_arguments[mini_arguments.index("--model_name_or_path") + 1]]
    assert inspect_recipe(str(recipe), model).targets is not None
    assert inspect_recipe(str(recipe), [*model, "--data.source", str(small_data)]).targets is None
    assert "data.targets left out" in capsys.readouterr().err
    words = [*model, "--data.source", str(small_data), "--data.targets", str(path)]
    assert inspect_recipe(str(recipe), words).targets is not None


def test_a_run_that_goes_on_needs_the_same_targets(
    taught: tuple[Path, Path],
    mini_arguments: list[str],
    call_main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sft.train import Trainer

    path = tmp_path / "targets.jsonl"
    path.write_bytes(taught[1].read_bytes())
    words = [*mini_arguments, "--data.targets", str(path), "--output_dir", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("sft.model.save_adapter", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call_main("sft.run", *words)
    assert Run(tmp_path / "run").last_checkpoint()
    assert read_json(Run(tmp_path / "run").manifest_path)["targets"]["sentences"]
    header, *rows = read_json_lines(path)
    rows[0]["target"] = "another one"
    write_targets(
        path, {key: value for key, value in header.items() if key not in ("format", "rows", "sha256")}, rows
    )
    with pytest.raises(Exception, match="began with another targets"):
        call_main("sft.run", *words, "--resume_from_checkpoint", "true")
    assert Trainer
