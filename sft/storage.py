"""Files: found, named for others, written whole or not at all, read, hashed."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.command import Refusal, RunError
from sft.typed_json import Misfit, parse_json, read_value

PROJECT = Path(__file__).resolve().parent.parent


def find_path(name: str) -> Path | None:
    """Return the file or folder of this name, from the working directory or the project's root, or None."""
    for path in (Path(name).expanduser(), PROJECT / name):
        if os.path.exists(path):  # noqa: PTH110 (Path.exists raises for a name that is too long)
            return path
    return None


def name_path(path: Path) -> str:
    """Return the name that a local path is published under: its path in the project, else its name alone.

    An absolute path says nothing to another reader, and holds a user's name.
    """
    resolved = path.resolve()
    return str(resolved.relative_to(PROJECT)) if resolved.is_relative_to(PROJECT) else resolved.name


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it, whole and on disk, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        allow_reading(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def allow_reading(path: Path) -> None:
    """Give a file the mode of a new one: mkstemp and safetensors make files that only the owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in the place of `target` by two renames: never a part of one and of the other."""
    old = target.with_name(f".{target.name.lstrip('.')}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def read_json(path: Path, kind: Any = Any) -> Any:
    """Return a JSON file's value, of the type `kind` (see sft.typed_json.read_value).

    Raises:
        RunError: the file is missing, is not JSON, or is of another shape.
    """
    return read_as(parse_json(read_written(path), path), kind, path)


def read_json_lines(path: Path, kind: Any = Any) -> list[Any]:
    """Return the values of a file with one JSON value a line; see `read_json`."""
    texts = enumerate(read_written(path).split("\n"), start=1)
    return [
        read_as(parse_json(text, f"{path}:{number}"), kind, f"{path}:{number}")
        for number, text in texts
        if text
    ]


def read_written(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path}: missing from the run directory.") from None
    except IsADirectoryError:
        raise RunError(f"{path}: a folder, expected the file that the run wrote.") from None
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: not UTF-8 ({error}); it was changed after the run wrote it.") from None


def read_as(value: Any, kind: Any, place: Path | str) -> Any:
    try:
        return read_value(value, kind, "")
    except Misfit as misfit:
        raise RunError(f"{place}: {misfit}; it was changed after the run wrote it.") from None


SEAL = "seal.json"


def write_seal(folder: Path, files: Mapping[str, Path]) -> None:
    """Write the SHA-256 of files, by their (future) names in a folder, into its seal.json."""
    write_json(folder / SEAL, {name: hash_file(path) for name, path in sorted(files.items())})


def check_seal(folder: Path, mend: str) -> None:
    """Raise where a file is not as it was when the folder was sealed; `mend` says what then helps.

    Raises:
        Refusal: one was changed, or is missing.
        RunError: there is no seal.
    """
    for name, digest in read_json(folder / SEAL, Mapping[str, str]).items():
        path = folder / name
        if not path.is_file() or hash_file(path) != digest:
            found = "changed after it was written" if path.is_file() else "missing"
            raise Refusal(f"{path}: {found} (its SHA-256 is not that in {folder / SEAL}). {mend}")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
