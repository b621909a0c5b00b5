"""A repository on the Hub: the client, calls that are made again, and what the repository holds."""

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from publish.card import tells_of_merged
from publish.licence import LICENSED
from publish.merge import MERGED
from sft.hub import HubFailure, find_status, find_transport_error, first_line, is_passing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

TRIES = 8  # of a call that fails in passing, and of the commit
WAIT = 1.0  # seconds before the second try; twice as long before each further one
LONGEST_WAIT = 20.0
TIMEOUT = 120.0  # seconds without a byte, after which a request counts as lost
HEAD_MOVED = 412


@dataclass(frozen=True)
class Target:
    """Where to: a branch or pull request of a repository, and a tag; `private` None leaves it as it is."""

    repo_id: str
    revision: str = "main"
    private: bool | None = None
    private_if_new: bool = True
    pull_request: bool = False
    tag: str | None = None
    kind: str = "model"
    sdk: str | None = None  # of a Space


@dataclass(frozen=True)
class Remote:
    """A repository at one commit: its card, and its files' hashes (SHA-256 of large ones, else git's id).

    `own` are the files that pushes of this tool write at times, and that are its own: a push without them
    removes them.
    """

    commit: str | None  # None: there is no such repository, or no such branch
    exists: bool = False
    files: Mapping[str, str] | None = None
    card: str | None = None
    private: bool | None = None
    tags: Mapping[str, str] | None = None
    own: frozenset[str] = frozenset()


# ----------------------------------------------------------------------------------------- the Hub's failures


def list_errors() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises when the Hub or the way to it fails, or the answer is torn."""
    return find_transport_error(), OSError, RuntimeError, ValueError


def explain_failure(error: Exception, target: Target) -> str:
    """Return what failed and what to do, in a line; no token and no header is in it."""
    status, name = find_status(error), target.repo_id
    advice = {
        401: "the Hub does not know the token. Log in with `hf auth login`, or set HF_TOKEN.",
        402: "the Hub asks for payment for this. See https://huggingface.co/pricing, or publish without it.",
        403: f"the token may not write to {name}. Expected one with write access to it.",
        404: f"{name} is not there, or not visible with this token. Check the name, and `hf auth whoami`.",
        413: "a file is too large for the Hub.",
        429: "the Hub has had too many requests. Wait some minutes and run the same command again.",
    }
    if status is None:
        if not is_passing(error):
            return f"{type(error).__name__}: {first_line(error)}"
        return (
            f"the connection to the Hub failed ({type(error).__name__}). "
            "Check the network and run the same command again."
        )
    if status >= 500:
        return f"the Hub is failing (HTTP {status}). Run the same command again later."
    # What the check of a card's metadata refuses comes as a plain error, whose lines name the fields.
    detail = error.server_message if hasattr(error, "server_message") else " ".join(str(error).split())
    return advice.get(status) or f"the Hub refused it (HTTP {status}{f': {detail}' if detail else ''})."


def wait_between(tries: int = TRIES) -> Iterator[int]:
    """Yield the number of each try, from 0, after ever longer waits (with jitter: others may wait, too)."""
    for number in range(tries):
        if number:
            time.sleep(min(LONGEST_WAIT, WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1.5))
        yield number


def tell_retry(error: Exception, number: int, tries: int = TRIES) -> None:
    """Say why a try is followed by another one; the last one is not."""
    if number < tries - 1:
        why = (
            "others committed in between"
            if find_status(error) == HEAD_MOVED
            else "the Hub fails, or can't be reached"
        )
        print(f"{why}: trying again ({number + 2} of {tries})", file=sys.stderr)


def call_again(call: Callable[[], T], tries: int = TRIES) -> T:
    """Return what `call` returns, trying again while it fails in passing.

    It is for calls that may be repeated without harm.

    Raises:
        Exception: what the last try raised.
    """
    for number in wait_between(tries):
        try:
            return call()
        except list_errors() as error:
            if number == tries - 1 or not is_passing(error):
                raise
            tell_retry(error, number, tries)
    raise AssertionError("no try was made")


# ------------------------------------------------------------------------------------------------- reading it


def connect(endpoint: str | None = None, token: str | None = None) -> "HfApi":
    """Return the Hub's client, for endpoint and token of environment or login; no request waits for ever."""
    from huggingface_hub import HfApi, constants, set_client_factory
    from huggingface_hub.utils import _http

    # hf_xet has HTTP and retries of its own, which neither TIMEOUT nor the tests' double reaches. Uploads
    # by LFS are what the tests hold to.
    constants.HF_HUB_DISABLE_XET = True

    def make_client() -> Any:
        client = _http.default_client_factory()
        client.timeout = TIMEOUT
        return client

    set_client_factory(make_client)
    return HfApi(endpoint=endpoint, token=token)


def check_login(api: "HfApi", target: Target) -> None:
    """Find out whether there is a token that the Hub knows.

    Raises:
        HubFailure: there is none, or the Hub can't be reached.
    """
    from huggingface_hub import get_token

    check_online()
    if not (api.token or get_token()):
        raise HubFailure(
            "there is no token. Log in with `hf auth login`, or set HF_TOKEN, with write access. "
            "Nothing was sent."
        )
    try:
        call_again(api.whoami)
    except list_errors() as error:
        raise HubFailure(f"{explain_failure(error, target)} Nothing was sent.") from None


def check_online() -> None:
    """Find out whether requests are allowed.

    Raises:
        HubFailure: they are not.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise HubFailure(
            "HF_HUB_OFFLINE is set, which forbids every request. Unset it and run the same command again."
        )


def read_remote(api: "HfApi", target: Target, revision: str | None = None, tries: int = TRIES) -> Remote:
    """Return the repository at its branch, or at another revision, as it is now."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    where = {"repo_id": target.repo_id, "repo_type": target.kind}
    try:
        info = call_again(lambda: api.repo_info(**where), tries)
    except RepositoryNotFoundError:
        return Remote(None)
    refs = call_again(lambda: api.list_repo_refs(**where))
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    try:
        commit = call_again(lambda: api.repo_info(**where, revision=revision or target.revision)).sha
    except RevisionNotFoundError:
        return Remote(None, exists=True, private=info.private, tags=tags)
    entries = call_again(lambda: list(api.list_repo_tree(**where, revision=commit, recursive=True)))
    files = {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    card = read_text(api, target, "README.md", commit) if "README.md" in files else None
    own = {name for name in files if MERGED.fullmatch(name) and tells_of_merged(card)}
    if "LICENSE" in files and read_text(api, target, "LICENSE", commit).startswith(LICENSED):
        own.add("LICENSE")
    return Remote(commit, True, files, card, info.private, tags, frozenset(own))


def read_text(api: "HfApi", target: Target, name: str, commit: str) -> str:
    path = call_again(
        lambda: api.hf_hub_download(target.repo_id, name, repo_type=target.kind, revision=commit)
    )
    return Path(path).read_text(encoding="utf-8", errors="replace")
