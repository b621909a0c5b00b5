"""Data files (.tsv, .csv, .jsonl, .parquet), read as cells; their faults told with file and row."""

import contextlib
import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sft.command import count
from sft.hub import first_line
from sft.schema import DataConfig, RecipeError

CHUNK = 10_000  # rows read at a time
SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet")
# The two layouts of ParaDetox: a row a sentence (GitHub), and a row a pair (Hub). Only the first rewrite is
# required.
LAYOUTS = {
    "toxic": ("neutral1", "neutral2", "neutral3"),
    "en_toxic_comment": ("en_neutral_comment",),
}


class DataError(RecipeError):
    """A data set that can't be read: what was found, where, and how to mend it."""


def find_columns(paths: Sequence[Path], config: DataConfig) -> tuple[str, ...]:
    """Return the names of the toxic column and the neutral ones, after checking the files for faults."""
    toxic, neutral = choose_columns(check_files(paths, config.quoting), config, paths[0])
    if paths[0].suffix == ".jsonl":
        check_texts(paths, (toxic, *neutral))
    return toxic, *neutral


def stream_rows(
    paths: Sequence[Path], columns: Sequence[str], quoting: bool | None = None
) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield the cells of these columns, the toxic one first, CHUNK rows at a time: no more is in memory.

    Each file is opened under its own name: no pattern, URL or other file can stand in for it.
    """
    cells = (row for path in paths for row in read_cells(path, columns, quoting))
    while chunk := list(itertools.islice(cells, CHUNK)):
        yield [(row[0] or "", [cell or "" for cell in row[1:]]) for row in chunk]


def read_cells(path: Path, columns: Sequence[str], quoting: bool | None) -> Iterator[Sequence[str | None]]:
    """Yield the cells of these columns for each row of a file."""
    if path.suffix == ".jsonl":
        yield from ([row.get(name) for name in columns] for _, row in read_json_rows(path))
    elif path.suffix == ".parquet":
        yield from read_parquet(path, columns)
    else:
        records = (record for record in read_records(path, quoting) if record.fields)
        header = name_columns(next(records).fields)
        places = [header.index(name) for name in columns]
        for record in records:  # a row may leave out empty fields at its end
            yield [record.fields[at] if at < len(record.fields) else None for at in places]


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    """Yield the cells of these columns of a .parquet file.

    Raises:
        DataError: a column holds something else than text, or the file is broken.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            for name in columns:
                kind = parquet.schema_arrow.field(name).type
                kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
                if str(kind) not in ("string", "large_string", "string_view", "null"):
                    message = f"{path}: the column {name!r} holds {kind}, expected text."
                    raise DataError(message, key="data.source")
            for batch in parquet.iter_batches(CHUNK, columns=list(columns)):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
    except DataError:
        raise
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path}: could not be read: {first_line(error)}", key="data.source") from None


def check_files(paths: Sequence[Path], quoting: bool | None) -> list[str]:
    """Return the files' column names, after a look at each row: faults are told before anything is made."""
    headers = {}
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: unknown kind of file. Expected {', '.join(SUFFIXES)}.", key="data.source"
            )
        if path.suffix == ".parquet":
            headers[path] = read_parquet_header(path)
            continue
        is_json = path.suffix == ".jsonl"
        headers[path] = check_json_lines(path) if is_json else check_delimited(path, quoting)
    first = paths[0]
    for path in paths[1:]:
        if headers[path] != headers[first]:
            raise DataError(
                f"{path}: its columns ({', '.join(headers[path])}) are not those of {first} "
                f"({', '.join(headers[first])}).",
                key="data.source",
            )
    return headers[first]


