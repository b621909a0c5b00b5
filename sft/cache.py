"""What was read, made of it and tokenised, kept by the content that it was made from, in the user's cache folder.

A file's name is the SHA-256 of all that its value depends on: the bytes of the data files, the recipe's columns, the
tokenizer, the prompt, and this project's own code. So nothing stale can be served, wherever the files lie and whenever
they were changed.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.run_dir import hash_file, replace_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT = 24  # files; those unused for longest go first. Each holds a corpus or a split's tokens: some MB for ParaDetox
CODE = ("augment.py", "cache.py", "data.py", "prompt.py", "stream.py", "../eval/baselines.py")
LIBRARIES = ("datasets", "sacrebleu", "tokenizers")


def find_cache() -> Path:
    """Return the folder of cached values: detox-sft in that of `datasets` (HF_DATASETS_CACHE, HF_HOME)."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets").expanduser() / "detox-sft"


def hash_key(key: Any) -> str:
    """Return the SHA-256 of a JSON value together with this project's code and the libraries that do the work."""
    code = [hash_file(Path(__file__).parent / name) for name in CODE]
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    return hashlib.sha256(json.dumps([key, code, versions]).encode()).hexdigest()


def hash_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 of all that turns a text into tokens: vocabulary, merges, rules, added and special tokens."""
    parts = [tokenizer.backend_tokenizer.to_str(), type(tokenizer).__name__, tokenizer.eos_token_id]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def recall(key: Any, make: Callable[[], Any], enabled: bool = True) -> Any:
    """Return `make()`, a JSON value, from the cache if it was made from the same `key` before; else make and keep it.

    A file is written beside its place and moved there whole, so that writers at the same time do no harm; it begins with
    the SHA-256 of what follows, and one that is torn or changed is made anew. Where the folder can't be written, the work
    goes on without it, with a line that says so.
    """
    if not enabled:
        return make()
    path = find_cache() / f"{hash_key(key)}.json"
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() == digest:
            os.utime(path)
            return json.loads(body)
    except OSError:
        pass
    value = make()
    body = json.dumps(value, separators=(",", ":")).encode()
    try:
        with replace_file(path) as temporary:
            temporary.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        ages = {file.stat().st_mtime: file for file in path.parent.glob("*.json")}
        for _, file in sorted(ages.items(), reverse=True)[KEPT:]:
            file.unlink(missing_ok=True)
    except OSError as error:
        print(f"cache: {error}; going on without it (data.cache: false skips it)", file=sys.stderr)
    return value
