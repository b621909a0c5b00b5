"""The benchmarks run, so that their published commands do not rot; and what a trial leaves is not taken for a result."""

import argparse
import json
from pathlib import Path

import pytest
from conftest import run_python

from sft.model import Base, load_tokenizer, resolve_base
from sft.prompt import format_prompt
from sft.recipe import load_recipe
from sft.storage import PROJECT, read_json_lines
from sft.trl_keys import known_keys

FOLDER = PROJECT / "tests" / "benchmarks"


@pytest.fixture(autouse=True)
def find_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.slow
def test_training_side_by_side(mini_base: Path, small_data: Path, tmp_path: Path) -> None:
    words = [
        "--steps",
        2,
        "--warmup",
        1,
        "--repeats",
        1,
        "--held_out",
        1,
        "--data",
        small_data,
        "--out",
        tmp_path / "figures",
    ]
    words += ["--model_name_or_path", mini_base]
    done = run_python(FOLDER / "train.py", *words, env={"BENCHMARK_WORK": str(tmp_path / "work")})
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures" / "train-tiny-cpu.json").read_text())
    assert figures["failures"] == {}
    assert set(figures["medians"]) == {"this project", "trl sft", "report"}
    assert all(
        values["samples_per_second"] > 0 and values["held_out_loss"] > 0
        for values in figures["medians"].values()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "-2"),
        (["--batch_size", 2, "--in_16_bit", "--static_cache"], "-2-batches-of-2-16-bit-static-cache"),
    ],
)
def test_generation_side_by_side(
    options: list[object], name: str, mini_run: Path, mini_base: Path, tmp_path: Path
) -> None:
    words = [
        mini_run,
        "--sentences",
        2,
        "--report_sentences",
        1,
        "--repeats",
        1,
        "--out",
        tmp_path / "figures",
    ]
    words += ["--beams", 2, "--forced_end", *options]
    done = run_python(FOLDER / "generate.py", *words, env={"BENCHMARK_WORK": str(tmp_path / "work")})
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "figures").glob("*.json")
    assert path.stem.startswith(f"generate-{mini_base.name}-")  # not the name of the embedded base's figures
    assert path.stem.endswith(f"-cpu{name}")
    tokenizer = load_tokenizer(resolve_base(str(mini_base)))
    sentences = [line["toxic"] for line in read_json_lines(mini_run / "data" / "test.jsonl")[:2]]
    empty, *whole = (len(tokenizer(format_prompt(text))["input_ids"]) for text in ("", *sentences))
    first, second = (length - empty + 1 for length in whole)  # and the end
    medians = json.loads(path.read_text())["medians"]
    assert medians["report"]["tokens_per_sentence"] == first
    assert medians["this project"]["tokens_per_sentence"] == (first + second) / 2


def test_commands_of_all_figures_name_options_that_there_are(tmp_path: Path) -> None:
    import cpu
    import gpu

    on_cpu = argparse.Namespace(data="x.tsv", run=None, out=tmp_path)
    on_gpu = argparse.Namespace(
        data="x.tsv", device="cuda", layers=1, batch=1, steps=6, repeats=1, sentences=8, out=tmp_path
    )
    commands = [
        *cpu.list_commands(on_cpu, tmp_path),
        *gpu.list_commands(on_gpu, "recipes/bloom-tiny", str(tmp_path)),
    ]
    assert len(commands) == 7 + 10
    for script, *words in commands:
        if script == "sft/run.py":
            data = PROJECT / "recipes" / "tiny-corpus.tsv"
            load_recipe(
                words[0], [*(word for word in words[1:] if word != "--overwrite"), "--data.source", str(data)]
            )
            continue
        source = (PROJECT / script).read_text()
        overrides = known_keys() if script.endswith("/train.py") else {}
        flags = [word for word in words if word.startswith("--") and word[2:] not in overrides]
        assert all(f'"{flag}"' in source for flag in flags), script


def test_chart_leaves_trials_out(tmp_path: Path) -> None:
    import chart
    import sides

    rows = chart.collect_rows(sides.FIGURES)
    assert [label for label, _ in rows] == [
        "training, BLOOM-560M shape,\n4 bit, CPU", "training, embedded base,\n4 bit, CPU", "generation,\nembedded base, CPU",
    ]  # fmt: skip
    trial = json.loads((sides.FIGURES / "train-tiny-cpu.json").read_text()) | {"shape": "3b", "layers": 1}
    (tmp_path / "train-3b-1-layers-cpu.json").write_text(json.dumps(trial))
    real = trial | {"layers": None, "device": "cuda"}
    (tmp_path / "train-3b-cuda.json").write_text(json.dumps(real))
    assert [label for label, _ in chart.collect_rows(tmp_path)] == ["training, BLOOM-3B shape,\n4 bit, CUDA"]


def test_trials_have_files_of_their_own(tmp_path: Path) -> None:
    from sides import name_figures, name_shape
    from transformers import BloomConfig

    BloomConfig(hidden_size=2560, n_layer=1).save_pretrained(tmp_path)
    assert name_shape(Base("bloom-3b-1", str(tmp_path), None, {})) == ("3b", 1)
    assert name_shape(resolve_base("recipes/bloom-tiny")) == ("tiny", None)
    assert name_figures("train-3b", 1, "cpu") == "train-3b-1-layers-cpu"
    assert name_figures("train-3b", None, "cuda") == "train-3b-cuda"
