"""Streamed corpora: what is held out stays held out, and nothing that is held grows with the corpus."""

import itertools
from pathlib import Path

import pytest
from conftest import TINY, Main, run_python

import sft.stream
from sft.command import RunError
from sft.data import Example, normalise, tokenise_pairs
from sft.files import DataError
from sft.preflight import inspect_recipe
from sft.run_dir import Run
from sft.schema import DataConfig, RecipeFaults
from sft.splits import find_leaks, link_keys
from sft.storage import read_json, read_json_lines
from sft.stream import RowSettings, read_splits, stream_training_rows

WHOLE = ["--data.closest", "false", "--data.swaps", "0", "--data.inserts", "0"]
STREAMED = [*WHOLE, "--data.streaming", "true"]


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """600 sentences; of each third another differs by a word, and of each seventh another's rewrite is it."""
    lines = ["toxic\tneutral1\tneutral2"]
    for number in range(600):
        text = f"number {number} is what the damn fool over there said to me {number + 7000} times"
        lines.append(f"{text}\tnumber {number} is what they said\tthey said {number}")
        if number % 3 == 0:
            lines.append(f"{text.replace('damn', 'bloody')}\tthey said {number} to me\t")
        if number % 7 == 0:
            lines.append(f"and {number} times worse , you idiot\t{text}\t")
    path = tmp_path / "corpus.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def configure(path: Path, **values: object) -> DataConfig:
    return DataConfig(source=str(path), streaming=True, validation=0.1, test=0.1, **values)  # type: ignore[arg-type]


def take_epoch(
    config: DataConfig, tokenizer: object, batch_size: int | None = None, epochs: int = 1
) -> list[list[tuple[int, ...]]]:
    """Return the rows of each epoch."""
    corpus, splits = read_splits(config)
    held_out = [*splits["validation"], *splits["test"]]
    links = sft.splits.Links(held_out)
    trained = [example for example in sft.stream.read_corpus(config).examples if not links.hold(example)]
    rows = len(tokenise_pairs(trained, tokenizer, None).rows)  # type: ignore[arg-type]
    stream = stream_training_rows(config, corpus, held_out, tokenizer, RowSettings(None, True, batch_size, 0))  # type: ignore[arg-type]
    return [[tuple(row["input_ids"]) for row in itertools.islice(stream, rows)] for _ in range(epochs)]


