"""The push, against a Hub that fails in every call: the repository is as before or complete, and nothing goes twice."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import run_python
from hub_double import TOKEN, Fault, HubDouble, Repo
from huggingface_hub import HfApi

import publish.hub
import publish.push as module
from publish.card import BEGIN, END, merge_card
from publish.hub import Target
from publish.push import push
from sft.command import Refusal
from sft.hub import HubFailure
from sft.storage import PROJECT

CARD = f"---\nlicense: mit\nlibrary_name: peft\n---\n\n{BEGIN}\n\n# Adapter\n\n{END}\n"
FILES = {
    "README.md": CARD.encode(),
    "adapter_model.safetensors": bytes(range(256)) * 20,
    "plots/loss.png": b"\x89PNG...",
}
REPO = "me/adapter"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and waits a thousand times shorter, huggingface_hub's own among them."""
    from huggingface_hub import constants

    sleep = time.sleep
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)  # the push does without xet by itself
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(seconds / 1000))
    monkeypatch.setattr(publish.hub, "TIMEOUT", 1.0)


def connect(hub: HubDouble) -> HfApi:
    return publish.hub.connect(hub.url, TOKEN)


def find(hub: HubDouble) -> Repo:
    return hub.repos["model", REPO]


def count_pushes(hub: HubDouble) -> int:
    repo = find(hub)
    return [repo.titles[commit] for commit in repo.history].count("title")


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
    theirs = CARD.replace("license: mit", "license: mit\nthumbnail: x.png").replace(
        BEGIN, f"Our lab's words.\n\n{BEGIN}"
    )
    theirs = theirs.replace("# Adapter", "# Old") + "\nMore words.\n"
    hub.add_repo("model", REPO, {"notes.txt": b"theirs", "README.md": theirs.encode()})
    for _ in range(2):
        push(connect(hub), FILES, Target(REPO), "title")
        files = find(hub).files
        assert files["notes.txt"] == b"theirs"
        card = files["README.md"].decode()
        assert re.search(
            r"thumbnail: x.png\n---\n\nOur lab's words\.\n\n<!--.*# Adapter.*-->\n\nMore words\.\n$",
            card,
            re.DOTALL,
        )
        assert "# Old" not in card
    assert count_pushes(hub) == 1


def test_what_an_earlier_push_left_is_removed_and_a_persons_files_stay(hub: HubDouble) -> None:
    """First with merged weights, a licence and a widget; then without them."""
    record = "<!-- metadata keys set here: license, library_name, widget -->"
    card = CARD.replace("peft\n", "peft\nwidget:\n- text: old\n").replace(BEGIN, f"{BEGIN}\n{record}")
    merged = {
        f"merged/{name}": b"old"
        for name in ("config.json", "model-00001-of-00002.safetensors", "chat_template.jinja")
    }
    full_card = card.replace("# Adapter", '# Adapter, allow_patterns="merged/*"')
    full = (
        FILES
        | merged
        | {"README.md": full_card.encode(), "LICENSE": b"This adapter is licensed under mit.\n"}
    )
    push(connect(hub), full, Target(REPO), "title")
    by_people = {"notes.txt": b"theirs", "merged/notes.txt": b"theirs", "merged/model.gguf": b"theirs"}
    repo = find(hub)
    there = repo.files | by_people
    there["README.md"] = there["README.md"].replace(b"license: mit\n", b"license: mit\nthumbnail: x.png\n")
    repo.commit_files("refs/heads/main", there, "by hand")
    new = FILES | {
        "README.md": card.replace("license: mit\n", "").replace("widget:\n- text: old\n", "").encode()
    }
    api = connect(hub)
    plan = module.plan_push(api, new, Target(REPO))
    removed = {name for name in full if name not in new}
    assert {
        change["name"] for change in plan.describe()["changes"] if change["state"] == "removed"
    } == removed
    outcome = push(api, new, Target(REPO), "second")
    assert {change.name for change in outcome.changes if change.state == "removed"} == removed
    assert repo.titles[repo.commit] == "second"
    assert repo.files.keys() == {*new, *by_people, ".gitattributes"}
    head = repo.files["README.md"].decode().partition(BEGIN)[0]
    assert head == "---\nlibrary_name: peft\nthumbnail: x.png\n---\n\n"
    assert not push(api, new, Target(REPO), "third").committed


