"""Distillation: targets that a teacher writes, the same whatever happens on the way, and teachers that are refused."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import Main, run_python

from eval.adapter import find_adapter, open_adapter
from eval.distil import Candidate, check_teacher, choose_targets, offer_texts
from eval.generate import Rewriter, load_rewriter
from eval.toxicity import fit_toxicity
from sft.command import InputError, Refusal, RunError
from sft.data import Example
from sft.prompt import format_prompt
from sft.run_dir import Run
from sft.storage import PROJECT, read_json, read_json_lines, write_json, write_text


def test_every_training_sentence_has_one_target_of_those_offered(taught: tuple[Path, Path]) -> None:
    run, path = Run(taught[0]), taught[1]
    header, *rows = read_json_lines(path)
    examples = run.splits["train"]
    assert [row["id"] for row in rows] == [example.id for example in examples]
    people = [row["target"] in example.references for row, example in zip(rows, examples, strict=True)]
    assert [row["by"] == "people" for row in rows] == people
    assert header["from_people"] == sum(people)
    assert all(row["target"] != example.toxic for row, example in zip(rows, examples, strict=True))
    assert header["teacher"]["adapter"] == open_adapter(run).hashes
    assert header["splits"] == {
        split: part["sha256"] for split, part in read_json(run.manifest_path)["splits"].items()
    }


def test_likelihoods_are_the_models_own(mini_run: Path) -> None:
    import torch

    rewriter = load_rewriter(open_adapter(Run(mini_run)))
    pairs = [
        ("you damn fool", "you"),
        ("shut up", "please be quiet now"),
        ("what a load of crap", "no"),
        ("x", "y z"),
    ]
    found = rewriter.measure_likelihood(pairs)
    for (text, answer), value in zip(pairs, found, strict=True):
        prompt = rewriter.tokenizer(format_prompt(text))["input_ids"]
        tokens = [
            *rewriter.tokenizer(answer, add_special_tokens=False)["input_ids"],
            rewriter.tokenizer.eos_token_id,
        ]
        logits = rewriter.model(torch.tensor([prompt + tokens])).logits[0].float().log_softmax(-1)
        told = [logits[len(prompt) + place - 1, token].item() for place, token in enumerate(tokens)]
        assert value == pytest.approx(sum(told) / len(told), abs=0.02)  # bfloat16


def test_large_vocabularies_are_scored_a_few_rows_at_a_time(
    mini_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewriter = load_rewriter(open_adapter(Run(mini_run)))
    pairs = [("you damn fool", "you"), ("shut up you", "please be quiet now"), ("what a load", "no")]
    whole = rewriter.measure_likelihood(pairs)
    monkeypatch.setattr("eval.generate.LOGITS", 1)
    assert rewriter.measure_likelihood(pairs) == pytest.approx(whole, abs=0.02)


def test_beams_are_different_and_finished(mini_run: Path) -> None:
    rewriter = load_rewriter(open_adapter(Run(mini_run)))
    (proposed, none) = rewriter.propose(["you damn fool", " "], 4)
    assert none == []
    assert len(set(proposed)) == len(proposed) <= 4
    assert all(text.strip() == text != "" for text in proposed)


def test_the_rule_weighs_likelihood_against_toxicity() -> None:
    likely, harmless = Candidate("a", -0.1, 0.9, 0), Candidate("b", -0.4, 0.1, 0)
    assert max(likely, harmless, key=Candidate.score) is harmless
    assert max(likely, Candidate("c", -2.0, 0.1, 0), key=Candidate.score) is likely
    listed = Candidate("d", -0.1, 0.1, 1)
    assert max(listed, harmless, key=Candidate.score) is harmless
    assert max(listed, Candidate("e", -0.8, 0.1, 0), key=Candidate.score) is listed
    assert Candidate("f", -1.0, 1.0, 0).score() > -10, "finite"


def test_neither_the_sentence_itself_nor_what_is_no_line_is_offered() -> None:
    example = Example("damn it", ("stop it", "no"))
    assert offer_texts(example, ["damn it", "stop it", "it\n", "", "\x07", "it"]) == ["stop it", "it", "no"]


def test_a_sentence_without_any_rewrite_has_no_target(mini_run: Path) -> None:
    examples = Run(mini_run).splits["train"][:2]
    rows = choose_targets(examples, [[], ["fine"]], [-1.0], fit_toxicity(Run(mini_run).splits["train"]))
    assert [row["id"] for row in rows] == [examples[1].id]


def test_interrupted_distillation_goes_on_and_gives_the_same_file(
    taught: tuple[Path, Path], call_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = taught
    small = tmp_path / "run"
    shutil.copytree(run, small)
    write_text(
        Run(small).recipe_path,
        Run(small).recipe_path.read_text().replace("  batch_size: 64", "  batch_size: 16"),
    )
    output = tmp_path / "targets.jsonl"
    call_main("eval.distil", small, "--output", output, "--num_beams", 4)
    expected = output.read_bytes()
    output.unlink()
    batches: list[int] = []
    for method, most in (("search", 3), ("score_batch", 2)):
        original = getattr(Rewriter, method)

        def stop(
            self: Rewriter,
            rows: list[list[int]],
            *rest: object,
            most: int = most,
            original=original,
            **options: object,
        ):
            if len(batches) == most:
                raise KeyboardInterrupt
            batches.append(len(rows))
            return original(self, rows, *rest, **options)

        batches.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Rewriter, method, stop)
            with pytest.raises(KeyboardInterrupt):
                call_main("eval.distil", small, "--output", output, "--num_beams", 4)
        assert not output.exists()
        assert list(tmp_path.glob(".targets.jsonl.unfinished/*/0.jsonl"))
    call_main("eval.distil", small, "--output", output, "--num_beams", 4)
    assert output.read_bytes() == expected
    assert not list(tmp_path.glob(".targets*"))
    assert whole.exists()


@pytest.mark.slow
def test_two_processes_killed_and_gone_on_with_give_the_file_of_one(
    taught: tuple[Path, Path], tmp_path: Path
) -> None:
    run, whole = taught
    output = tmp_path / "targets.jsonl"
    command = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "eval/distil.py",
        run,
        "--output",
        output,
    ]
    command += ["--num_beams", "4"]
    launcher = psutil.Popen(
        [sys.executable, *map(str, command)],
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".targets.jsonl.unfinished/*/*.jsonl")) and launcher.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    processes = [launcher, *launcher.children(recursive=True)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes)
    assert not output.exists()
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == whole.read_bytes()


def test_a_teacher_that_knows_what_is_held_out_is_refused(mini_run: Path, tmp_path: Path) -> None:
    teacher = Run(tmp_path / "teacher")
    shutil.copytree(mini_run, teacher.root)
    lines = {split: read_json_lines(teacher.split_path(split)) for split in ("train", "test")}
    swapped = {"train": lines["test"], "test": lines["train"]}
    from sft.splits import hash_examples
    from sft.storage import write_json_lines

    manifest = read_json(teacher.manifest_path)
    for split, rows in swapped.items():
        write_json_lines(teacher.split_path(split), rows)
        examples = [Example(row["toxic"], tuple(row["references"])) for row in rows]
        manifest["splits"][split]["sha256"] = hash_examples(examples)
    write_json(teacher.manifest_path, manifest)
    adapter = open_adapter(Run(mini_run))
    message = f"it was trained on {len(lines['test'])} sentences of the test split of {mini_run}"
    with pytest.raises(Refusal, match=message):
        check_teacher(str(teacher.root), adapter, Run(mini_run))


def test_a_teacher_taught_by_an_unknown_one_is_unknown(mini_run: Path, tmp_path: Path) -> None:
    teacher = Run(tmp_path / "teacher")
    shutil.copytree(mini_run, teacher.root)
    adapter = open_adapter(Run(mini_run))
    assert check_teacher(str(teacher.root), adapter, Run(mini_run)) == "nothing held out"
    manifest = read_json(teacher.manifest_path)
    parts = {"file": "t.jsonl", "sha256": "0", "sentences": 1, "rule": "r", "from_people": 0, "alone": True}
    taught = {
        "name": "t",
        "adapter": {"sha256": "0"},
        "base": {"name": "b", "revision": None},
        "num_beams": 8,
    }
    manifest["targets"] = parts | {"teacher": taught | {"has_seen": "unknown"}}
    write_json(teacher.manifest_path, manifest)
    assert check_teacher(str(teacher.root), adapter, Run(mini_run)) == "unknown"
    write_json(teacher.manifest_path, manifest | {"targets": None, "streaming": True})
    assert check_teacher(str(teacher.root), adapter, Run(mini_run)) == "unknown"


def test_what_a_published_teacher_has_seen_is_told_by_its_splits(mini_run: Path, tmp_path: Path) -> None:
    adapter = find_adapter(str(mini_run))
    results = read_json(mini_run / "eval" / "results.json")
    for splits, seen in ((results["data"]["splits"], "nothing held out"), ({}, "unknown"), (None, "unknown")):
        folder = tmp_path / f"published-{seen}-{splits is None}"
        shutil.copytree(mini_run / "adapter", folder)
        data = {key: value for key, value in results["data"].items() if key != "splits"}
        write_json(
            folder / "results.json", results | {"data": data | ({} if splits is None else {"splits": splits})}
        )
        from dataclasses import replace

        assert check_teacher("owner/name", replace(adapter, folder=folder), Run(mini_run)) == seen


def test_another_file_is_not_replaced(mini_run: Path, call_main: Main, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="a file that holds no targets"):
        call_main("eval.distil", mini_run, "--output", tmp_path / "thesis.txt")
    with pytest.raises(InputError, match="a folder"):
        call_main("eval.distil", mini_run, "--output", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_hub_id_alone_names_no_sentences(call_main: Main) -> None:
    with pytest.raises(InputError, match="Name the run whose training sentences it rewrites: --run RUN_DIR"):
        call_main("eval.distil", "owner/name")


def test_a_streamed_run_has_no_sentences_to_rewrite(mini_run: Path, call_main: Main, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(mini_run, run.root)
    write_json(run.manifest_path, read_json(run.manifest_path) | {"streaming": True})
    with pytest.raises(RunError, match="its training rows were streamed"):
        call_main("eval.distil", run.root)


@pytest.mark.slow
def test_a_student_of_another_base_says_on_its_card_who_taught_it(
    taught: tuple[Path, Path], mini_arguments: list[str], call_main: Main, tmp_path: Path
) -> None:
    """Teacher: the miniature. Student: another base, with other widths and another vocabulary, of the same sentences."""
    _, path = taught
    student = tmp_path / "student"
    words = [
        *mini_arguments,
        "--model_name_or_path",
        "recipes/bloom-tiny",
        "--data.targets",
        path,
        "--output_dir",
        student,
    ]
    call_main("sft.run", *words, "--max_steps", "2", "--eval.stress", "false", "--eval.baselines", "copy")
    call_main("eval.run", student)
    call_main("publish.run", student)
    card = (student / "publish" / "README.md").read_text(encoding="utf-8")
    header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert header["teacher"]["adapter"]["sha256"] in card
    assert "what a teacher wrote (sequence-level distillation" in card
    assert "is unknown" not in card
    assert read_json(student / "eval" / "results.json")["base"]["name"] != header["teacher"]["base"]["name"]
    manifest = read_json(student / "data" / "manifest.json")
    manifest["targets"]["teacher"]["has_seen"] = "unknown"
    write_json(student / "data" / "manifest.json", manifest)
    Run(student).seal(Run(student).adapter)
    call_main("publish.run", student)
    assert "**Whether its teacher was trained on" in (student / "publish" / "README.md").read_text(
        encoding="utf-8"
    )
