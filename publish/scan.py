"""What must not leave this machine: tokens, its paths, its user's name, and files that run code when they are loaded."""

import getpass
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}\b",
    "an API key": r"\b(?:sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|xox[abpr]-[\w-]{10,})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in a URL": r"\b[a-z][a-z+]*://[^\s/:@]+:[^\s/:@]+@",
    "a home directory": r"(?:/home/|/Users/|[A-Z]:\\+Users\\+)[^\s/\\\"'<>|]+",
}
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # also torch's zip files


def find_private(files: Mapping[str, bytes]) -> list[str]:
    """Return a line for each finding in the files, by name; the finding itself is not repeated.

    Args:
        files: name to content. Weights are scanned as far as their header, which is text; the rest are numbers.
    """
    from huggingface_hub import get_token

    texts = {
        "the token in use": get_token(),
        "a path of this machine": str(Path.home()),
        "the working directory": str(Path.cwd()),
    }
    texts["the directory of temporary files"] = tempfile.gettempdir()
    own = {what: re.escape(text) for what, text in texts.items() if text and len(text) > 3}
    own["the user's name"] = rf"(?<![A-Za-z0-9]){re.escape(getpass.getuser())}(?![A-Za-z0-9])"
    if getpass.getuser() in ("root", "user", "ubuntu", "admin", "runner"):  # words, and nobody's name
        del own["the user's name"]
    found = []
    for name, content in files.items():
        if content.startswith(PICKLES) or name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")):
            found.append(f"{name}: a pickle, which can run code when it is loaded")
        end = 8 + int.from_bytes(content[:8], "little") if name.endswith(".safetensors") else len(content)
        text = content[:end].decode(errors="replace") if not name.endswith(".png") else ""
        for what, pattern in (SECRETS | own).items():
            if match := re.search(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{name}:{line}: {what}")
    return found
