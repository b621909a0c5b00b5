"""The data files that a recipe names: found or downloaded, read as cells, faults told with file and row."""

import contextlib
import csv
import glob
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sft.command import count
from sft.hub import explain_errors, first_line
from sft.schema import DataConfig, RecipeError
from sft.storage import find_path, hash_file, name_path

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


@dataclass(frozen=True)
class Source:
    """Where the rows came from: what the manifest and the card say of it."""

    name: str
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)  # file name -> SHA-256


@dataclass(frozen=True)
class Table:
    """The raw cells: a toxic cell and its neutral cells for each row, in file order."""

    source: Source
    rows: list[tuple[str, list[str]]]


def read_table(config: DataConfig) -> Table:
    """Read the toxic and the neutral columns of a Hub data set, a file or a folder, through `datasets`."""
    path, paths, source = find_files(config)
    return load_files(path, paths, config, source)


def find_files(config: DataConfig) -> tuple[Path, list[Path], Source]:
    """Return the file or folder that a recipe names (downloaded, from the Hub), its files and hashes."""
    path, name, commit = find_source(config)
    paths = [path] if path.is_file() else list_files(path, config)
    return path, paths, Source(name, commit, hash_files(path, paths))


def find_source(config: DataConfig) -> tuple[Path, str, str | None]:
    """Return the path of the data, the name that it is published under, and its commit on the Hub."""
    path = find_path(config.source)
    if path is not None:
        return path, name_path(path), None
    if config.source.endswith(SUFFIXES) or config.source.startswith((".", "/", "~")):
        raise DataError(
            f"{config.source}: no such file or folder. "
            f"Relative paths start at the working directory ({Path.cwd()}).",
            key="data.source",
        )
    folder, commit = download_data_set(config)
    return folder, config.source, commit


def hash_files(path: Path, paths: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name in the folder `path`, or by its own."""
    root = path.resolve()  # as `datasets` names what it finds in a folder behind a link
    return {str(p.relative_to(root)) if path.is_dir() else p.name: hash_file(p) for p in paths}


def download_data_set(config: DataConfig) -> tuple[Path, str]:
    """Download a Hub data set at one commit; return the folder and that commit's full hash.

    The whole snapshot is taken first, and `datasets` reads the folder: the same code as for local files, one
    commit for all files, and the cache serves it again without network.
    """
    from huggingface_hub import snapshot_download

    keys = ("data.source", "data.revision")
    with explain_errors(config.source, "data set", config.revision, keys):
        folder = snapshot_download(
            config.source,
            repo_type="dataset",
            revision=config.revision,
            allow_patterns=[f"*{suffix}" for suffix in SUFFIXES] + ["README.md"],
        )
    return Path(folder), Path(folder).name


def load_files(path: Path, paths: Sequence[Path], config: DataConfig, source: Source) -> Table:
    """Read the columns of these files of the file or folder `path`."""
    toxic, *neutral = find_columns(paths, config)
    rows = [row for chunk in stream_rows(path, paths, (toxic, *neutral)) for row in chunk]
    check_unchanged(path, paths, source)
    return Table(source, rows)


def find_columns(paths: Sequence[Path], config: DataConfig) -> tuple[str, ...]:
    """Return the names of the toxic column and the neutral ones, after checking the files for faults."""
    toxic, neutral = choose_columns(check_files(paths), config, paths[0])
    if paths[0].suffix == ".jsonl":
        check_texts(paths, (toxic, *neutral))
    return toxic, *neutral


def stream_rows(
    path: Path, paths: Sequence[Path], columns: Sequence[str]
) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield the cells of these columns, the toxic one first, CHUNK rows at a time: no more is in memory."""
    if (
        paths[0].suffix == ".jsonl"
    ):  # in which `datasets` does not take rows whose keys differ, batch by batch
        cells = ([row.get(name) for name in columns] for file in paths for _, row in read_json_rows(file))
        chunks: Iterable[Sequence[Sequence[str | None]]] = iter(
            lambda: list(itertools.islice(cells, CHUNK)), []
        )
    else:
        chunks = stream_tables(path, paths, columns)
    for chunk in chunks:
        yield [(row[0] or "", [cell or "" for cell in row[1:]]) for row in chunk]


def stream_tables(
    path: Path, paths: Sequence[Path], columns: Sequence[str]
) -> Iterator[list[tuple[str | None, ...]]]:
    """Yield the cells of .tsv, .csv or .parquet files through `datasets`."""
    import datasets

    options: dict[str, Any] = {}
    if paths[0].suffix != ".parquet":
        # Every cell is text: pandas would turn the sentences "null" and "NA" into gaps, and "123" into a
        # number.
        options = {
            "sep": "\t" if paths[0].suffix == ".tsv" else ",",
            "keep_default_na": False,
            "usecols": list(columns),
            "features": datasets.Features({name: datasets.Value("string") for name in columns}),
        }
    loader = "parquet" if paths[0].suffix == ".parquet" else "csv"
    names = [glob.escape(str(p)) for p in paths]
    try:
        data = datasets.load_dataset(loader, data_files=names, split="train", streaming=True, **options)
        for name in columns:
            kind = (data.features or {}).get(name)
            if getattr(kind, "dtype", None) not in ("string", "large_string", "null"):
                raise DataError(
                    f"{path}: the column {name!r} holds {kind}, expected text.", key="data.source"
                )
        for batch in data.select_columns(list(columns)).iter(batch_size=CHUNK):
            yield list(zip(*(batch[name] for name in columns), strict=True))
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: could not be read: {first_line(error)}", key="data.source") from None


def check_unchanged(path: Path, paths: Sequence[Path], source: Source) -> None:
    if hash_files(path, paths) != source.files:
        raise DataError(f"{path}: changed while it was read. Run the command again.", key="data.source")


def list_files(folder: Path, config: DataConfig) -> list[Path]:
    """Return the folder's files of `config.split`, as `datasets` tells splits apart (by name or README)."""
    import datasets

    if glob.has_magic(str(folder)):
        message = f"{folder}: a folder with one of [ * ? in its path can't be searched. Name one file."
        raise DataError(message, key="data.source")
    try:
        found = datasets.load_dataset_builder(str(folder.resolve())).config.data_files or {}
    except FileNotFoundError:  # EmptyDatasetError and DataFilesNotFoundError among them
        found = {}
    except ValueError as error:
        raise DataError(f"{folder}: {first_line(error)} Name one file.", key="data.source") from None
    by_split = {
        str(split): sorted(p for p in map(Path, files) if p.suffix in SUFFIXES)
        for split, files in found.items()
    }
    if not any(by_split.values()):
        raise DataError(
            f"{folder}: no data file in this folder. Expected {', '.join(SUFFIXES)}.", key="data.source"
        )
    paths = by_split.get(config.split)
    if not paths:
        raise DataError(
            f"{folder}: no split {config.split!r} in this folder; it has {', '.join(sorted(by_split))}.",
            key="data.split",
        )
    if len({p.suffix for p in paths}) > 1:
        kinds = ", ".join(sorted({p.suffix for p in paths}))
        raise DataError(f"{folder}: files of several kinds ({kinds}). Name one file.", key="data.source")
    return paths


def check_files(paths: Sequence[Path]) -> list[str]:
    """Return the files' column names; faults that `datasets` reports without file and row are found first."""
    headers = {}
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: unknown kind of file. Expected {', '.join(SUFFIXES)}.", key="data.source"
            )
        if path.suffix == ".parquet":
            headers[path] = read_parquet_header(path)
            continue
        headers[path] = check_json_lines(path) if path.suffix == ".jsonl" else check_delimited(path)
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
def open_text(path: Path, newline: str = "") -> Iterator[TextIO]:
    """Open a text file to be read as UTF-8 with or without a byte order mark; `newline` as for `open`."""
    with path.open("rb") as stream:
        if not any(line.strip() for line in stream):
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


