"""What can be wrong with a row or a file: a closed set of reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bpo_data.errors import UserError, plain

Reason = Literal[
    "chosen_equals_rejected",
    "chosen_equals_rejected_after_nfc",
    "chosen_equals_rejected_after_trim",
    "control_character",
    "corrupt_gzip",
    "corrupt_parquet",
    "duplicate_id",
    "duplicate_key",
    "empty_prompt",
    "empty_response",
    "history_differs",
    "invalid_json",
    "lone_surrogate",
    "malformed_csv",
    "missing_column",
    "missing_field",
    "missing_id",
    "missing_role",
    "no_rows",
    "no_user_message",
    "not_an_object",
    "not_utf8",
    "null_response",
    "null_score",
    "number_out_of_range",
    "prompt_ends_with_assistant",
    "roles_do_not_alternate",
    "score_not_a_number",
    "score_not_finite",
    "score_order_inverted",
    "score_tie",
    "system_not_first",
    "too_deep",
    "too_large",
    "too_long",
    "two_systems",
    "unknown_layout",
    "unknown_role",
    "unknown_split",
    "unreadable",
    "unsupported_content",
    "wrong_field_count",
    "wrong_type",
]


class Bad(Exception):
    """What is wrong with a row, or with a file: a reason of the closed set, and the particulars."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = plain(detail)[:1000]


class FileRejected(UserError):
    """A whole file that cannot be read; ``reason`` is one word of the closed set."""

    def __init__(self, path: Path, reason: Reason, detail: str) -> None:
        super().__init__(plain(f"{path.name}: {detail}"))
        self.path = path
        self.reason: Reason = reason
