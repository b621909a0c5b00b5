"""One verified commit to the Hub: what would change, the commit, the proof that it arrived whole, the tag."""

import dataclasses
import difflib
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from publish.card import merge_card
from publish.hub import (
    HEAD_MOVED,
    TRIES,
    Remote,
    Target,
    call_again,
    check_login,
    explain_failure,
    list_errors,
    read_remote,
    tell_retry,
    wait_between,
)
from sft.command import InputError, Refusal
from sft.hub import HubFailure, find_status, is_passing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

AS_BEFORE = "The repository's files are as before."
UNKNOWN = (
    "Whether the commit landed is not known; run the same command again: "
    "it looks first, and sends nothing twice."
)


@dataclass(frozen=True)
class Change:
    name: str
    size: int  # bytes
    state: str  # "new", "changed", "unchanged" or "removed"


@dataclass(frozen=True)
class Outcome:
    commit: str
    url: str
    changes: tuple[Change, ...]
    committed: bool  # False: all of it was there


def is_same(content: bytes, remote_hash: str | None) -> bool:
    """Say whether a file is the one that the Hub names by SHA-256 (64 digits) or git's blob id (40)."""
    if remote_hash is None or len(remote_hash) == 64:
        return hashlib.sha256(content).hexdigest() == remote_hash
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote_hash


def merge_files(files: Mapping[str, bytes], remote: Remote) -> dict[str, bytes]:
    """Return the files with the card as it will be on the Hub, keeping what people wrote around our part."""
    merged = dict(files)
    if remote.card is not None and "README.md" in files:
        merged["README.md"] = merge_card(files["README.md"].decode(), remote.card).encode()
    return merged


def list_changes(files: Mapping[str, bytes], remote: Remote) -> tuple[Change, ...]:
    there = remote.files or {}
    changes = [
        Change(
            name,
            len(content),
            "new" if name not in there else "unchanged" if is_same(content, there[name]) else "changed",
        )
        for name, content in files.items()
    ]
    changes += [Change(name, 0, "removed") for name in remote.own - files.keys()]
    return tuple(sorted(changes, key=lambda change: change.name))


def differ(changes: Sequence[Change]) -> list[str]:
    """Return the names of the files that are not on the Hub as they are here."""
    return [change.name for change in changes if change.state != "unchanged"]


def diff_card(files: Mapping[str, bytes], remote: Remote) -> str:
    """Return the unified diff from the Hub's card to the one that a push would leave there."""
    before = (remote.card or "").splitlines(keepends=True)
    after = files["README.md"].decode().splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, "README.md on the Hub", "README.md of the run"))


@dataclass(frozen=True)
class Plan:
    """What a push would leave on the Hub, against what is there."""

    files: Mapping[str, bytes]
    remote: Remote

    @property
    def changes(self) -> tuple[Change, ...]:
        return list_changes(self.files, self.remote)

    def describe(self) -> dict[str, Any]:
        """Return it for other programs."""
        changes = [dataclasses.asdict(change) for change in self.changes]
        return {
            "head": self.remote.commit,
            "changes": changes,
            "card_diff": diff_card(self.files, self.remote),
        }

    def print(self, target: Target) -> None:
        from rich.syntax import Syntax
        from rich.table import Table

        from sft.terminal import Terminal

        console = Terminal()
        table = Table("file", "bytes", "on the Hub", title=f"{target.repo_id}, {target.revision}")
        for change in self.changes:
            table.add_row(change.name, f"{change.size:,}", change.state)
        console.print(table)
        diff = diff_card(self.files, self.remote)
        if diff and self.remote.card is not None:
            console.print(Syntax(diff, "diff", background_color="default", word_wrap=True))


def plan_push(api: "HfApi", files: Mapping[str, bytes], target: Target, tries: int = TRIES) -> Plan:
    """Hold the files against the repository as it is now; with `tries` 1, an unreachable Hub is told at once.

    Raises:
        HubFailure: the Hub can't be reached, or does not let us read.
        Refusal: see `check_target`, `merge_card`.
    """
    try:
        remote = read_remote(api, target, tries=tries)
    except list_errors() as error:
        raise HubFailure(f"{target.repo_id}: {explain_failure(error, target)} Nothing was sent.") from None
    plan = make_plan(files, remote)
    check_target(target, remote, plan.changes)
    return plan


