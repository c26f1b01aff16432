"""Finished artifacts in a second place that several machines see: ``s3://``, ``gs://``, a share.

An artifact's name says what is in it, so a copy is as good as the original: what is there is
fetched in place of being made, and what is made is sent. A copy counts once its manifest is there,
which is sent last, and every file is checked against it when it is fetched. The files lie in a
folder that the manifest's digest names: two machines that send the same artifact at the same time,
its times or last bits different, never mix theirs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from bpo_data import disk
from bpo_data.artifacts import MANIFEST, RESUMED, Artifact
from bpo_data.errors import UserError
from bpo_data.shelf import FORMAT, PARTIAL

SETTING = "runtime.mirror"
BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Protocols of object stores."""


class Mirror:
    """A folder of artifacts at an fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @cached_property
    def system(self) -> tuple[Any, str]:
        """(the file system, the folder on it). Raises UserError where the protocol is not known."""
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{SETTING}={self.url} cannot be used: {error}") from error
        return system, root.rstrip("/")

    def manifest(self, name: str) -> dict[str, Any] | None:
        """What the manifest of an artifact says; None where the mirror does not hold it.

        Raises UserError where the mirror does not answer, or the manifest is none.
        """
        text = self.text(name)
        return None if text is None else self.told(name, text)

    def text(self, name: str) -> bytes | None:
        """The manifest as it is there; None where it is not."""
        system, root = self.system
        with answering(self.url):
            try:
                return bytes(system.cat_file(f"{root}/{name}/{MANIFEST}"))
            except FileNotFoundError:
                return None

    def told(self, name: str, text: bytes) -> dict[str, Any]:
        """What a manifest says. Raises UserError where it is none, or one of a newer version."""
        try:
            found = json.loads(text)
            paths = [PurePosixPath(path) for path in found["files"]]
            form = int(found.get("format", FORMAT))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.url}/{name}/{MANIFEST} is no manifest. Remove that folder from the mirror."
            ) from error
        if any(path.is_absolute() or ".." in path.parts for path in paths):
            raise UserError(
                f"{self.url}/{name}/{MANIFEST} names files outside its folder. Somebody wrote it "
                f"who is not bpo_data: do not use this mirror."
            )
        if form > FORMAT:
            raise UserError(
                f"{self.url}/{name}/{MANIFEST} has format {form}; this version knows "
                f"{FORMAT}. Install a newer bpo_data, or use another {SETTING}."
            )
        return dict(found)

    @property
    def everywhere(self) -> str:
        """The URL for a process that works in another folder."""
        system, root = self.system
        return self.url if not is_local(system) else f"file://{root}"

    def fetch(self, name: str, folder: Path, digest: str = "") -> Artifact | None:
        """Bring an artifact into the folder of artifacts; None where the mirror does not hold it.

        Raises UserError where a file is not what the manifest says, and where the copy there is
        another than the one with this ``digest``.
        """
        text = self.text(name)
        if text is None:
            return None
        manifest = self.told(name, text)
        if digest and manifest.get("digest") != digest:
            raise UserError(
                f"{self.url}/{name} was made by another machine, and its last bits differ from "
                f"what is in runtime.folder. Remove it from the mirror and run the same command "
                f"again."
            )
        # Apart from the finished parts of an interrupted try to make it: cut short, a file that
        # was being fetched would be taken for one of them.
        coming = folder / f"{name}{PARTIAL}" / RESUMED / version(text)
        for file, written in manifest["files"].items():
            self.fetch_file(f"{name}/{version(text)}/{file}", coming / file, written["sha256"])
        disk.write_bytes(text, coming / MANIFEST)
        os.rename(coming, folder / name)
        shutil.rmtree(folder / f"{name}{PARTIAL}")
        disk.sync_folder(folder)
        return Artifact(folder / name, manifest)

    def fetch_file(self, place: str, path: Path, digest: str) -> None:
        """Bring a file here, unless a try that was interrupted has brought it."""
        if path.is_file() and disk.sha256(path) == digest:
            return
        system, root = self.system
        path.parent.mkdir(parents=True, exist_ok=True)
        with answering(self.url):
            system.get_file(f"{root}/{place}", str(path))
        if disk.sha256(path) != digest:
            path.unlink()
            name = place.partition("/")[0]
            raise UserError(
                f"{self.url}/{place} is not what was sent (its sha256 differs from {MANIFEST}). "
                f"Remove {self.url}/{name} and run the same command again."
            )
        disk.sync_file(path)

    def send(self, artifact: Artifact) -> bool:
        """Copy a finished artifact there, its manifest last; False where it was there already."""
        name = artifact.folder.name
        if self.manifest(name) is not None:
            return False
        system, root = self.system
        text = (artifact.folder / MANIFEST).read_bytes()
        with answering(self.url):
            for file in artifact.manifest["files"]:
                place = f"{root}/{name}/{version(text)}/{file}"
                if has_folders(system):
                    system.makedirs(place.rpartition("/")[0], exist_ok=True)
                system.put_file(str(artifact.checked(file)), place)
            system.pipe_file(f"{root}/{name}/{MANIFEST}", text)
        return True


def version(text: bytes) -> str:
    """The folder of the files that a manifest lists."""
    return hashlib.sha256(text).hexdigest()[:12]


def has_folders(system: Any) -> bool:
    """Whether folders have to be made; in an object store that would make a bucket."""
    return not BUCKETS & protocols(system)


def is_local(system: Any) -> bool:
    """Whether it is the file system of a machine, whose paths may be relative."""
    return "file" in protocols(system)


def protocols(system: Any) -> set[str]:
    named = system.protocol
    return {named} if isinstance(named, str) else set(named)


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Raises UserError for what goes wrong between here and the mirror."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{SETTING}={url} does not do what it is asked: {reason}. What is made is kept in "
            f"runtime.folder; the same command goes on from here."
        ) from error
