"""What must not leave this machine: tokens, its paths, its user's name, files that run code when loaded."""

import contextlib
import getpass
import html
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from sft.command import Refusal

BEFORE = r"(?<![\w.-])"  # the start of a path: not within a Hub id or a URL
SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}\b",
    "an API key": r"\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{35}|xox[abpr]-[\w-]{10,})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in a URL": r"\b[a-z][a-z+]*://[^\s/:@]+:[^\s/:@]+@",
    "a home directory": rf"{BEFORE}(?:/home/|/Users/|[A-Z]:[/\\]+Users[/\\]+)[^\s/\\\"'<>|]+",
}
# Only folders that no sentence speaks of: "/she/it" and "/r/news" are no paths.
ROOTS = (
    "content|data|dbfs|etc|export|fsx|gpfs|kaggle|lustre|media|mnt|net|nfs|opt|private|proj|projects|root"
    "|scratch|shared|srv|storage|tmp|usr|var|Volumes|work|workspace"
)
PATHS = {
    "an absolute path": rf"(?:file:/+|{BEFORE}(?<!/)/)(?:{ROOTS})/[\w.@+-]+",
    "a path on a drive": r"(?<!\w)[A-Za-z]:(?:[/\\]+[\w.@+-]+){2}",
}
# Of JSON and YAML with a line a value.
WHOLE_VALUE = r"(?m)^[ \t]*(?:- |\"?[\w.-]+\"?: )?[\"']?(?:/[\w.@+-]+){2,}/?[\"']?,?$"
VOCABULARIES = ("tokenizer.json", "vocab.json")  # a base's tokens, some of which are public paths
NOBODY = ("root", "user", "ubuntu", "admin", "runner")  # words, and nobody's name
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # also torch's zip files


def refuse_private(files: Mapping[str, bytes], owner: str | None = None) -> None:
    """Stop where a file holds what must not leave this machine; see `find_private`.

    Raises:
        Refusal: with a line for each finding.
    """
    if found := find_private(files, owner):
        raise Refusal(
            "these files hold what must not leave this machine; nothing was written or sent:\n"
            + "\n".join(found)
        )


def find_private(files: Mapping[str, bytes], owner: str | None = None) -> list[str]:
    """Return a line for each finding in the files, by name; the finding itself is not repeated.

    Args:
        files: name to content. Weights are scanned as far as their header, which is text; the rest are
            numbers.
        owner: of the repository, whose name is public.
    """
    own = describe_machine(owner)
    found = []
    for name, content in files.items():
        if content.startswith(PICKLES) or name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")):
            found.append(f"{name}: a pickle, which can run code when it is loaded")
        is_binary = name.endswith((".safetensors", ".png"))
        end = 8 + int.from_bytes(content[:8], "little") if name.endswith(".safetensors") else len(content)
        patterns = SECRETS | own
        if not is_binary and not name.endswith(VOCABULARIES):
            patterns |= PATHS | (
                {"a path as a value": WHOLE_VALUE} if name.endswith((".json", ".yaml")) else {}
            )
        text = read_plain(name, content[:end].decode(errors="replace"))
        for what, pattern in patterns.items():
            if match := re.search(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}: {what}" if is_binary else f"{name}:{line}: {what}")
    return found


def describe_machine(owner: str | None) -> dict[str, str]:
    """Return patterns of what is this machine's own, as far as it is known."""
    from huggingface_hub import get_token

    own = {}
    if token := get_token():
        own["the token in use"] = re.escape(token)
    places: dict[str, Callable[[], object]] = {
        "a path of this machine": Path.home,
        "the working directory": Path.cwd,
        "the directory of temporary files": tempfile.gettempdir,
    }
    for what, find in places.items():
        with contextlib.suppress(OSError, RuntimeError):  # a user without a home, a directory that is gone
            parts = re.findall(r"[^/\\]+", str(find()))
            start = "/+" if str(find()).startswith("/") else ""
            # A folder such as /app is a word after a slash, too: only what lies in it is surely a path.
            end = r"(?![\w-])" if len(parts) > 1 else r"[/\\]"
            if parts:
                own[what] = BEFORE + start + r"[/\\]+".join(map(re.escape, parts)) + end
    with contextlib.suppress(KeyError, OSError):  # a user id that has no name, as in a container
        user = getpass.getuser()
        if user not in (owner, *NOBODY):
            name = re.escape(user)
            own["the user's name"] = rf"~{name}[/\\]|[/\\](?:homes?|[Uu]sers?|u|{ROOTS})[/\\]+{name}(?![\w-])"
    return own


def read_plain(name: str, text: str) -> str:
    """Return a file's text without the escapes of its format, with its lines as they are."""
    if name.endswith(".json"):  # \n is no start of a folder's name
        return re.sub(r"\\(.)", lambda match: match[1] if match[1] in '\\/"' else " ", text)
    return html.unescape(text) if name.endswith(".md") else text
