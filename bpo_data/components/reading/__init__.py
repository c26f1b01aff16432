"""Files and hub rows of any layout become Rows, or are set aside with a reason."""

from bpo_data.components.reading.columns import Columns
from bpo_data.components.reading.faults import Bad, FileRejected
from bpo_data.components.reading.files import (
    as_json,
    column_problems,
    find_files,
    read,
    role_problems,
)
from bpo_data.components.reading.layouts import Converter

__all__ = [
    "Bad",
    "Columns",
    "Converter",
    "FileRejected",
    "as_json",
    "column_problems",
    "find_files",
    "read",
    "role_problems",
]