def decode_file(path: Path) -> str:
    """Return a text file's content, read as UTF-8 with or without a byte order mark."""
    with open_text(path) as stream:
        return stream.read()


def check_delimited(path: Path) -> list[str]:
    """Return the header of a .tsv or .csv file. A row may leave out empty fields at its end, but not all."""
    header: list[str] = []
    rows = 0
    start = 1
    try:
        with open_text(path) as stream:
            reader = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            for fields in reader:
                if not header:
                    # pandas writes an index column without a name, and reads it under this one.
                    header = [name or f"Unnamed: {number}" for number, name in enumerate(fields)]
                    check_header(path, header)
                elif fields:
                    rows += 1
                    if not 2 <= len(fields) <= len(header):
                        raise DataError(
                            f"{path}:{start}: this row has {count(len(fields), 'field')}, "
                            f"expected 2 to {len(header)}. "
                            "A field that holds a tab, a comma, a quote or a line break must be quoted.",
                            key="data.source",
                        )
                start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}:{start}: broken quoting in the row that starts here ({error}). "
            'A quote inside a quoted field is written twice: "".',
            key="data.source",
        ) from None
    if not rows:
        raise DataError(f"{path}: a header and no rows.", key="data.source")
    return header


def check_header(path: Path, header: list[str]) -> None:
    if len(header) < 2:
        raise DataError(
            f"{path}:1: only one column ({header[0]!r}). Expected a toxic and a neutral one, with "
            f"{'tabs' if path.suffix == '.tsv' else 'commas'} between them.",
            key="data.source",
        )
    for name, times in Counter(header).items():
        if times > 1:
            raise DataError(f"{path}:1: the column {name!r} stands there {times} times.", key="data.source")


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
        parquet = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({first_line(error)}).", key="data.source") from None
    if not parquet.metadata.num_rows:
        raise DataError(f"{path}: a header and no rows.", key="data.source")
    return list(parquet.schema_arrow.names)


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