def make_plan(files: Mapping[str, bytes], remote: Remote) -> Plan:
    return Plan(merge_files(files, remote), remote)


def check_target(target: Target, remote: Remote, changes: Sequence[Change]) -> None:
    """Refuse what a push could not do as asked, before anything is sent.

    Raises:
        Refusal: the tag is at another commit, or the visibility is not the one that was asked for.
    """
    if target.private is not None and remote.private not in (None, target.private):
        there, wanted = ("private", "public") if remote.private else ("public", "private")
        raise Refusal(
            f"{target.repo_id} is {there}, and --{wanted} was asked for. "
            "Change it in the repository's settings on the Hub, "
            "or push without that option. Nothing was sent."
        )
    tagged = (remote.tags or {}).get(target.tag or "")
    if tagged and (tagged != remote.commit or differ(changes)):
        raise Refusal(
            f"the tag {target.tag} is at commit {tagged[:12]} of {target.repo_id} already. Choose another. "
            "Nothing was sent."
        )


# ------------------------------------------------------------------------------------------------- writing it


def push(api: "HfApi", files: Mapping[str, bytes], target: Target, title: str) -> Outcome:
    """Bring the repository to hold exactly these files beside those of others: in one commit, or not at all.

    The commit names the head that it was planned on; where the head has moved, the plan is made anew. Where
    the outcome of a commit is unknown, the head is read again before anything is sent again. The remote
    files' hashes are compared with the local ones before the tag is set. The same files a second time change
    nothing.

    Raises:
        HubFailure: what failed, what state the repository is in, and what to do.
        Refusal: see `check_target`.
    """
    check_login(api, target)
    plan_push(api, files, target)
    mark = (
        f"push {uuid.uuid4()}"  # in the commit's description: by it a commit is known whose answer was lost
    )
    sent, state, error = None, AS_BEFORE, None
    try:
        for number in wait_between():
            remote = read_remote(api, target)
            landed = (
                find_commit(api, target, mark, files)
                if remote.exists and (sent or target.pull_request)
                else None
            )
            if landed and sent:
                return finish(api, sent, target, landed)
            if landed:  # in a pull request that is open already
                return finish(
                    api, make_plan(files, read_remote(api, target, landed)), target, landed, committed=False
                )
            state = AS_BEFORE
            plan = make_plan(files, remote)
            if remote.commit and not differ(plan.changes):
                return finish(api, plan, target, remote.commit, committed=False)
            if remote.commit is None:
                create_place(api, target, remote)
                plan = make_plan(files, read_remote(api, target))
            sent, state = plan, UNKNOWN
            try:
                commit = send_commit(api, plan, target, title, mark)
            except list_errors() as failure:
                error = failure
                if find_status(failure) == HEAD_MOVED or not is_passing(failure):
                    state = AS_BEFORE  # nothing has landed, for certain
                if find_status(failure) == HEAD_MOVED or is_passing(failure):
                    tell_retry(failure, number)
                    continue
                raise
            return finish(api, plan, target, commit)
        # The last try's outcome may be unknown, too.
        landed = find_commit(api, target, mark, files)
        if landed and sent:
            return finish(api, sent, target, landed)
    except list_errors() as failure:
        if isinstance(failure, InputError):
            raise
        raise HubFailure(f"{target.repo_id}: {explain_failure(failure, target)} {state}") from None
    assert error is not None
    if find_status(error) == HEAD_MOVED:
        message = (
            f"others committed to it in between, {TRIES} times. "
            "Run the same command again when they are done."
        )
    else:
        message = explain_failure(error, target)
    raise HubFailure(f"{target.repo_id}: {message} {AS_BEFORE}") from None