def test_a_persons_merged_model_and_licence_stay(hub: HubDouble) -> None:
    theirs = {
        "merged/config.json": b"{}",
        "LICENSE": b"Our lab's licence.",
        "README.md": b'By hand: allow_patterns="merged/*".\n',
    }
    hub.add_repo("model", REPO, theirs)
    for file in ("x", "y"):  # the second time the card is ours
        push(connect(hub), FILES | {file: b"z"}, Target(REPO), "title")
    files = find(hub).files
    assert all(files[name] == theirs[name] for name in ("merged/config.json", "LICENSE"))


def test_report_after_a_lost_answer_has_the_changes_of_the_commit(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"notes.txt": b"theirs"})
    hub.faults.append(Fault("POST .*/commit/", "cut", late=True))
    outcome = push(connect(hub), FILES, Target(REPO), "title")
    assert (outcome.committed, outcome.commit) == (True, find(hub).commit)
    assert {change.name: change.state for change in outcome.changes} == dict.fromkeys(FILES, "new")


def test_words_lost_on_the_way_are_noticed(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("model", REPO, {"README.md": b"By hand.\n"})
    send = module.send_commit

    def lose(*arguments: Any) -> str:
        commit = send(*arguments)
        find(hub).history[commit]["README.md"] = CARD.encode()
        return commit

    monkeypatch.setattr(module, "send_commit", lose)
    with pytest.raises(
        HubFailure, match=r"these files are not what was sent: README\.md\. It was not tagged"
    ):
        push(connect(hub), FILES, Target(REPO, tag="v1"), "title")
    assert "refs/tags/v1" not in find(hub).refs


def test_metadata_that_the_hub_refuses_is_named(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"notes.txt": b"theirs"})
    files = FILES | {"README.md": CARD.replace("license: mit", "license: no licence").encode()}
    with pytest.raises(
        HubFailure,
        match=r"HTTP 400: .*\"license\" with value 'no licence' is not valid.* files are as before",
    ):
        push(connect(hub), files, Target(REPO), "title")
    assert find(hub).files == {"notes.txt": b"theirs"}


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
    with pytest.raises(
        Refusal, match=r"the tag v1 is at commit .* already\. Choose another\. Nothing was sent"
    ):
        push(connect(hub), FILES, Target(REPO, tag="v1"), "title")
    with pytest.raises(Refusal, match=r"is public, and --private was asked for"):
        push(connect(hub), FILES, Target(REPO, private=True), "title")
    assert all(method in ("GET", "HEAD") for method, _ in hub.requests)


