"""Foreign text in the terminal, in Markdown and in HTML: shown as it is written, steering nothing."""

import io

import pytest
from rich.table import Table
from rich.text import Text

from eval import standalone
from eval.report import escape_markdown
from sft import command
from sft.command import InputError, exit_with, show
from sft.terminal import Terminal

HOSTILE = [
    "\x1b[2Jgone",
    "\x1b]0;title\x07",
    "a\rb",
    "\x9b31m",
    "abc\u202ecba",
    "\u2066x\u2069",
    "\u200fx",
    "\ufeffx",
    "\U000e0041tag",
    "\x00",
    "\u2028line",
]
HARMLESS = ["[/nope] :smile: [bold]x[/]", "कर्म\u200dन", "👩\u200d🔬", "مرحبا", "日本語", "a\tb", "héllo"]


def write(text: str) -> str:
    stream = io.StringIO()
    terminal = Terminal(file=stream, width=200)
    terminal.print(text)
    table = Table("head", title=text)
    table.add_row(text)
    table.add_row(Text(text))
    terminal.print(table)
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_hidden_is_written_out(text: str) -> None:
    written = write(text)
    assert not command.HIDDEN.search(written)
    assert show(text) in written or set(text) & set("\r\x07")  # these rich leaves out
    assert command.HIDDEN.search(escape_markdown(text)) is None
    assert standalone.show(text) == show(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_is_left_alone(text: str) -> None:
    assert show(text) == standalone.show(text) == text
    assert write(text).count(text.replace("\t", " " * 7)) >= 1 or text in write(text)


def test_errors_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        exit_with(InputError("x\x1b[31m"))
    assert capsys.readouterr().err == "error: x\\x1b[31m\n"