def create_place(api: "HfApi", target: Target, remote: Remote) -> None:
    """Create the repository and the branch that are not there yet. Both calls do no harm when repeated."""
    if not remote.exists:
        private = target.private if target.private is not None else target.private_if_new
        call_again(
            lambda: api.create_repo(
                target.repo_id, repo_type=target.kind, private=private, exist_ok=True, space_sdk=target.sdk
            )
        )
    if target.revision != "main":
        call_again(
            lambda: api.create_branch(
                target.repo_id, repo_type=target.kind, branch=target.revision, exist_ok=True
            )
        )


def send_commit(api: "HfApi", plan: Plan, target: Target, title: str, mark: str) -> str:
    """Send one commit, once; return its id. Whoever calls this finds out what became of a failed one."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    removed = [change.name for change in plan.changes if change.state == "removed"]
    info = api.create_commit(
        target.repo_id,
        [
            *(CommitOperationAdd(name, content) for name, content in sorted(plan.files.items())),
            *map(CommitOperationDelete, removed),
        ],
        commit_message=title,
        commit_description=mark,
        repo_type=target.kind,
        revision=target.revision,
        create_pr=target.pull_request,
        parent_commit=plan.remote.commit,
    )
    return str(info.oid)


def find_commit(api: "HfApi", target: Target, mark: str, files: Mapping[str, bytes]) -> str | None:
    """Return this push's commit if it landed: by its mark on the branch, or an open pull request's files."""
    where = {"repo_id": target.repo_id, "repo_type": target.kind}
    if not target.pull_request:
        commits = call_again(lambda: api.list_repo_commits(**where, revision=target.revision))
        return next((commit.commit_id for commit in commits if mark in commit.message), None)
    refs = call_again(lambda: api.list_repo_refs(**where, include_pull_requests=True))
    still_open = {
        discussion.git_reference
        for discussion in call_again(
            lambda: list(
                api.get_repo_discussions(**where, discussion_type="pull_request", discussion_status="open")
            )
        )
    }
    for ref in refs.pull_requests or ():
        if ref.ref in still_open:
            remote = read_remote(api, target, ref.ref)
            if not differ(make_plan(files, remote).changes):
                return ref.target_commit
    return None


def finish(api: "HfApi", plan: Plan, target: Target, commit: str, committed: bool = True) -> Outcome:
    """Compare what is at the commit with the planned files, byte for byte, then tag it.

    Raises:
        HubFailure: a file arrived otherwise than it was sent, or the tag could not be set.
    """
    remote = read_remote(api, target, commit)
    left = plan.remote.own & (remote.files or {}).keys()
    wrong = differ(list_changes(plan.files, dataclasses.replace(remote, own=left)))
    if wrong:
        raise HubFailure(
            f"{target.repo_id}: commit {commit} is there, but these files are not what was sent: "
            f"{', '.join(wrong)}. "
            "It was not tagged. Run the same command again, which sends them anew."
        )
    if target.tag and not target.pull_request:
        set_tag(api, target, commit)
    url = f"{api.endpoint}/{'' if target.kind == 'model' else f'{target.kind}s/'}{target.repo_id}"
    return Outcome(commit, f"{url}/commit/{commit}", plan.changes, committed)


def set_tag(api: "HfApi", target: Target, commit: str) -> None:
    assert target.tag is not None
    try:
        call_again(
            lambda: api.create_tag(
                target.repo_id, repo_type=target.kind, tag=target.tag or "", revision=commit, exist_ok=True
            )
        )
        refs = call_again(lambda: api.list_repo_refs(target.repo_id, repo_type=target.kind))
    except list_errors() as error:
        raise HubFailure(
            f"{target.repo_id}: commit {commit} is there and complete, but the tag {target.tag} was not set: "
            f"{explain_failure(error, target)} Run the same command again; it sets the tag alone."
        ) from None
    at = {ref.name: ref.target_commit for ref in refs.tags}.get(target.tag)
    if at != commit:
        raise HubFailure(
            f"{target.repo_id}: commit {commit} is there and complete, "
            f"but another push has set the tag {target.tag} "
            f"to {str(at)[:12]} in between. Choose another tag."
        )
