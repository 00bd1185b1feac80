"""The fenced blocks of a page, and the commands inside its paragraphs."""

import re
import shlex
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced block: where it is, its language, its text, and why it is not run."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Its lines, continued ones joined, without comments and what is empty then."""
        return [line for line in self.text.replace("\\\n", " ").splitlines() if words_of(line)]


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def blocks_of(page: str, text: str) -> list[Block]:
    """Every fenced block of a page."""
    found, start, fence = [], None, ""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if start is None and line.lstrip().startswith("```"):
            start, fence = number, line.strip()[3:]
        elif start is not None and line.strip() == "```":
            above = re.fullmatch(r"<!-- not run: (.+) -->", lines[start - 1].strip()) if start else None
            body = "\n".join(lines[start + 1 : number])
            found.append(Block(page, start + 1, fence, body, above[1] if above else None))
            start = None
    assert start is None, f"{page}: the block of line {start} has no end"
    return found


def without_blocks(text: str) -> str:
    """The text with as many empty lines for each of its blocks."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def inline_of(page: str, text: str) -> list[Block]:
    """Commands inside paragraphs, [optional] words included; never run."""
    outside, found = without_blocks(text), []
    for match in re.finditer(r"`((?:python -m|make|pip install|torchrun) [^`]+)`", outside):
        words = match[1] if match[1].startswith("pip") else re.sub(r"\[([^\]]*=?[^\]]*)\](?=\s|$)", r"\1", match[1])
        found.append(Block(page, outside[: match.start()].count("\n") + 1, "sh", words, "in a paragraph"))
    return found
