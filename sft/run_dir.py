"""The run directory: every path of a run, atomic writes, hashes. The only passage between training, eval and publish."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.recipe import InputError, is_main_process


class RunError(InputError):
    """A run directory that is not what a command needs: what was found, and which command mends it."""


class Refusal(RunError):
    """A check found what must be neither believed nor published: commands exit with 3."""

    status = 3


@dataclass(frozen=True)
class RunDir:
    """The paths of one run; see the file tree in the README."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def manifest(self) -> Path:
        return self.root / "data" / "manifest.json"

    def split(self, name: str) -> Path:
        return self.root / "data" / f"{name}.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def adapter_weights(self) -> Path:
        return self.adapter / "adapter_model.safetensors"

    @property
    def adapter_config(self) -> Path:
        return self.adapter / "adapter_config.json"

    @property
    def train_log(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def eval(self) -> Path:
        return self.root / "eval"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def publish(self) -> Path:
        return self.root / "publish"

    def is_run(self) -> bool:
        return self.recipe.is_file()

    def is_finished(self) -> bool:
        return self.adapter_weights.is_file() and self.adapter_config.is_file()

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that was written to its end, or None.

        The trainer writes trainer_state.json last: a checkpoint that was cut off by a kill has none, or half of one.
        """
        found = []
        with contextlib.suppress(FileNotFoundError):  # another process's run begins or ends: the folder goes away
            for folder in self.checkpoints.glob("checkpoint-*"):
                with contextlib.suppress(OSError, ValueError):
                    found.append((json.loads((folder / "trainer_state.json").read_text())["global_step"], folder))
        return max(found)[1] if found else None

    def clear(self) -> None:
        """Remove what a run writes, and nothing else that may lie in the folder."""
        # recipe.yaml marks the folder as a run: it goes last, so that an interrupted clearing can be repeated.
        for name in ("adapter", ".adapter", "checkpoints", "data", "eval", "logs", "plots", "publish", ".publish"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in (self.environment, self.train_log, self.recipe):
            path.unlink(missing_ok=True)


def open_run(root: str | Path) -> RunDir:
    """Return a finished run.

    Raises:
        RunError: there is no such folder, it is no run directory, or its training did not finish.
    """
    run = RunDir(Path(root))
    if not run.root.is_dir():
        raise RunError(f"{root}: no such folder. Expected a run directory, such as runs/tiny; sft/run.py makes one.")
    if not run.is_run():
        raise RunError(f"{root}: not a run directory (no recipe.yaml in it). Expected one that sft/run.py made.")
    if not run.is_finished():
        raise RunError(
            f"{root}: its training did not finish (no adapter in it). Wait for it if it still runs. "
            f"Go on with: accelerate launch sft/run.py {run.recipe} --resume_from_checkpoint true"
        )
    return run


@contextlib.contextmanager
def hold_run(run: RunDir) -> Iterator[None]:
    """Keep the run directory to this training while the block runs; a kill gives it back. The main process holds it.

    Raises:
        RunError: another process trains in it.
    """
    if not is_main_process():
        yield
        return
    run.root.mkdir(parents=True, exist_ok=True)
    path = run.root / ".lock"
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{run.root}: another process is training here. Wait for it, or use another --output_dir.") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                run.root.rmdir()  # empty where a fault came before anything was written


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place, whole and on disk, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only the owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def draw_figure(path: Path) -> Iterator[Any]:
    """Yield matplotlib axes, and write what is drawn on them to `path` as a PNG when the block ends well."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    yield axes
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def read_json(path: Path) -> Any:
    """Return a JSON file's value.

    Raises:
        RunError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: missing from the run directory.") from None
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}); it was changed after the run wrote it.") from None


def read_json_lines(path: Path) -> list[Any]:
    """Return the values of a file with one JSON value a line."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except FileNotFoundError:
        raise RunError(f"{path}: missing from the run directory.") from None
    except ValueError as error:
        raise RunError(f"{path}: not JSON lines ({error}); it was changed after the run wrote it.") from None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