@contextlib.contextmanager
def open_text(path: Path, newline: str = "", may_be_blank: bool = False) -> Iterator[TextIO]:
    """Open a text file to be read as UTF-8 with or without a byte order mark; `newline` as for `open`."""
    with path.open("rb") as stream:
        if not may_be_blank and not any(line.strip() for line in stream):
            raise DataError(
                f"{path}: the file is empty. Expected a header and at least one row.", key="data.source"
            )
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError:
        row, byte = find_broken_byte(path)
        charset = "utf16" if row == 1 and byte in (0xFE, 0xFF) else "latin1"
        raise DataError(
            f"{path}:{row}: not UTF-8 (byte 0x{byte:02x}). Convert it: iconv -f {charset} -t utf8.",
            key="data.source",
        ) from None


def find_broken_byte(path: Path) -> tuple[int, int]:
    """Return the row and the value of the first byte that is not UTF-8."""
    with path.open("rb") as stream:
        for row, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return row, line[error.start]
    raise AssertionError(f"{path} is UTF-8")


def decode_file(path: Path, may_be_blank: bool = False) -> str:
    """Return a text file's content, read as UTF-8 with or without a byte order mark."""
    with open_text(path, may_be_blank=may_be_blank) as stream:
        return stream.read()


@dataclass(frozen=True)
class Record:
    """A row of a .tsv or .csv file."""

    fields: list[str]  # none of an empty line
    lines: list[str]  # of the file, as they stand there
    number: int  # of the first of them


def read_records(path: Path, quoting: bool | None) -> Iterator[Record]:
    """Yield each row of a .tsv or .csv file, its header too; for `quoting` see `DataConfig`.

    Raises:
        DataError: broken quoting, or not UTF-8.
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    number, lines = 1, list[str]()
    try:
        with open_text(path) as stream:
            kept = (lines.append(line) or line for line in stream)  # type: ignore[func-returns-value]
            for fields in csv.reader(
                kept,
                delimiter=separator,
                strict=True,
                quoting=csv.QUOTE_NONE if quoting is False else csv.QUOTE_MINIMAL,
            ):
                yield Record(fields, lines.copy(), number)
                number += len(lines)
                lines.clear()
    except csv.Error as error:
        raise DataError(
            f"{path}:{number}: broken quoting in the row that starts here ({error}). "
            'A quote inside a quoted field is written twice: "". '
            "Where quotation marks are text like any other, say data.quoting: false.",
            key="data.source",
        ) from None


def name_columns(fields: Sequence[str]) -> list[str]:
    """Return the names of a header's columns; pandas writes its index column without one."""
    return [name or f"Unnamed: {number}" for number, name in enumerate(fields)]


def check_delimited(path: Path, quoting: bool | None = None) -> list[str]:
    """Return the header of a .tsv or .csv file. A row may leave out empty fields at its end, but not all."""
    header: list[str] = []
    rows = 0
    for record in read_records(path, quoting):
        fields = record.fields
        if not header:
            header = name_columns(fields)
            check_header(path, header)
        elif fields:
            rows += 1
            if quoting is None and len(record.lines) > 1:
                check_quotation(path, record, len(header))
            if not 2 <= len(fields) <= len(header):
                raise DataError(
                    f"{path}:{record.number}: this row has {count(len(fields), 'field')}, "
                    f"expected 2 to {len(header)}. "
                    "A field that holds a tab, a comma, a quote or a line break must be quoted.",
                    key="data.source",
                )
    if not rows:
        raise DataError(f"{path}: a header and no rows.", key="data.source")
    return header


