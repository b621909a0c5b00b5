"""A published adapter against its card: whatever is changed after the evaluation is found, and named."""

import functools
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_double import TOKEN, Fault, HubDouble

from eval.adapter import find_adapter
from eval.generate import load_rewriter
from eval.results import SCHEMA
from publish.card import list_metrics
from publish.folder import write_publish_folder
from publish.verify import check_files, compare_scores, download, main, rerun
from sft.command import InputError
from sft.hub import HubFailure
from sft.run_dir import Run

REPO = "me/adapter"
Files = dict[str, bytes]


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubDouble) -> None:
    """Requests go to the double, with an empty cache, and waits are a thousand times shorter."""
    from huggingface_hub import constants

    sleep = time.sleep
    settings = {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 1000))


@pytest.fixture(scope="module")
def files(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What a push of the run sends."""
    root = tmp_path_factory.mktemp("verify") / "run"
    shutil.copytree(mini_run, root)
    paths = write_publish_folder(Run(root), REPO)
    return {path.relative_to(root / "publish").as_posix(): path.read_bytes() for path in paths}


def list_failed(files: Files, folder: Path) -> list[str]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [check.what for check in check_files(folder) if not check.holds]


def edit_card(pattern: str, replacement: str) -> Callable[[Files], Files]:
    def edit(files: Files) -> Files:
        card, times = re.subn(pattern, replacement, files["README.md"].decode(), count=1)
        assert times == 1
        return files | {"README.md": card.encode()}

    return edit


def edit_config(**values: Any) -> Callable[[Files], Files]:
    return lambda files: (
        files
        | {
            "adapter_config.json": json.dumps(
                json.loads(files["adapter_config.json"]) | values, indent=2
            ).encode()
        }
    )


def edit_json(name: str, *keys: str, value: Any) -> Callable[[Files], Files]:
    def edit(files: Files) -> Files:
        content = inner = json.loads(files[name])
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return files | {name: json.dumps(content).encode()}

    return edit


edit_results, edit_record = (
    functools.partial(edit_json, "results.json"),
    functools.partial(edit_json, "card.json"),
)


CONFIG = "SHA-256 of adapter_config.json"


@pytest.mark.parametrize(
    ("edit", "failed"),
    [
        (lambda files: files, []),
        (edit_card(r"\A---\n", "---\nthumbnail: x.png\n"), []),
        (edit_card(r"\Z", "\n## Results\n\nMore words, BLEU 99.\n"), []),  # a person's, below the generated part
        (edit_card(r"\*\*BLEU \S+", "**BLEU 99.9"), ["the card: **BLEU"]),
        (edit_card(r"\*\*BLEU .*", ""), ["the card: **BLEU"]),
        (edit_card(r"\| this adapter \| \S+", "| this adapter | 99.9"), ["the card: BLEU of this adapter"]),
        (edit_card(r"\| input copied \| \S+", "| input copied | 0.1"), ["the card: BLEU of input copied"]),
        (edit_card(r"\| input copied \|.*\n", ""), ["the card: | input copied |"]),
        (edit_card(r"(\| input copied \|.*\n)", r"\1| GPT-9 | 1 |\n"), ["the card: | GPT-9 | 1 |"]),
        (edit_card(r"- BLEU [+-]\S+", "- BLEU +9.9"), ["the card: - BLEU"]),
        (edit_card(r"name: ROUGE-1\n", "name: chrF\n"), ["chrF on the card", "ROUGE-1 on the card"]),
        (edit_card(r"A LoRA adapter for", "The best adapter for"), ["the card: A LoRA adapter for"]),
        (edit_card(r'base, revision = "PATH/TO/THE/BASE"', 'base, revision = "me/evil"'), ["the card: base, revision ="]),
        (edit_card(r"## Samples\n\n(.*\n.*\n)\|[^|]*\|", r"## Samples\n\n\1| nice |"), ["the card: toxic of"]),
        (edit_card(r"\d+ sentences for validation", "9999 sentences for validation"), ["the card: - "]),
        (edit_card(r"It can leave toxicity in", "It never leaves toxicity in"), ["the card: - It can"]),
        (edit_card(r"library_name: peft", "library_name: peft\nbase_model: me/other"), ["base_model in the card's metadata"]),
        (edit_card(r"license: apache-2.0", "license: mit"), ["license in the card's metadata"]),
        (edit_card(r"(?s)widget:.*?\nmodel-index", "widget: []\nmodel-index"), ["widget in the card's metadata"]),
        (edit_card(r"(dataset:\n +name: .*\n) +type: \S+", r"\1      type: x"), ["model-index in the card's metadata"]),
        (edit_record("manifest", "source", value="x"), ["data of card.json", "the card: - data"]),
        (edit_results("generation", "num_beams", value=65), ["settings that can be used", "the card: output", "the card: The"]),
        (edit_config(target_modules="(.*)*x"), [CONFIG, "settings that can be used"]),
        (edit_config(lora_alpha=64), [CONFIG]),
        (edit_config(revision="0" * 40), [CONFIG, "base model"]),
        (edit_config(base_model_name_or_path="me/other"), [CONFIG, "base model"]),
        (edit_results("adapter", "config_sha256", value="0" * 64), [CONFIG]),
    ],
)  # fmt: skip
def test_each_change_is_found_and_named(
    files: Files, edit: Callable[[Files], Files], failed: list[str], tmp_path: Path
) -> None:
    found = list_failed(edit(files), tmp_path)
    assert len(found) == len(failed), found
    assert all(what.startswith(start) for what, start in zip(found, failed, strict=True)), found


@pytest.mark.parametrize("edit", [
    edit_card(r"(?s)    metrics:\n.*?\n---", "    metrics: []\n---"), edit_card(r"(?s)model-index:\n.*?\n---", "x: 1\n---"),
])  # fmt: skip
def test_a_card_without_metrics_fails_for_each(
    files: Files, edit: Callable[[Files], Files], tmp_path: Path
) -> None:
    names = [name for _, name, _ in list_metrics(json.loads(files["results.json"]))]
    assert {"BLEU", "chrF", "ROUGE-L", "joint"} <= set(names)
    assert list_failed(edit(files), tmp_path) == [f"{name} on the card" for name in names]


def test_an_older_results_file_is_not_enough(files: Files, tmp_path: Path) -> None:
    results = json.loads(files["results.json"])
    del results["adapter"]["config_sha256"]
    assert list_failed(files | {"results.json": json.dumps(results).encode()}, tmp_path) == [CONFIG]


@pytest.mark.usefixtures("reach")
def test_what_another_version_published(
    hub: HubDouble, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("model", REPO, edit_results("schema", value=3)(files))
    monkeypatch.setattr("sys.argv", ["verify", REPO])
    message = rf"{REPO}: results\.json has schema 3, and this version reads {SCHEMA}\. Verify with the"
    with pytest.raises(InputError, match=message):
        main()


@pytest.mark.usefixtures("reach")
def test_what_is_checked_is_the_newest_commit(hub: HubDouble, files: Files) -> None:
    first = hub.add_repo("model", REPO, files)
    assert download(REPO, None).name == first
    second = hub.repos["model", REPO].commit_files("refs/heads/main", files | {"README.md": b"other"})
    folder = download(REPO, None)
    assert (folder.name, (folder / "README.md").read_bytes()) == (second, b"other")
    assert download(REPO, first).name == first
    hub.add_repo("model", "me/bare", {"README.md": b""})
    with pytest.raises(InputError, match=r"me/bare: no adapter_config.json, .* in it\. Expected an adapter"):
        download("me/bare", None)
    with pytest.raises(InputError, match=r"me/none is neither a local adapter nor one on the Hub"):
        download("me/none", None)


@pytest.mark.usefixtures("reach")
@pytest.mark.parametrize("request_pattern", ["GET /api/models/", "(GET|HEAD) .*/resolve/"])
@pytest.mark.parametrize("how", [500, 503, "cut"])
def test_a_hub_that_fails_is_told_and_no_old_copy_is_verified(
    hub: HubDouble, files: Files, how: int | str, request_pattern: str
) -> None:
    hub.add_repo("model", REPO, files)
    download(REPO, None)
    hub.repos["model", REPO].commit_files("refs/heads/main", files | {"README.md": b"other"})
    hub.faults.append(Fault(request_pattern, how, times=999))
    with pytest.raises(HubFailure, match=r"me/adapter: .*Hub.* Nothing was verified") as caught:
        download(REPO, None)
    assert caught.value.status == 4
    hub.faults[:] = [Fault(request_pattern, how)]
    assert (download(REPO, None) / "README.md").read_bytes() == b"other", (
        "what fails in passing is tried again"
    )


@pytest.mark.usefixtures("reach")
def test_without_requests_nothing_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubFailure, match="HF_HUB_OFFLINE is set"):
        download(REPO, None)


@pytest.mark.usefixtures("reach")
@pytest.mark.parametrize("request_pattern", ["GET /api/models/", "(GET|HEAD) .*/resolve/"])
@pytest.mark.parametrize("how", [500, 503, "cut"])
def test_an_adapter_from_a_hub_that_fails(
    hub: HubDouble, files: Files, how: int | str, request_pattern: str
) -> None:
    hub.add_repo("model", REPO, files)
    hub.faults.append(Fault(request_pattern, how, times=999))
    with pytest.raises(HubFailure, match=REPO):
        find_adapter(REPO)


def take_base(files: Files, commit: str) -> Files:
    """Return the files as of a run whose base is me/base on the Hub, with an older results.json."""
    results = json.loads(files["results.json"])
    del results["adapter"]["config_sha256"]
    results["base"] = {"name": "me/base", "revision": commit, "weights": {}}
    edit = edit_config(base_model_name_or_path="me/base", revision=commit)
    return edit(files) | {"results.json": json.dumps(results).encode()}


@pytest.mark.usefixtures("reach")
def test_an_adapter_whose_config_was_changed(hub: HubDouble, files: Files) -> None:
    commit = hub.add_repo("model", "me/base", {"config.json": b"{}"})
    hub.add_repo("model", REPO, take_base(files, commit))
    assert find_adapter(REPO).base.name == "me/base", "an older results.json is used as before"
    hub.add_repo("model", "me/config", edit_config(lora_alpha=64)(files))
    with pytest.raises(
        InputError, match=r"me/config: its adapter_config\.json was changed after the evaluation"
    ):
        find_adapter("me/config")
    hub.add_repo("model", "me/commit", edit_config(revision="0" * 40)(take_base(files, commit)))
    with pytest.raises(
        InputError, match=r"me/commit: its adapter_config\.json names another base model or revision"
    ):
        find_adapter("me/commit")


@pytest.mark.usefixtures("reach")
@pytest.mark.parametrize("how", [503, "cut"])
def test_a_base_from_a_hub_that_fails(hub: HubDouble, files: Files, mini_base: Path, how: int | str) -> None:
    commit = hub.add_repo("model", "me/base", mini_base)
    hub.add_repo("model", REPO, take_base(files, commit))
    hub.faults.append(Fault("me/base/", how, times=999))
    with pytest.raises(HubFailure, match=r"me/adapter: its base model: .*me/base"):
        find_adapter(REPO)
    hub.faults.clear()
    adapter = find_adapter(REPO)
    hub.faults.append(Fault("me/base/", how, times=999))
    with pytest.raises(HubFailure, match="me/base: the Hub failed to deliver it"):
        load_rewriter(adapter)
    hub.faults.clear()
    load_rewriter(adapter)
    hub.faults.append(Fault("", 503, times=9999))
    load_rewriter(find_adapter(REPO))  # all of it is in the cache


@pytest.mark.parametrize("name", ["/etc", "~", "../base"])
def test_a_base_outside_of_the_project_is_refused(name: str, files: Files, tmp_path: Path) -> None:
    files = edit_results("base", "name", value=name)(edit_config(base_model_name_or_path=name)(files))
    assert "settings that can be used" in list_failed(files, tmp_path)


def tamper(results: Any, path: str, value: Any) -> None:
    *parts, last = path.split(".")
    for part in parts:
        results = results[int(part) if part.isdecimal() else part]
    assert results[last] != value
    results[last] = value


INVENTED = [
    ("systems.adapter.joint.value", 0.999),
    ("systems.adapter.toxicity.value", 0.001),
    ("systems.adapter.bleu.high", 99.0),
    ("systems.copy.bleu.value", 12.3),
    ("systems.delete.chrf.value", 12.3),
    ("systems.base.bleu.value", 12.3),
    ("ceiling.systems.human.bleu.value", 33.3),
    ("ceiling.rows", 1),
    ("differences.copy.bleu.low", 50.0),
    ("slices.0.systems.copy.bleu.value", 1.0),
    ("stress.0.passed", 99),
    ("toxicity_accuracy", 0.999),
]


@pytest.mark.slow
def test_rerun_makes_every_row_again(
    mini_run: Path, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up score fails, whatever card and results say of one another; nothing else does."""
    for name in ("results.json", "recipe.yaml"):
        (tmp_path / name).write_bytes(files[name])
    monkeypatch.setattr("eval.adapter.download_adapter", lambda *_: find_adapter(str(mini_run)))
    source = Run(mini_run).recipe.data.source
    checks = rerun(REPO, tmp_path, source)
    assert len(checks) > 200
    assert not [check for check in checks if not check.holds]
    made_again = json.loads(files["results.json"])
    for path, value in INVENTED:
        results = json.loads(files["results.json"])
        tamper(results, path, value)
        failed = [check.what for check in compare_scores(results, made_again) if not check.holds]
        assert len(failed) == 1, path
        assert path.rpartition(".")[2] in failed[0]
