"""The push, against a Hub that fails in every call: the repository is as before or complete, and nothing goes twice."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import FAULTS_SEEN, run_python
from hub_double import TOKEN, Fault, HubDouble, Repo
from huggingface_hub import HfApi

import publish.push as module
from publish.card import BEGIN, END, merge_card
from publish.push import HubFailure, Target, push
from sft.recipe import PROJECT
from sft.run_dir import Refusal

CARD = f"---\nlicense: mit\nlibrary_name: peft\n---\n\n{BEGIN}\n\n# Adapter\n\n{END}\n"
FILES = {"README.md": CARD.encode(), "adapter_model.safetensors": bytes(range(256)) * 20, "plots/loss.png": b"\x89PNG..."}
REPO = "me/adapter"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No xet, an empty cache, and waits a thousand times shorter, huggingface_hub's own among them."""
    from huggingface_hub import constants

    sleep = time.sleep
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 1000))
    monkeypatch.setattr(module, "TIMEOUT", 1.0)


def connect(hub: HubDouble) -> HfApi:
    return module.connect(hub.url, TOKEN)


def find(hub: HubDouble) -> Repo:
    return hub.repos["model", REPO]


def count_pushes(hub: HubDouble) -> int:
    return list(find(hub).titles.values()).count("title")


def holds_all(hub: HubDouble) -> bool:
    return FILES.items() <= find(hub).files.items()


def test_new_repository_is_made_private_and_filled_in_one_commit(hub: HubDouble) -> None:
    outcome = push(connect(hub), FILES, Target(REPO, tag="v1"), "title")
    repo = find(hub)
    assert repo.private
    assert holds_all(hub)
    assert [repo.titles[oid] for oid in repo.history] == ["initial commit", "title"]
    assert repo.refs["refs/tags/v1"] == repo.commit == outcome.commit
    assert outcome.url == f"{hub.url}/{REPO}/commit/{outcome.commit}"
    assert {change.state for change in outcome.changes} == {"new"}


def test_same_files_again_send_nothing(hub: HubDouble) -> None:
    first = push(connect(hub), FILES, Target(REPO), "title")
    hub.requests.clear()
    again = push(connect(hub), FILES, Target(REPO, tag="v1"), "title")
    assert (again.commit, again.committed) == (first.commit, False)
    assert {method for method, path in hub.requests if "/tag/" not in path} <= {"GET", "HEAD"}
    assert find(hub).refs["refs/tags/v1"] == first.commit


def test_large_files_go_in_parts(hub: HubDouble) -> None:
    hub.part_size = 1000
    push(connect(hub), FILES, Target(REPO), "title")
    assert holds_all(hub)
    assert ("POST", "/lfs-complete") in hub.requests


def test_other_files_and_a_persons_words_stay(hub: HubDouble) -> None:
    theirs = CARD.replace("license: mit", "license: mit\nthumbnail: x.png").replace(BEGIN, f"Our lab's words.\n\n{BEGIN}")
    theirs = theirs.replace("# Adapter", "# Old") + "\nMore words.\n"
    hub.add_repo("model", REPO, {"notes.txt": b"theirs", "README.md": theirs.encode()})
    for _ in range(2):
        push(connect(hub), FILES, Target(REPO), "title")
        files = find(hub).files
        assert files["notes.txt"] == b"theirs"
        card = files["README.md"].decode()
        assert re.search(
            r"thumbnail: x.png\n---\n\nOur lab's words\.\n\n<!--.*# Adapter.*-->\n\nMore words\.\n$", card, re.DOTALL
        )
        assert "# Old" not in card
    assert count_pushes(hub) == 1


def test_merging_a_card() -> None:
    assert merge_card(CARD, CARD) == CARD
    assert merge_card(CARD, "") == CARD
    by_hand = merge_card(CARD, "---\nlicense: apache-2.0\ntitle: Ours\n---\nBy hand.\n")
    assert by_hand == CARD.replace("peft\n", "peft\ntitle: Ours\n") + "\nBy hand.\n"
    assert merge_card(CARD, by_hand) == by_hand
    for broken in (f"x\n{BEGIN}\n", f"{END}\n{BEGIN}\n", CARD + CARD, "---\na: [\n---\n"):
        with pytest.raises(Refusal, match=r"README.md on the Hub"):
            merge_card(CARD, broken)


