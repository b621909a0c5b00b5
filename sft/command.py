"""How every command begins, speaks and ends: errors with their exit statuses, notes printed once."""

import argparse
import contextlib
import errno
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn


class InputError(ValueError):
    """Bad input: says what was found, what is expected, where, and how to mend it.

    Commands print it and exit with `status`. `report` is what a command with --json says beside the error.
    """

    status = 2

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report = dict(report or {})


class RunError(InputError):
    """A run directory that is not what a command needs: what was found, and which command mends it."""


class Shortage(InputError):
    """This machine has run out of something, such as disk or memory: no fault of the input, exit status 1."""

    status = 1


class Refusal(RunError):
    """A check found what must be neither believed nor published: commands exit with 3."""

    status = 3


# What steers a terminal or a reader in place of being seen: controls, the direction of text, tags.
HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


def show(text: str) -> str:
    r"""Return a text in which each hidden character is written out, as \x1b; line breaks and tabs stay."""
    return HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def parse_count(text: str) -> int:
    """Return a whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def count(number: int, noun: str) -> str:
    """Return "1 row", "2 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_main_process() -> bool:
    """Say whether this is the main process of a launcher's; known before they have joined."""
    return os.environ.get("RANK", "0") == "0"


@functools.cache
def tell_once(text: str) -> None:
    """Print a line on standard error, from the main process alone, and the same line once."""
    if is_main_process():
        print(show(text), file=sys.stderr)


def exit_with(error: InputError) -> NoReturn:
    """Print a fault on standard error, from the main process alone, and exit with its status.

    A command that was asked for JSON gets it on standard output, too.
    """
    if is_main_process():
        text = show(str(error))
        print(f"error: {text}" if "\n" not in text else f"errors:\n{text}", file=sys.stderr)
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error), "status": error.status} | error.report))
    raise SystemExit(error.status)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a fault ends it with a message and its status (2: bad input), no traceback.

    TRL and huggingface_hub send no telemetry unless the user has set this variable.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        with explain_shortage(Path.cwd()):
            main()
    except InputError as error:
        exit_with(error)
    except BrokenPipeError:  # the reader of our output has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise
        exit_with(InputError(f"{error.filename or 'a file'}: can't be written or read: {error.strerror}."))
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted: started again, the same command goes on, or says how", file=sys.stderr)
        raise SystemExit(130) from None


SHORTAGES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than allowed",
    errno.EIO: "the disk failed",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
    errno.ENOMEM: "the memory is used up",
}
# Libraries that write in Rust or C++ raise errors of their own: safetensors and tokenizers with the system's
# number, torch without it.
SYSTEM_NUMBER = re.compile(r"\(os error (\d+)\)")
TORCH_WRITING = re.compile(r"PytorchStreamWriter|iostream error|unexpected pos")
MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|std::bad_alloc"
)


@contextlib.contextmanager
def explain_shortage(
    folder: Path, mend: str = "Start the same command again when there is more."
) -> Iterator[None]:
    """Turn what the system refuses the block, for lack of disk, files or memory, into one message.

    Args:
        folder: where the block writes, if the error does not name the file.
        mend: what to do.

    Raises:
        Shortage: it was refused.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = find_shortage(error)
        if found is None:
            raise
        place = Path(getattr(error, "filename", None) or folder)
        with contextlib.suppress(OSError):
            parent = next(path for path in (place, *place.parents) if path.exists())
            found += f" ({shutil.disk_usage(parent).free / 2**20:,.0f} MiB free there)"
        raise Shortage(f"{place}: {found}. {mend}") from error


def find_shortage(error: BaseException) -> str | None:
    """Return what the system ran out of, by an error of Python's or of a library, or None."""
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return SHORTAGES[error.errno]
    if isinstance(error, MemoryError):
        return SHORTAGES[errno.ENOMEM]
    text = str(error)
    if number := SYSTEM_NUMBER.search(text):
        return SHORTAGES.get(int(number[1]))
    if isinstance(error, RuntimeError) and MEMORY.search(text):
        return SHORTAGES[errno.ENOMEM]
    if isinstance(error, RuntimeError) and TORCH_WRITING.search(text):
        return "a file could not be written to its end, as where the disk is full"
    return None


def quiet_libraries() -> None:
    """Silence the libraries' progress bars and their notes to developers; warnings and errors stay."""
    import logging
    import warnings

    # Deprecations inside trl and peft, and bitsandbytes' advice to install an optional package, are not the
    # user's.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft")
    for name in ("bitsandbytes", "transformers.integrations.bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # DeepSpeed, where it is installed, is imported by trl, and warns on standard output of what a CPU lacks.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
