"""The page: template, styles and script as one closed file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpo_data.errors import some
from bpo_data.report.plain import data, short
from bpo_data.words import lasting, size

PAGES = Path(__file__).parents[1] / "pages"
STYLES = ("report.css", "map.css", "print.css")
SCRIPTS = ("theme.js", "tables.js", "points.js", "colours.js", "canvas.js", "map.js", "main.js")
LONGEST = 2_000
"""Characters of any text that the template writes."""


def render(view: Mapping[str, Any], points: Mapping[str, Any]) -> str:
    """The page for what ``stages.report`` gathered and the map's ``pair_map.payload``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "some": some,
        "size": size,
        "lasting": lasting,
        "plain": lambda text: short(str(text), LONGEST),
    }
    style = "\n".join(source(name) for name in STYLES)
    body = "\n".join(source(name) for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{body}\n}})();\n'
    return environment.get_template("report.html").render(
        style=style,
        script=script,
        policy=policy(style, script),
        data=data(points),
        **view,
    )


def source(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def policy(style: str, script: str) -> str:
    """A content security policy: this style, this script and nothing else, from nowhere else."""
    return (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; "
        f"base-uri 'none'; form-action 'none'"
    )


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
