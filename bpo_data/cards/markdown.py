"""Other people's texts as Markdown: what is shown is the text, never structure and never HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bpo_data.errors import plain

LONGEST = 300
"""Characters of a text shown on one line; a longer one is cut."""

ENTITIES = {ord(letter): f"&#{ord(letter)};" for letter in "&<>|`\\~#!$"} | {
    ord(letter): f"\\{letter}" for letter in "*_[]"
}
"""A character reference never stands for structure (CommonMark 0.31, section 2.5), and a ``|`` so
written ends no cell in any reader of tables; the others are easier to read after a backslash."""

BULLET = re.compile(r"^(?:[-+=](?![\w.])|\d{1,9}(?=[.)](?:\s|$)))")
"""What would begin a list, a rule or a heading where a line begins with the text."""

LINKED = re.compile(r"://|www(?=\.)|@", re.IGNORECASE)
"""Where GitHub's Markdown makes links of bare addresses."""

BREAKS = re.compile("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]")


class Ready(str):
    """Markdown that goes into the card as it is."""


@dataclass(frozen=True)
class Pen:
    """Writes values of any origin into Markdown."""

    folders: Mapping[str, str] = field(default_factory=dict)
    """Paths on the user's machine, and the names shown in their place."""

    def line(self, value: Any) -> str:
        """A value as plain text on one line, without folders, control or direction codes."""
        text = plain(self.without_folders(str(value)))
        return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."

    def without_folders(self, text: str) -> str:
        for path in sorted(self.folders, key=len, reverse=True):
            place = rf"(?<![\w./~-]){re.escape(path)}(?!\w)"
            text = re.sub(place, self.folders[path].replace("\\", r"\\"), text)
        return text

    def escaped(self, value: Any) -> str:
        """Inline Markdown that shows the value and nothing else; ``Ready`` passes as it is."""
        if isinstance(value, Ready):
            return value
        text = self.line(value)
        start = BULLET.match(text)
        rest = text[start.end() :] if start else text
        rest = LINKED.sub(lambda found: found[0] + "\u2060", rest).translate(ENTITIES)
        return Ready(first_of(start[0], rest) if start else rest)

    def code(self, value: Any) -> Ready:
        """The value in a code span, or escaped where a span in a table could be broken up."""
        text = self.line(value).strip()
        if not text or set(text) & set("`|\\"):
            return Ready(self.escaped(text or "(empty)"))
        return Ready(f"`{text}`")

    def fenced(self, text: str, language: str = "text") -> Ready:
        """A block that shows many lines; its fence is longer than any run of backticks within."""
        lines = BREAKS.split(self.without_folders(text))
        shown = "\n".join("\t".join(map(printable, line.split("\t"))) for line in lines)
        runs = re.findall("`+", shown)
        fence = "`" * max(3, 1 + max(map(len, runs), default=0))
        return Ready(f"{fence}{language}\n{shown}\n{fence}")


def first_of(start: str, rest: str) -> str:
    """The start of a line that would be a list's, a rule's or a heading's, written as text."""
    if start.isdigit():
        return f"{start}&#{ord(rest[0])};{rest[1:]}"
    return f"&#{ord(start)};{rest}"


def printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
