"""Text of people and models made fit for a page: shortened, without invisible controls, inert."""

from __future__ import annotations

import json
import re
from typing import Any

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
CONTROLS |= {0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}
"""Control characters, by what stands for them: Unicode's pictures of them where there are any."""
ANY_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ESCAPES = {letter: f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def short(text: str, limit: int) -> str:
    """The text with its controls made visible, cut to ``limit`` characters with an ellipsis."""
    cut = text if len(text) <= limit else text[: limit - 1].rstrip() + "\u2026"
    return cut.translate(CONTROLS) if ANY_CONTROL.search(cut) else cut


def data(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter, escape in ESCAPES.items():  # five passes are faster than one by ``translate``
        text = text.replace(letter, escape)
    return text