def test_branch_and_pull_request(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"a": b"b"})
    push(connect(hub), FILES, Target(REPO, revision="next"), "title")
    assert find(hub).files == {"a": b"b"}
    assert FILES.items() <= find(hub).history[find(hub).refs["refs/heads/next"]].items()
    for _ in range(2):  # the second time the open pull request is found
        push(connect(hub), FILES, Target(REPO, pull_request=True), "title")
        assert find(hub).files == {"a": b"b"}
        assert find(hub).pull_requests() == ["refs/pr/1"]
        assert FILES.items() <= find(hub).history[find(hub).refs["refs/pr/1"]].items()


def test_pull_request_whose_answer_is_lost_is_not_opened_twice(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"a": b"b"})
    hub.faults.append(Fault("POST .*/commit/", "cut", late=True))
    push(connect(hub), FILES, Target(REPO, pull_request=True), "title")
    assert find(hub).pull_requests() == ["refs/pr/1"]


def test_what_cant_be_done_as_asked_is_refused_before_anything_is_sent(hub: HubDouble) -> None:
    commit = hub.add_repo("model", REPO, {"a": b"b"})
    find(hub).refs["refs/tags/v1"] = commit
    with pytest.raises(Refusal, match=r"the tag v1 is at commit .* already\. Choose another\. Nothing was sent"):
        push(connect(hub), FILES, Target(REPO, tag="v1"), "title")
    with pytest.raises(Refusal, match=r"is public, and --private was asked for"):
        push(connect(hub), FILES, Target(REPO, private=True), "title")
    assert all(method in ("GET", "HEAD") for method, _ in hub.requests)


FAULTS = [
    *itertools.product(
        [
            "GET /api/whoami", "GET /api/models/me/adapter$", "GET .*/refs", "GET .*/revision/main", "GET .*/tree/",
            "(HEAD|GET) .*/resolve/", "POST /api/validate-yaml", "POST .*/preupload/", "POST .*/lfs/objects/batch",
            "PUT /lfs/", "POST /lfs-verify", "POST .*/commit/", "POST .*/tag/",
        ],
        [
            (503, False, 1), (429, False, 1), ("cut", False, 1), ("cut", True, 1), (500, True, 1), (500, False, 999),
            (403, False, 999),
        ],
    ),
    ("POST /api/repos/create", (503, False, 1)),
    ("POST /api/repos/create", ("cut", True, 1)),
    ("POST /api/repos/create", (500, False, 999)),
    ("POST .*/commit/", ("hang", False, 1)),
    ("POST .*/commit/", ("hang", True, 1)),
    ("POST .*/commit/", ("write", False, 1)),
    ("POST .*/commit/", ("write", False, 999)),
    ("POST .*/commit/", (412, False, 1)),
    ("POST .*/commit/", (400, False, 1)),
    ("POST .*/commit/", ("cut", True, 999)),
    ("PUT /lfs/", ("garble", True, 1)),
    ("GET /api/whoami", (401, False, 999)),
]  # fmt: skip


@pytest.mark.parametrize(("request_pattern", "fault"), FAULTS)
def test_repository_is_as_before_or_complete(hub: HubDouble, request_pattern: str, fault: tuple[int | str, bool, int]) -> None:
    how, late, times = fault
    before = {"README.md": b"---\nlicense: mit\n---\n\nBy hand.\n", "notes.txt": b"theirs"}
    if "create" not in request_pattern:
        hub.add_repo("model", REPO, before)
    hub.faults.append(Fault(request_pattern, how, late, times))
    message = None
    try:
        push(connect(hub), FILES, Target(REPO, tag="v1"), "title")
    except HubFailure as error:
        message = str(error)
    files = find(hub).files if ("model", REPO) in hub.repos else {}
    weights = files.get("adapter_model.safetensors")
    if how == "garble":
        assert message
        assert "not what was sent: adapter_model.safetensors" in message
        assert "refs/tags/v1" not in find(hub).refs
        state = "told, not tagged"
    elif weights is None:
        assert message
        assert set(files) <= {"README.md", "notes.txt", "other.txt", ".gitattributes"}
        assert "# Adapter" not in files.get("README.md", b"").decode()
        assert re.search(r"Nothing was sent|files are as before|Whether the commit landed is not known", message)
        state = "as before"
    else:
        assert all(files[name] == content for name, content in FILES.items() if name != "README.md")
        assert b"# Adapter" in files["README.md"]
        assert ("By hand." in files["README.md"].decode()) == ("create" not in request_pattern)
        state = "complete"
        assert count_pushes(hub) == 1
        if message is None:
            assert find(hub).refs["refs/tags/v1"] in find(hub).history
    if message:
        assert re.search(r"again|token|Check|Hub refused", message), "it says what to do"
        assert TOKEN not in message
    if times == 1 and how != "garble" and how != 400:
        assert message is None, "what fails in passing is tried again"
    FAULTS_SEEN.append(
        (request_pattern, f"{how}{' after it took effect' if late else ''}{' always' if times > 1 else ''}", state, message or "")
    )
    hub.faults.clear()
    if how != "garble":
        push(connect(hub), FILES, Target(REPO, tag="v1"), "title")
        assert count_pushes(hub) == 1, "committed once in all"
        assert find(hub).refs["refs/tags/v1"] in find(hub).history


