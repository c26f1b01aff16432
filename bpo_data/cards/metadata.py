"""The card's metadata as the hub and ``datasets`` read it, written by their own code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bpo_data import disk
from bpo_data.artifacts import Draft
from bpo_data.tables import canonical

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

UNKNOWN = "unknown"

LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc
    cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma
    gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl
    ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense
    wtfpl zlib
"""
"""Licences that the hub knows by these names (huggingface/hub-docs, repositories-licenses.md).
Others are ``license: other`` with a ``license_name``."""

LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{1,8})*")
SPECIAL_LANGUAGES = ("code", "multilingual")

SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")),
    *((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B")),
)


def problems(license: str, language: str) -> Iterator[str]:
    """What the hub would refuse of ``export.license`` and ``export.language``."""
    if not license.strip():
        yield f"export.license is empty: name the source's licence, or write {UNKNOWN}."
    elif not license_fields(license).get("license_name", "x"):
        yield f"export.license={license}: write a name with letters or digits, or {UNKNOWN}."
    for word in [] if language == UNKNOWN else language.split(",") or [""]:
        if not (LANGUAGE.fullmatch(word.strip()) or word.strip() in SPECIAL_LANGUAGES):
            yield (
                f"export.language={language}: write codes of two or three letters, such as en or "
                f"en,de, or {', '.join(SPECIAL_LANGUAGES)} or {UNKNOWN}."
            )
            return


def card_data(draft: Draft, license: str, language: str, title: str) -> DatasetCardData:
    """The metadata of the splits that ``draft`` has written.

    ``datasets`` checks rows against ``dataset_info``; ``num_bytes`` counts them as Arrow holds them
    in memory, as its own ``push_to_hub`` does.
    """
    import pyarrow.parquet as pq
    from datasets import DatasetInfo, Features
    from datasets.info import DatasetInfosDict
    from datasets.splits import SplitDict, SplitInfo
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    files = {file.rpartition("/")[2]: draft.folder / file for file in draft.table_files}
    splits = SplitDict()
    for name, path in files.items():
        split = name.removesuffix(".parquet")
        with pq.ParquetFile(path) as file:
            size = sum(file.read_row_group(n).nbytes for n in range(file.num_row_groups))
            count = file.metadata.num_rows
        splits.add(SplitInfo(name=split, num_bytes=size, num_examples=count))
    info = DatasetInfo(
        features=Features.from_arrow_schema(draft.schema),
        splits=splits,
        download_size=sum(path.stat().st_size for path in files.values()),
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )
    data = DatasetCardData(
        pretty_name=title,
        **license_fields(license),
        **language_fields(language),
        size_categories=[size_category(sum(split.num_examples for split in splits.values()))],
        task_categories=["text-generation"],
        tags=["preference", "dpo", "bpo_data"],
    )
    DatasetInfosDict(default=info).to_dataset_card_data(data)
    places = [{"split": name.removesuffix(".parquet"), "path": name} for name in files]
    MetadataConfigs(
        default={"description": f"rows {content_digest(draft)}", "data_files": places}
    ).to_dataset_card_data(data)
    return data


def content_digest(draft: Draft) -> str:
    """16 hex digits that change with the rows: how the digest of the finished artifact begins.

    ``datasets`` caches a local folder by its name and its card alone, so two exports whose cards
    agree would be one dataset to it, and the second would load the rows of the first.
    """
    rows = {name: disk.sha256(draft.folder / name) for name in draft.table_files}
    return hashlib.sha256(canonical(rows).encode()).hexdigest()[:16]


def license_fields(license: str) -> dict[str, Any]:
    """``license``, and ``license_name`` for one that the hub has no name for."""
    name = license.strip().lower()
    if name in LICENSES.split():
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-.")}


def language_fields(language: str) -> dict[str, Any]:
    """``language`` by codes of two or three letters; whole tags such as zh-TW beside it.

    Nothing for an unknown language: the hub has no word for that.
    """
    words = [word.strip() for word in language.split(",")]
    tags = [word for word in words if LANGUAGE.fullmatch(word) or word in SPECIAL_LANGUAGES]
    codes = [tag.partition("-")[0] for tag in tags]
    fields = {"language": list(dict.fromkeys(codes))} if codes else {}
    return fields | ({"language_bcp47": tags} if codes != tags else {})


def size_category(rows: int) -> str:
    """The hub's word for a size."""
    return next((name for bound, name in SIZES if rows < bound), "1B<n<10B")
