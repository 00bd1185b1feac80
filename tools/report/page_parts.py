"""What a page is made of. Each part knows its kind, by which the template draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Picture:
    """An image inside the page.

    Attributes:
        uri: data URI of the image.
        alt: what it shows, for those who do not see it.
        caption: what one sees and how to read it.
        labels: names of the picture's rows, of equal height, at its left.
        still: data URI shown in place of a moving image to those who have asked their system for less motion.
        width: widest it is drawn, CSS pixels; None: as wide as the page.
    """

    kind: ClassVar[str] = "picture"
    uri: str
    alt: str
    caption: str
    labels: Sequence[str] = ()
    still: str | None = None
    width: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows of text; the first `headings` columns name the row, the others are figures if `numbers`."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    headings: int = 1
    numbers: bool = True


@dataclass(frozen=True)
class Note:
    """Why something is not there, and what would bring it."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class FoldedText:
    """Text that is folded away under its title."""

    kind: ClassVar[str] = "folded_text"
    title: str
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, as the name of a run; `color` is that run's."""

    kind: ClassVar[str] = "heading"
    text: str
    color: str | None = None


Part = Picture | Table | Note | FoldedText | Heading


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    title: str
    intro: str = ""
    parts: list[Part] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")
