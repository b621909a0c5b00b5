"""Rewrite texts with an adapter, of a run or the Hub: python -m eval.detoxify RUN_DIR_OR_HUB_ID [TEXT …]"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator

from sft.command import InputError, run_command, show
from sft.data import clean_text
from sft.files import is_unicode


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.detoxify",
        description="Rewrite each TEXT, or else each line of standard input: "
        "one line out for one line in, in order.",
    )
    parser.add_argument(
        "adapter", metavar="RUN_DIR_OR_HUB_ID", help="a finished run, or a published adapter's Hub id"
    )
    parser.add_argument(
        "texts", metavar="TEXT", nargs="*", help="a text to rewrite; line breaks in it become spaces"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object for each text instead: text, rewrite"
    )
    arguments = parser.parse_args()
    for number, text in enumerate(arguments.texts, start=1):
        if not is_unicode(text):
            raise InputError(f"text {number}: not UTF-8. Convert it: iconv -f latin1 -t utf8.")

    from eval.adapter import find_adapter
    from eval.generate import load_rewriter

    rewriter = load_rewriter(find_adapter(arguments.adapter))
    lines = arguments.texts or read_lines()
    for chunk in split_chunks(lines, 8 * rewriter.settings.batch_size):
        for text, rewrite in zip(chunk, rewriter.rewrite(chunk), strict=True):
            # A line break in an answer would break the pairing of lines.
            line = (
                json.dumps({"text": text.rstrip("\n"), "rewrite": rewrite})
                if arguments.json
                else clean_text(rewrite)
            )
            print(show(line) if sys.stdout.isatty() else line, flush=True)


def read_lines() -> Iterator[str]:
    """Yield standard input's lines.

    Raises:
        InputError: a line is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"standard input, line {number}: not UTF-8. Convert it: iconv -f latin1 -t utf8."
            ) from None


def split_chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield lists of `size` lines, the last one shorter: all of a long input need not be held in memory."""
    iterator = iter(lines)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


if __name__ == "__main__":
    run_command(main)
