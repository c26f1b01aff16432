"""Markdown as its reader sees it: CommonMark with GitHub's tables, HTML being taken for HTML."""

from __future__ import annotations

from collections.abc import Iterator

from markdown_it import MarkdownIt
from markdown_it.token import Token


def tokens(markdown: str) -> Iterator[Token]:
    """All tokens, those of a paragraph or a cell one by one."""
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown):
        yield from token.children or [token]


def shown(markdown: str) -> str:
    """The text that a reader sees of one paragraph or cell."""
    return "".join(token.content for token in tokens(markdown))
