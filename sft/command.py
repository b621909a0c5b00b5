"""How every command begins, speaks and ends: errors with their exit statuses, notes printed once."""

import argparse
import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
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


class Refusal(RunError):
    """A check found what must be neither believed nor published: commands exit with 3."""

    status = 3


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
        print(text, file=sys.stderr)


def exit_with(error: InputError) -> NoReturn:
    """Print a fault on standard error, from the main process alone, and exit with its status.

    A command that was asked for JSON gets it on standard output, too.
    """
    if is_main_process():
        print(f"error: {error}" if "\n" not in str(error) else f"errors:\n{error}", file=sys.stderr)
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error), "status": error.status} | error.report))
    raise SystemExit(error.status)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; a fault ends it with a message and its status (2: bad input), no traceback.

    TRL and huggingface_hub send no telemetry unless the user has set this variable.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        main()
    except InputError as error:
        exit_with(error)
    except BrokenPipeError:  # the reader of our output has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR):
            raise
        exit_with(InputError(f"{error.filename or 'a file'}: can't be written or read: {error.strerror}."))
    except KeyboardInterrupt:
        if is_main_process():
            print("interrupted: started again, the same command goes on, or says how", file=sys.stderr)
        raise SystemExit(130) from None


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