FAULTS = [
    *itertools.product(
        [
            "GET /api/whoami", "GET /api/models/me/adapter$", "GET .*/refs", "GET .*/revision/main", "GET .*/tree/",
            "(HEAD|GET) .*/resolve/", "POST /api/validate-yaml", "POST .*/preupload/", "POST .*/lfs/objects/batch",
            "PUT /lfs/", "POST /lfs-verify", "POST .*/commit/", "POST .*/tag/", "GET .*/commits/", "POST .*/branch/",
            "GET .*/discussions", "PUT /lfs/.*/1$", "POST /lfs-complete",
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


# What a call needs in order to be made: where to push, the size of parts, and what went wrong before.
BRANCH, PULL_REQUEST = Target(REPO, revision="next", tag="v1"), Target(REPO, pull_request=True)
TARGETS = {"POST .*/branch/": BRANCH, "GET .*/discussions": PULL_REQUEST}
IN_PARTS = ("PUT /lfs/.*/1$", "POST /lfs-complete")
AFTER_A_LOST_ANSWER = ("GET .*/commits/",)


def find_ref(hub: HubDouble, target: Target) -> str | None:
    """Return the commit that a push to this target is to be found at."""
    refs = find(hub).refs if ("model", REPO) in hub.repos else {}
    return refs.get("refs/pr/1" if target.pull_request else f"refs/heads/{target.revision}")


@pytest.mark.parametrize(("request_pattern", "fault"), FAULTS)
def test_repository_is_as_before_or_complete(
    hub: HubDouble,
    request_pattern: str,
    fault: tuple[int | str, bool, int],
    record_property: Callable[[str, object], None],
) -> None:
    how, late, times = fault
    target = TARGETS.get(request_pattern, Target(REPO, tag="v1"))
    hub.part_size = 1000 if request_pattern in IN_PARTS else None
    before: dict[str, bytes] = {}
    if "create" not in request_pattern:
        before = {"README.md": b"---\nlicense: mit\n---\n\nBy hand.\n", "notes.txt": b"theirs"}
        hub.add_repo("model", REPO, before)
    if request_pattern in AFTER_A_LOST_ANSWER:
        hub.faults.append(Fault("POST .*/commit/", "cut", late=True))
    hub.faults.append(Fault(request_pattern, how, late, times))
    message = None
    try:
        push(connect(hub), FILES, target, "title")
    except HubFailure as error:
        message = str(error)
    if "create" in request_pattern and ("model", REPO) in hub.repos:
        before = {".gitattributes": find(hub).files[".gitattributes"]}
    if how == "write":
        before["other.txt"] = b"from another writer"
    after = before | FILES
    if "README.md" in before:
        after["README.md"] = merge_card(CARD, before["README.md"].decode()).encode()
    commit = find_ref(hub, target)
    files = find(hub).history[commit] if commit else before
    if how == "garble":
        assert message
        assert "not what was sent: adapter_model.safetensors" in message
        assert "refs/tags/v1" not in find(hub).refs
        state = "told, not tagged"
    elif files == before:
        assert message
        assert re.search(
            r"Nothing was sent|files are as before|Whether the commit landed is not known", message
        )
        state = "as before"
    else:
        assert files == after
        assert count_pushes(hub) == 1
        assert not re.search(r"Nothing was sent|files are as before", message or "")
        state = "complete"
        if message is None and target.tag:
            assert find(hub).refs["refs/tags/v1"] == commit
    if target in (BRANCH, PULL_REQUEST):
        assert find(hub).files == before, "main is not touched"
    if message:
        assert re.search(r"again|token|Check|Hub refused", message), "it says what to do"
        assert TOKEN not in message
    if times == 1 and how != "garble" and how != 400:
        assert message is None, "what fails in passing is tried again"
    assert any(re.search(request_pattern, " ".join(request)) for request in hub.requests), "the fault was met"
    record_property(
        "hub fault",
        (
            request_pattern,
            f"{how}{' after it took effect' if late else ''}{' always' if times > 1 else ''}",
            state,
            message or "",
        ),
    )
    hub.faults.clear()
    if how != "garble":
        push(connect(hub), FILES, target, "title")
        assert count_pushes(hub) == 1, "committed once in all"
        assert target.pull_request or find(hub).refs["refs/tags/v1"] in find(hub).history


def test_hub_that_fails_after_the_commit(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"notes.txt": b"theirs"})
    hub.faults.append(
        Fault("GET .*/tree/", 503, times=999, skip=2)
    )  # once for the plan, once before the commit
    with pytest.raises(
        HubFailure, match="Whether the commit landed is not known; run the same command again"
    ):
        push(connect(hub), FILES, Target(REPO), "title")
    hub.faults.clear()
    assert not push(connect(hub), FILES, Target(REPO), "title").committed
    assert count_pushes(hub) == 1


@pytest.mark.parametrize(
    ("how", "line"),
    [
        (503, "the Hub fails, or can't be reached: trying again (2 of 8)\n"),
        (412, "others committed in between: trying again (2 of 8)\n"),
    ],
)
def test_a_retry_says_why(hub: HubDouble, how: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add_repo("model", REPO, {"notes.txt": b"theirs"})
    hub.faults.append(Fault("POST .*/commit/", how))
    assert push(connect(hub), FILES, Target(REPO), "title").committed
    assert capsys.readouterr().err.count(line) == 1


def test_ten_publishers_at_once(hub: HubDouble) -> None:
    hub.add_repo("model", REPO, {"notes.txt": b"theirs"})
    api = connect(
        hub
    )  # once: it closes the process's HTTP client, in the middle of another thread's request too

    def publish(number: int) -> str:
        files = FILES | {f"{number}.txt": b"%d" % number}
        try:
            push(api, files, Target(REPO), f"publisher {number}")
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
        push(publish.hub.connect(hub.url), FILES, Target(REPO), "title")
    with pytest.raises(HubFailure, match=r"the connection to the Hub failed"):
        push(publish.hub.connect("http://127.0.0.1:9", TOKEN), FILES, Target(REPO), "title")


@pytest.mark.slow
def test_command_plans_pushes_and_reports(mini_run: Path, hub: HubDouble, tmp_path: Path) -> None:
    shutil.copytree(mini_run, tmp_path / "run")
    command = ["-m", "publish.run", str(tmp_path / "run"), "--repo_id", REPO, "--json"]
    environment = hub.environment(tmp_path / "home")
    del environment[
        "HF_HUB_DISABLE_XET"
    ]  # the double has no xet, and hf_xet is installed: a push does without it by itself

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


@pytest.mark.slow
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
