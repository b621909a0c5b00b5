"""The data files that a recipe names: found here or downloaded, hashed, and read as a table."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sft.files import SUFFIXES, DataError, find_columns, stream_rows
from sft.hub import explain_errors, first_line
from sft.schema import DataConfig
from sft.storage import find_path, hash_file, name_path


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
    """Read the toxic and the neutral columns of a Hub data set, a file or a folder."""
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
    return {str(p.relative_to(path)) if path.is_dir() else p.name: hash_file(p) for p in paths}


def download_data_set(config: DataConfig) -> tuple[Path, str]:
    """Download a Hub data set at one commit; return the folder and that commit's full hash.

    The whole snapshot is taken first, and then read as a folder: the same code as for local files, one commit
    for all files, and the cache serves it again without network.
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
    rows = [row for chunk in stream_rows(paths, (toxic, *neutral), config.quoting) for row in chunk]
    check_unchanged(path, paths, source)
    return Table(source, rows)


def check_unchanged(path: Path, paths: Sequence[Path], source: Source) -> None:
    if hash_files(path, paths) != source.files:
        raise DataError(f"{path}: changed while it was read. Run the command again.", key="data.source")


def list_files(folder: Path, config: DataConfig) -> list[Path]:
    """Return the folder's files of `config.split`, as `datasets` tells splits apart (by name or README).

    It takes paths for patterns, so it is shown a copy of the folder, of links, under names without any.
    """
    import datasets

    with tempfile.TemporaryDirectory() as temporary:
        found = {str(Path(temporary).resolve() / name): path for name, path in link_files(folder, temporary)}
        try:
            named = datasets.load_dataset_builder(temporary).config.data_files or {}
        except FileNotFoundError:  # EmptyDatasetError and DataFilesNotFoundError among them
            named = {}
        except ValueError as error:
            raise DataError(f"{folder}: {first_line(error)} Name one file.", key="data.source") from None
    by_split = {
        str(split): sorted(found[file] for file in files if file.endswith(SUFFIXES))
        for split, files in named.items()
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


def link_files(folder: Path, copy: str) -> Iterator[tuple[str, Path]]:
    """Link a folder's data files and READMEs in the folder `copy`; yield each link's name and its file."""
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        folders[:] = [name for name in folders if not here.resolve().is_relative_to((here / name).resolve())]
        for file in files:
            if file.endswith((*SUFFIXES, ".md", ".yaml")):
                path = here / file
                name = re.sub(r"[^\w.\-/ ]", "_", str(path.relative_to(folder)))
                link = Path(copy) / name
                if link.is_symlink():
                    message = f"{folder}: its files' names differ in signs alone ({file}). Name one file."
                    raise DataError(message, key="data.source")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
                yield name, path
