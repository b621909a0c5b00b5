"""The run directory: the only passage between training, evaluation and publishing."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sft.command import Refusal, RunError, is_main_process, tell_once
from sft.data import Example
from sft.recipe import load_recipe
from sft.records import Environment, ExampleLine, LogLine, Manifest, TrainerState
from sft.schema import Recipe
from sft.splits import SPLITS, hash_examples
from sft.storage import SEAL, check_seal, read_json, read_json_lines, replace_folder, write_seal

FOLDERS = (
    "adapter", ".adapter", "checkpoints", "data", "eval", "logs", "plots",
    "publish", ".publish", ".publish.old", ".merged",
)  # fmt: skip
PARTS = (
    *FOLDERS,
    SEAL,
    "environment.json",
    "train.jsonl",
    "recipe.yaml",
)  # all that a run directory is made of


@dataclass(frozen=True)
class Run:
    """A run directory, opened: its paths, and what it holds, read once and kept.

    A training, which still changes its manifest, environment and log, reads these from their paths.
    """

    root: Path

    @cached_property
    def recipe(self) -> Recipe:
        """The run's recipe, with every value.

        Raises:
            RecipeFaults: the file was changed after the run wrote it.
        """
        return load_recipe(self.recipe_path)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the run says of its data; see Preflight.describe_data.

        Raises:
            RunError: the file is missing or is not JSON; so for `environment` and `log`.
        """
        return read_json(self.manifest_path, Manifest)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware, base, and what the training took."""
        return read_json(self.environment_path, Environment)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """A line a logging step; see ProgressLog."""
        return read_json_lines(self.log_path, LogLine)

    @cached_property
    def splits(self) -> dict[str, list[Example]]:
        """The examples of each split, verified against the hashes in the manifest.

        Raises:
            Refusal: a file was changed after the run wrote it.
        """
        splits = {}
        for split in SPLITS:
            path = self.split_path(split)
            splits[split] = [
                Example(line["toxic"], tuple(line["references"]))
                for line in read_json_lines(path, ExampleLine)
            ]
            if hash_examples(splits[split]) != self.split_hashes[split]:
                raise Refusal(
                    f"{path}: not the {split} split that the run was made with: "
                    "its hash is not the manifest's."
                )
        return splits

    @property
    def split_hashes(self) -> dict[str, str]:
        """The SHA-256 of each split's examples, as the manifest has them."""
        return {split: self.manifest["splits"][split]["sha256"] for split in SPLITS}

    @property
    def recipe_path(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def environment_path(self) -> Path:
        return self.root / "environment.json"

    @property
    def manifest_path(self) -> Path:
        return self.root / "data" / "manifest.json"

    @property
    def log_path(self) -> Path:
        return self.root / "train.jsonl"

    def split_path(self, name: str) -> Path:
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
    def eval(self) -> Path:
        return self.root / "eval"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def publish(self) -> Path:
        return self.root / "publish"

    def seal(self, adapter: Path) -> None:
        """Record the hash of each file of the training; `adapter` is where the adapter's two still lie.

        Of the recipe, environment.json has a hash: `eval` and `publish` in it may be changed afterwards.
        """
        paths = [self.environment_path, self.manifest_path, self.log_path]
        paths += [self.split_path(split) for split in SPLITS]
        files = {path.relative_to(self.root).as_posix(): path for path in paths}
        files |= {
            f"adapter/{path.name}": adapter / path.name
            for path in (self.adapter_weights, self.adapter_config)
        }
        write_seal(self.root, files)

    def check_seal(self) -> None:
        """Raise where a file of the training is not as the training wrote it (see sft.storage.check_seal)."""
        check_seal(self.root, "Restore it, or train again.")
        if hash_training(self.recipe.values()) != self.environment.get("recipe_sha256"):
            raise Refusal(
                f"{self.recipe_path}: not what the run was trained with. Restore it, or train again; "
                "only the sections eval and publish may be changed."
            )

    def is_run(self) -> bool:
        return self.recipe_path.is_file()

    def is_finished(self) -> bool:
        return self.adapter_weights.is_file() and self.adapter_config.is_file()

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that was written to its end, or None."""
        found = list_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def clear(self) -> None:
        """Remove what a run writes and nothing else; targets that it taught stay, for its students."""
        # recipe.yaml marks the folder as a run: it goes last, so that an interrupted clearing can be
        # repeated.
        for name in FOLDERS:
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in (self.root / SEAL, self.environment_path, self.log_path, self.recipe_path):
            path.unlink(missing_ok=True)


def hash_training(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a recipe's resolved values, as far as the training depends on them."""
    others = ("eval", "publish", "output_dir", "resume_from_checkpoint")
    text = json.dumps({key: values[key] for key in values if key not in others}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def list_checkpoints(parent: Path) -> list[Path]:
    """Return the checkpoints in a folder that were written to their end, by their steps.

    The trainer writes trainer_state.json last: a checkpoint that was cut off by a kill has none, or half of
    one.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):  # another process's run begins or ends: the folder goes away
        for folder in parent.glob("checkpoint-*"):
            with contextlib.suppress(OSError, RunError):
                state = read_json(folder / "trainer_state.json", TrainerState)
                found.append((state["global_step"], folder))
    return [folder for _, folder in sorted(found)]


def open_run(root: str | Path) -> Run:
    """Return a finished run.

    Raises:
        RunError: there is no such folder, it is no run directory, or its training did not finish.
    """
    run = Run(Path(root))
    settle_replacement(run.root)
    if not run.root.is_dir():
        raise RunError(
            f"{root}: no such folder. Expected a run directory, such as runs/tiny; sft/run.py makes one."
        )
    if not run.is_run():
        raise RunError(
            f"{root}: not a run directory (no recipe.yaml in it). Expected one that sft/run.py made."
        )
    if not run.is_finished():
        raise RunError(
            f"{root}: its training did not finish (no adapter in it). Wait for it if it still runs. "
            f"Go on with: accelerate launch sft/run.py {run.recipe_path} --resume_from_checkpoint true"
        )
    return run


def find_training(root: str | Path, overwrite: bool, resume: bool) -> Run:
    """Return the run that a training for the run directory `root` works in.

    A finished run is replaced by another once that one is finished, too: it is made beside it, as
    `.NAME.new`, and goes on there after an interruption.
    """
    run = Run(Path(root))
    beside = Run(name_beside(run.root, "new"))
    if overwrite:
        return beside if run.is_finished() else run
    return beside if resume and run.is_finished() and beside.last_checkpoint() else run


def name_beside(root: Path, what: str) -> Path:
    return root.with_name(f".{root.resolve().name}.{what}")


def settle_replacement(root: Path) -> None:
    """Finish what a kill has left half done at a training's end: two renames, the removal of checkpoints."""
    beside, old = name_beside(root, "new"), name_beside(root, "old")
    if not root.exists() and Run(old).is_finished():
        (beside if Run(beside).is_finished() else old).rename(root)
    if Run(root).is_finished():
        for path in (old, root / "checkpoints", root / ".adapter"):
            shutil.rmtree(path, ignore_errors=True)


def replace_run(new: Run, run: Run) -> None:
    """Put a finished run in the place of another, as soon as nobody evaluates or publishes that one.

    What is in the folder and no part of a run stays, as targets do that it taught.
    """
    with lock_folder(run.root, fcntl.LOCK_EX, "somebody evaluates or publishes the run that is replaced"):
        new_names = {path.name for path in new.root.iterdir()}
        for path in run.root.iterdir():
            if path.name not in new_names and path.name not in PARTS:
                path.rename(new.root / path.name)
        replace_folder(new.root, run.root)


@contextlib.contextmanager
def hold_run(run: Run) -> Iterator[None]:
    """Lock the run directory for this training while the block runs; a kill unlocks it.

    The main process holds the lock.

    Raises:
        RunError: another process trains in it, or evaluates or publishes it.
    """
    if not is_main_process():
        yield
        return
    run.root.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(run.root, fcntl.LOCK_EX):
            yield
    finally:
        with contextlib.suppress(OSError):
            run.root.rmdir()  # empty where a fault came before anything was written


@contextlib.contextmanager
def share_run(root: str | Path) -> Iterator[Run]:
    """Open a finished run, and keep trainings from replacing it while the block reads it.

    Any number of processes may do so at a time.

    Raises:
        RunError: see `open_run`.
    """
    run = open_run(root)
    with lock_folder(run.root, fcntl.LOCK_SH, "another process is training here"):
        yield run


@contextlib.contextmanager
def lock_folder(folder: Path, how: int, wait: str | None = None) -> Iterator[None]:
    """Lock a folder itself, which needs no file, while the block runs.

    Args:
        how: LOCK_EX or LOCK_SH of fcntl.
        wait: why it may take a while, which is said once; without it, nothing is waited for.

    Raises:
        RunError: another process has the lock, and nothing is waited for.
    """
    while True:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait is None:
                    raise RunError(
                        f"{folder}: another process is training here, or evaluates or publishes this run. "
                        "Wait for it, or use another --output_dir."
                    ) from None
                tell_once(f"{folder}: {wait}; waiting for it")
                fcntl.flock(descriptor, how)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else it was replaced meanwhile
                yield
                return
        finally:
            os.close(descriptor)