def check_quotation(path: Path, record: Record, columns: int) -> None:
    """Raise where a row over several lines may be that many rows, with halves of quotations in their texts.

    In a .tsv file that is a quoted cell with a tab and a line end; or a row with some columns left out whose
    lines, without quoting, have as many fields each. In a .csv file, where commas stand in any text, it is a
    row whose lines each have a field for each column.
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    lengths = {line.count(separator) + 1 for line in record.lines}
    if separator == "\t":
        swallows = any("\t" in cell and ("\n" in cell or "\r" in cell) for cell in record.fields)
        swallows = swallows or (len(lengths) == 1 and min(lengths) > 1 and len(record.fields) != columns)
    else:
        swallows = lengths == {columns}
    if swallows:
        last = record.number + len(record.lines) - 1
        rows = count(len(record.lines), "row")
        raise DataError(
            f"{path}:{record.number}: a quotation mark opens a cell here, and closes it in row {last}: one "
            f"row with quoting, {rows} (with a part of a quotation each) without. Say which: "
            "data.quoting: true, or false, where quotation marks are text like any other.",
            key="data.source",
        )


def check_header(path: Path, header: list[str]) -> None:
    if len(header) < 2:
        raise DataError(
            f"{path}:1: only one column ({header[0]!r}). Expected a toxic and a neutral one, with "
            f"{'tabs' if path.suffix == '.tsv' else 'commas'} between them.",
            key="data.source",
        )
    check_names(Path(f"{path}:1"), header)


def check_names(place: Path, names: Sequence[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise DataError(f"{place}: the column {name!r} stands there {times} times.", key="data.source")


def check_json_lines(path: Path) -> list[str]:
    """Return the union of the keys of a .jsonl file, in order of appearance."""
    header: dict[str, None] = {}
    for number, row in read_json_rows(path):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}:{number}: a {type(row).__name__}, expected an object such as "
                '{"toxic": "…", "neutral1": "…"}.',
                key="data.source",
            )
        header.update(dict.fromkeys(row))
    return list(header)


def read_json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each row of a .jsonl file with its number."""
    with open_text(path, newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.removesuffix("\n"))
                except json.JSONDecodeError as error:
                    message = f"{path}:{number}: not JSON ({error.msg}, column {error.colno})."
                    raise DataError(message, key="data.source") from None


def check_texts(paths: Sequence[Path], columns: Sequence[str]) -> None:
    """Raise for the first row of .jsonl files where one of these columns is neither text nor null."""
    for path in paths:
        for number, row in read_json_rows(path):
            for name in columns:
                value = row.get(name)
                if not isinstance(value, str | None):
                    message = f"{path}:{number}: {name!r} is {json.dumps(value)}, expected text or null."
                    raise DataError(message, key="data.source")
                if value and not is_unicode(value):
                    raise DataError(
                        f"{path}:{number}: {name!r} holds half of a surrogate pair.", key="data.source"
                    )


def is_unicode(text: str) -> bool:
    """Say whether `text` can be written as UTF-8: it holds no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def read_parquet_header(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            rows, names = parquet.metadata.num_rows, list(parquet.schema_arrow.names)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({first_line(error)}).", key="data.source") from None
    if not rows:
        raise DataError(f"{path}: a header and no rows.", key="data.source")
    check_names(path, names)
    return names


def choose_columns(header: Sequence[str], config: DataConfig, path: Path) -> tuple[str, list[str]]:
    """Return the toxic and the neutral column names: the recipe's, or those of a ParaDetox layout."""
    toxic = config.toxic or next((name for name in LAYOUTS if name in header), None)
    if toxic is None:
        raise DataError(
            f"{path}: no toxic column; it has {', '.join(header)}. Expected {' or '.join(LAYOUTS)}, "
            "or the names that the recipe gives as data.toxic and data.neutral.",
            key="data.toxic",
        )
    if config.neutral:
        neutral = list(config.neutral)
        missing = [name for name in neutral if name not in header]
    else:
        layout = LAYOUTS.get(toxic, LAYOUTS["toxic"])
        neutral = [name for name in layout if name in header]
        missing = [] if neutral else [layout[0]]
    missing = [name for name in (toxic, *missing) if name not in header]
    if missing:
        raise DataError(
            f"{path}: no column {' or '.join(map(repr, missing))}; it has {', '.join(header)}. "
            "Other names go into the recipe, as data.toxic and data.neutral.",
            key="data.toxic" if toxic in missing else "data.neutral",
        )
    return toxic, neutral


def describe_absence(path: Path) -> str:
    """Return what is in place of a file that is not there."""
    return "a folder" if path.is_dir() else "no such file"