def test_hub_that_fails_after_the_commit(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"notes.txt": b"theirs"})
    hub.faults.append(Fault("GET .*/tree/", 503, times=999, skip=2))  # once for the plan, once before the commit
    with pytest.raises(HubFailure, match="Whether the commit landed is not known; run the same command again"):
        push(connect(hub), FILES, Target(REPO), "title")
    hub.faults.clear()
    assert not push(connect(hub), FILES, Target(REPO), "title").committed
    assert count_pushes(hub) == 1


def test_ten_publishers_at_once(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"notes.txt": b"theirs"})

    def publish(number: int) -> str:
        files = FILES | {f"{number}.txt": b"%d" % number}
        try:
            push(connect(hub), files, Target(REPO), f"publisher {number}")
        except HubFailure as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(10) as pool:
        messages = list(pool.map(publish, range(10)))
    titles = list(find(hub).titles.values())
    for number, message in enumerate(messages):
        assert titles.count(f"publisher {number}") == (not message)
        assert (f"{number}.txt" in find(hub).files) == (not message)
        assert not message or "others committed to it in between" in message
    assert messages.count("") >= 3
    assert {"notes.txt", *FILES} <= find(hub).files.keys()


def test_no_token_and_no_hub(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(HubFailure, match=r"there is no token\. Log in with `hf auth login`"):
        push(module.connect(hub.url), FILES, Target(REPO), "title")
    with pytest.raises(HubFailure, match=r"the connection to the Hub failed"):
        push(module.connect("http://127.0.0.1:9", TOKEN), FILES, Target(REPO), "title")


def test_command_plans_pushes_and_reports(mini_run: Path, hub: HubDouble, tmp_path: Path) -> None:
    shutil.copytree(mini_run, tmp_path / "run")
    command = ["-m", "publish.run", str(tmp_path / "run"), "--repo_id", REPO, "--json"]
    environment = hub.environment(tmp_path / "home")

    def call(*more: str) -> tuple[int, dict[str, object]]:
        done = run_python(*command, *more, env=environment)
        assert TOKEN not in done.stdout + done.stderr
        return done.returncode, json.loads(done.stdout)

    status, report = call()
    assert (status, report["pushed"], report["head"]) == (0, False, None)
    assert hub.repos == {}
    status, report = call("--push", "--tag", "v1", "--public")
    assert (status, report["pushed"], report["committed"]) == (0, True, True)
    assert not find(hub).private
    assert find(hub).refs["refs/tags/v1"] == report["commit"]
    assert set(find(hub).files) == {file["name"] for file in report["files"]} | {".gitattributes"}  # type: ignore[index, attr-defined]
    status, report = call("--push")
    assert (status, report["committed"]) == (0, False)
    status, report = call("--push", "--private")
    assert status == 3
    assert "is public" in str(report["error"])
    hub.faults.append(Fault("GET /api/whoami", 401, times=99))
    status, report = call("--push")
    assert status == 4
    assert "does not know the token" in str(report["error"])


def test_killed_push_and_another(mini_run: Path, hub: HubDouble, tmp_path: Path) -> None:
    """Killed while the commit's answer is on its way: the commit is there, and the next push finds it."""
    shutil.copytree(mini_run, tmp_path / "run")
    command = ["-m", "publish.run", str(tmp_path / "run"), "--repo_id", REPO, "--push"]
    environment = hub.environment(tmp_path / "home")
    hub.faults.append(Fault("POST .*/commit/", "hang", late=True, seconds=30))
    process = subprocess.Popen([sys.executable, *command], cwd=PROJECT, env=os.environ | environment)
    while not any("/commit/" in path for _, path in hub.requests):
        assert process.poll() is None
        time.sleep(100)  # a tenth of a second here
    process.kill()
    process.wait()
    done = run_python(*command, env=environment)
    assert done.returncode == 0, done.stderr
    assert "all of it was there already, and verified" in done.stdout
    assert len([oid for oid in find(hub).history if "Adapter" in find(hub).titles[oid]]) == 1
