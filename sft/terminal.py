"""The terminal, to which everything is written through rich: foreign text is shown, and never steers it."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sft.command import show


class Terminal(Console):
    """A console without markup and emoji codes; hidden characters in a text are written out."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(show(segment.text), segment.style)