@pytest.fixture(scope="module")
def tokenizer(mini_base: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(mini_base)


def test_no_linked_sentence_is_trained_on(corpus_file: Path, tokenizer: object) -> None:
    config = configure(corpus_file)
    corpus, splits = read_splits(config)
    assert corpus.counts["rows"] == 600 + 200 + 86
    assert all(40 < len(splits[split]) < 160 for split in ("validation", "test"))
    assert not find_leaks(splits)
    (rows,) = take_epoch(config, tokenizer)
    prompts = {tokenizer.decode(row).split("\n")[1].strip() for row in rows}  # type: ignore[attr-defined]
    keys = {
        key
        for split in ("validation", "test")
        for example in splits[split]
        for key in link_keys(example.toxic)
    }
    assert len(prompts) > 300
    assert not any(key in keys for prompt in prompts for key in link_keys(prompt))
    assert {example.toxic for example in splits["train"]} == prompts  # fewer than the sample's size


@pytest.mark.parametrize("batch_size", [None, 8])
def test_an_epoch_has_each_training_row_once(
    corpus_file: Path, tokenizer: object, batch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft.stream, "WINDOW", 100)
    first, second = take_epoch(configure(corpus_file), tokenizer, batch_size, epochs=2)
    assert len(set(first)) == len(first)
    assert sorted(first) == sorted(second)
    assert first != second  # in another order
    assert take_epoch(configure(corpus_file), tokenizer, batch_size)[0] == first
    if batch_size:
        mixed = take_epoch(configure(corpus_file), tokenizer)[0]
        widths = [
            sum(max(map(len, rows[i : i + batch_size])) for i in range(0, len(rows), batch_size))
            for rows in (first, mixed)
        ]
        assert widths[0] < widths[1]  # less padding


def test_held_out_sentences_are_bounded_and_the_same_in_any_order(
    corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft.stream, "HELD_OUT", 20)
    monkeypatch.setattr(sft.stream, "SAMPLE", 50)
    monkeypatch.setattr("sft.files.CHUNK", 64)
    _, splits = read_splits(configure(corpus_file))
    assert [
        len({normalise(e.toxic) for e in splits[s]}) <= n
        for s, n in (("test", 20), ("validation", 20), ("train", 50))
    ] == [True] * 3
    assert len({normalise(e.toxic) for e in splits["test"]}) == 20
    header, *lines = corpus_file.read_text().splitlines()
    corpus_file.write_text("\n".join([header, *reversed(lines)]) + "\n")
    _, again = read_splits(configure(corpus_file))
    for split, examples in splits.items():
        assert {e.toxic for e in examples} == {e.toxic for e in again[split]}


def test_rows_of_a_sentence_are_one_however_far_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.files.CHUNK", 10)
    rows = [
        f"sentence {number} , you fool\trewrite {number} {side}" for side in "ab" for number in range(200)
    ]
    path = tmp_path / "pairs.tsv"
    path.write_text("toxic\tneutral1\n" + "\n".join(rows) + "\n")
    _, splits = read_splits(configure(path))
    for example in splits["test"]:
        number = example.toxic.split()[1]
        assert example == Example(example.toxic, (f"rewrite {number} a", f"rewrite {number} b"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_each_kind_of_file(corpus_file: Path, tmp_path: Path, suffix: str) -> None:
    import datasets

    table = datasets.Dataset.from_csv(str(corpus_file), sep="\t", keep_default_na=False)
    path = tmp_path / f"corpus{suffix}"
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[suffix](str(path))
    assert read_splits(configure(path))[1] == read_splits(configure(corpus_file))[1]


def test_changed_file_is_refused(corpus_file: Path, tokenizer: object) -> None:
    config = configure(corpus_file)
    corpus, _ = read_splits(config)
    corpus_file.write_text(corpus_file.read_text() + "one more , you fool\tone more\n")
    with pytest.raises(DataError, match="changed while it was read"):
        next(stream_training_rows(config, corpus, [], tokenizer, RowSettings(None, True, None, 0)))  # type: ignore[arg-type]


@pytest.mark.slow
def test_streamed_run_resumes_to_the_same_bytes(
    mini_arguments: list[str], call_main: Main, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = [*mini_arguments, *STREAMED, "--max_steps", "24", "--eval_steps", "12", "--save_steps", "12"]
    call_main("sft.run", *arguments, "--output_dir", whole)
    lines = [line for line in read_json_lines(whole / "train.jsonl") if "loss" in line]
    assert lines[-1]["step"] == 24  # 24 steps of 24 rows: several epochs of this corpus
    assert read_json(Run(whole).manifest_path)["streaming"] is True

    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys\nsys.path.insert(0, os.getcwd())\nfrom transformers import TrainerCallback\nimport sft.train\n"
        "class Kill(sft.train.ProgressLog):\n    def on_step_begin(self, args, state, control, **kwargs):\n"
        "        super().on_step_begin(args, state, control, **kwargs)\n"
        "        if state.global_step == 16:\n            os._exit(9)\n"
        "sft.train.ProgressLog = Kill\nfrom sft.run import main\nmain()\n"
    )
    assert run_python(script, *arguments, "--output_dir", broken).returncode == 9
    call_main("sft.run", *arguments, "--output_dir", broken, "--resume_from_checkpoint", "true")
    assert Run(broken).adapter_weights.read_bytes() == Run(whole).adapter_weights.read_bytes()

    call_main("eval.run", whole, "--limit", "3")
    with pytest.raises(RunError, match="its training rows were streamed"):
        call_main("eval.run", whole, "--source", mini_arguments[mini_arguments.index("--data.source") + 1])


@pytest.mark.slow
def test_two_processes_train_on_a_stream(mini_arguments: list[str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = run_python(
        *launcher, "sft/run.py", *mini_arguments, *STREAMED, "--max_steps", 4, "--output_dir", root
    )
    assert done.returncode == 0, done.stderr
    assert Run(root).is_finished()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*STREAMED, "--max_steps", "-1"], "max_steps: a stream has no end. Expected the number of steps."),
        (
            [*STREAMED, "--packing", "true"],
            "--packing: needs the whole corpus in memory, and data.streaming is true. Keep one.",
        ),
        (["--data.streaming", "true", "--max_steps", "5"], "data.swaps: needs the whole corpus in memory"),
    ],
)
def test_what_a_stream_can_not_have(words: list[str], message: str) -> None:
    with pytest.raises(RecipeFaults) as caught:
        inspect_recipe(str(TINY), words)
    assert message in str(caught.value)
