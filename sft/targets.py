"""Targets: a teacher's rewrites of training sentences, learnt in place of people's, or beside them.

This is sequence-level knowledge distillation (Kim and Rush 2016, https://aclanthology.org/D16-1139). A
targets file is JSON lines, made by eval/distil.py: a header that says who has taught, how, and for which
split; then a line a sentence, with its `id` (see sft.data.Example) and its `target`. The header's `sha256` is
that of all the rest: a file that was cut off or changed is refused.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.command import count
from sft.data import Example, clean_text
from sft.files import DataError, decode_file, describe_absence
from sft.splits import SPLITS, hash_examples
from sft.storage import find_path, hash_file, name_path, write_text

FORMAT = 1
KEY = "data.targets"
SHA256 = re.compile(r"[0-9a-f]{64}")
SEEN = (
    "nothing held out",
    "unknown",
)  # what a teacher was trained on of the student's validation and test sentences
MAKE = "Make it with: accelerate launch eval/distil.py TEACHER --run RUN_DIR"


@dataclass(frozen=True)
class Targets:
    """A targets file, read and checked."""

    name: str  # as it is published
    sha256: str
    header: Mapping[str, Any]
    texts: Mapping[str, str]  # by the sentence's id

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        teacher = self.header["teacher"]
        told = {key: teacher[key] for key in ("name", "num_beams", "has_seen")}
        told["adapter"] = {key: teacher["adapter"][key] for key in ("sha256", "config_sha256")}
        told["base"] = {key: teacher["base"][key] for key in ("name", "revision")}
        described = {"file": self.name, "sha256": self.sha256, "sentences": len(self.texts), "teacher": told}
        return described | {key: self.header[key] for key in ("rule", "from_people")}


def hash_content(header: Mapping[str, Any], lines: Iterable[str]) -> str:
    """Return the SHA-256 of a header without its `sha256`, and of the lines behind it."""
    digest = hashlib.sha256(
        json.dumps({k: v for k, v in header.items() if k != "sha256"}, sort_keys=True).encode()
    )
    for line in lines:
        digest.update(b"\n" + line.encode())
    return digest.hexdigest()


def write_targets(path: Path, header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a targets file, whole or not at all; `format`, `rows` and `sha256` of the header are added."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    header = {"format": FORMAT, **header, "rows": len(lines)}
    header["sha256"] = hash_content(header, lines)
    write_text(path, "\n".join([json.dumps(header, ensure_ascii=False), *lines]) + "\n")


def read_targets(name: str, splits: Mapping[str, Sequence[Example]]) -> Targets:
    """Read a targets file, and hold it against the splits of the run that learns from it.

    Raises:
        DataError: no such file; half written, or changed; a target that is not one line of text; a sentence
            that is not of this training split; or made for other validation and test sentences, which its
            teacher may have seen.
    """
    path = find_path(name)
    if path is None or not path.is_file():
        raise DataError(f"{name}: {describe_absence(Path(name))}. {MAKE}", key=KEY)
    try:
        head, *lines = decode_file(path).removesuffix("\n").split("\n")
    except DataError as error:
        raise DataError(str(error), key=KEY) from None
    header = parse_line(path, 1, head)
    if header.get("format") != FORMAT or not fits_header(header):
        found = f"format {header['format']!r}" if "format" in header else "no `format`"
        raise DataError(
            f"{path}:1: no header of a targets file (found {found}, expected {FORMAT}). {MAKE}", key=KEY
        )
    if header["rows"] != len(lines):
        expected = count(header["rows"], "target")
        raise DataError(
            f"{path}: cut off: found {count(len(lines), 'target')}, expected {expected}. {MAKE}", key=KEY
        )
    if header["sha256"] != hash_content(header, lines):
        message = f"{path}: changed after it was made: its SHA-256 is not the one in its header. {MAKE}"
        raise DataError(message, key=KEY)
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, start=2):
        row = parse_line(path, number, line)
        identity, target = row.get("id"), row.get("target")
        if not isinstance(identity, str) or not is_line(target):
            expected = "an `id` and, as `target`, one line of clean text"
            message = f"{path}:{number}: found {line[:80]!r}, expected {expected}."
            raise DataError(message, key=KEY)
        if identity in texts:
            raise DataError(f"{path}:{number}: the sentence {identity!r} has a target already.", key=KEY)
        texts[identity] = str(target)
    check_sentences(path, texts, header, splits)
    return Targets(name_path(path), hash_file(path), header, texts)


def holds_targets(path: Path) -> bool:
    """Say whether a file begins as a targets file does."""
    try:
        with path.open(encoding="utf-8") as stream:
            return fits_header(json.loads(stream.readline()))
    except (ValueError, RecursionError):
        return False


def parse_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: found {line[:40]!r}, expected a JSON object. {MAKE}", key=KEY)
    return value


def is_line(text: Any) -> bool:
    """Say whether a value is a line of text as `clean_text` leaves it, without control characters.

    Halves of surrogate pairs are none.
    """
    if not isinstance(text, str) or not text or clean_text(text) != text:
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def fits_header(header: Mapping[str, Any]) -> bool:
    """Say whether a header has all that is read of it, in its type: it comes from elsewhere."""
    try:
        teacher, splits = header["teacher"], header["splits"]
        adapter, base = teacher["adapter"], teacher["base"]
        hashes = [
            header["sha256"],
            adapter["sha256"],
            adapter["config_sha256"],
            *(splits[split] for split in SPLITS),
        ]
        texts = [
            teacher["name"],
            base["name"],
            header["rule"],
            *([base["revision"]] if base["revision"] is not None else []),
        ]
        numbers = [header["rows"], header["from_people"], teacher["num_beams"]]
    except (KeyError, TypeError):
        return False
    return (
        all(isinstance(value, str) and bool(SHA256.fullmatch(value)) for value in hashes)
        and all(is_line(value) and len(value) <= 300 for value in texts)
        and all(type(value) is int and value >= 0 for value in numbers)
        and teacher.get("has_seen") in SEEN
    )


def check_sentences(
    path: Path, texts: Mapping[str, str], header: Mapping[str, Any], splits: Mapping[str, Sequence[Example]]
) -> None:
    """Raise where a target is for no training sentence, or its teacher's held-out sentences were others."""
    places = {example.id: split for split in SPLITS for example in splits[split]}
    for number, identity in enumerate(texts, start=2):
        place = places.get(identity)
        if place is None:
            missing = sum(identity not in places for identity in texts)
            raise DataError(
                f"{path}:{number}: {count(missing, 'target')} of {len(texts):,} for sentences that are not "
                f"in this data set, here {identity!r}. {MAKE}, a run of this recipe's data; "
                "or leave targets out with --data.targets null.",
                key=KEY,
            )
        if place != "train":
            raise DataError(
                f"{path}:{number}: the sentence {identity!r} stands in this run's {place} split: "
                f"its target would leak. {MAKE}, a run with this recipe's data, data.seed and shares.",
                key=KEY,
            )
    other = [
        split for split in ("validation", "test") if header["splits"][split] != hash_examples(splits[split])
    ]
    if other:
        raise DataError(
            f"{path}: made for another {' and '.join(other)} split; its teacher may have seen what is held "
            f"out here. {MAKE}, a run with this recipe's data, data.seed and shares; "
            "or leave targets out with --data.targets null.",
            key=KEY,
        )
