"""What a worker reads, on a machine that does not see the folder of the run.

What lies in artifacts comes through ``runtime.mirror``, once for all workers of a machine, to a
folder on its own disk. What the user keeps elsewhere is in no mirror: it has to be there already,
the same files under the same path. Models of the hub are on nobody's disk and go by their name.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bpo_data import checkpoints, disk
from bpo_data.artifacts import MANIFEST, Artifact
from bpo_data.errors import UserError
from bpo_data.mirror import Mirror
from bpo_data.shelf import read_manifest

PLACE = "BPO_FETCHED"
"""Environment variable of a machine: the folder for what it fetches. Not a setting, for machines
may have their disks in other places."""
UNUSED = 7 * 86_400.0
"""Seconds after which what no worker has used since is removed, when something else is fetched."""

log = logging.getLogger("bpo_data")


@dataclass(frozen=True)
class Copied:
    """A folder or file of a finished artifact, which is in the mirror."""

    artifact: str
    digest: str
    """The artifact's."""
    inside: str
    """Where in it, ``.`` for all of it."""


@dataclass(frozen=True)
class Own:
    """A folder or file of the user's."""

    path: str
    digests: Mapping[str, str]
    """Name -> sha256 of each file."""


Source = Copied | Own


def sources(reads: Iterable[str], folder: str, mirror: Mirror) -> dict[str, Source]:
    """Which of these locations are on the disk of this machine, and whose they are; the mirror
    then has those in artifacts, which are in ``folder``."""
    found: dict[str, Source] = {}
    shelf = Path(folder).resolve()
    for location in filter(None, reads):
        path = Path(location).absolute()
        if not path.exists():
            continue
        real = path.resolve()
        parts = real.relative_to(shelf).parts if real.is_relative_to(shelf) else ()
        if parts and (shelf / parts[0] / MANIFEST).is_file():
            artifact = Artifact(shelf / parts[0], read_manifest(shelf / parts[0]))
            mirror.send(artifact)  # most often it is there
            found[location] = Copied(parts[0], artifact.digest, str(Path(*parts[1:])))
        else:
            found[location] = Own(str(path), digests_of(path))
    return found


def digests_of(path: Path) -> dict[str, str]:
    """Name -> sha256 of a file, or of each file of a folder; empty where there is neither."""
    return {path.name: disk.sha256(path)} if path.is_file() else disk.folder_digests(str(path))


def fetched(found: Mapping[str, Source], url: str, cache: Cache) -> dict[str, str]:
    """Where each location is on this machine, which may be somebody else's.

    A model whose code may run may run it from there too. Raises UserError for what is not here, nor
    in the mirror, or not the same.
    """
    places = {}
    cache.enter()
    for location, source in found.items():
        if isinstance(source, Own):
            check_same(source)
            places[location] = source.path
        else:
            places[location] = str(cache.artifact(source, Mirror(url)) / source.inside)
        if checkpoints.trusted(location):
            os.environ[checkpoints.TRUSTED] += f",{places[location]}"
    return places


def check_same(own: Own) -> None:
    """Raise UserError where this machine has not the files that the driver's has."""
    here = digests_of(Path(own.path))
    way_out = (
        "Copy it there under the same path, name a model of the hub, or start the command in a "
        "folder that all machines share."
    )
    if not here:
        raise UserError(f"{own.path} is not there. {way_out}")
    differing = sorted(dict(here.items() ^ own.digests.items()))
    if differing:
        raise UserError(
            f"{own.path} is another than where the command was started: {differing[0]} differs. "
            f"{way_out}"
        )


class Cache:
    """The folder of what this machine has fetched, for any number of processes at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.locks = folder / ".locks"
        self.using: list[IO[str]] = []
        """Locks on what this process uses as long as it lives, so that nobody removes it."""

    def enter(self) -> None:
        """Make it the folder of this process: in another one a model's name might lead somewhere.
        Raises UserError."""
        with self.filling():
            self.locks.mkdir(parents=True, exist_ok=True)
            os.chdir(self.folder)

    def artifact(self, copied: Copied, mirror: Mirror) -> Path:
        """The folder of an artifact, fetched unless it is here and whole. Raises UserError."""
        key = copied.digest[:16]
        place = self.folder / key / copied.artifact
        with self.filling():
            self.using.append(locked(self.locks / key, fcntl.LOCK_SH))
            os.utime(self.locks / key)
            if not whole(place):
                with locked(self.locks / f"{key}.fetching", fcntl.LOCK_EX):
                    self.fetch(copied, mirror, place)
        return place

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within, a fault of this machine's disk becomes a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot hold what is fetched: {error}. Make room, or have {PLACE} "
                f"name another folder in the environment that Ray is started in."
            ) from error

    def fetch(self, copied: Copied, mirror: Mirror, place: Path) -> None:
        """Bring an artifact here, unless another process has done it meanwhile."""
        if whole(place):
            return
        self.clear()
        if place.exists():
            log.warning("%s is not what was fetched: it is fetched anew", place)
            shutil.rmtree(place)
        place.parent.mkdir(exist_ok=True)
        if mirror.fetch(copied.artifact, place.parent, copied.digest) is None:
            raise UserError(
                f"{mirror.url} holds no {copied.artifact}. Let runtime.mirror be a URL that leads "
                f"all machines to the same place."
            )

    def clear(self) -> None:
        """Remove what no worker has used for ``UNUSED``, nor uses."""
        for lock in self.locks.glob("*[0-9a-f]"):
            if time.time() - lock.stat().st_mtime < UNUSED:
                continue
            with suppress(BlockingIOError), locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(self.folder / lock.name, ignore_errors=True)


def own_cache() -> Cache:
    """This machine's: the folder that ``BPO_FETCHED`` names, or ``bpo_data/fetched`` in the folder
    of caches of whoever Ray runs as."""
    named = os.environ.get(PLACE)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Cache(Path(named) if named else Path(caches) / "bpo_data" / "fetched")


def locked(path: Path, how: int) -> IO[str]:
    """A file with a lock on it until it is closed or the process ends."""
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (the caller's)
    try:
        fcntl.flock(file, how)
    except OSError:
        file.close()
        raise
    return file


def whole(folder: Path) -> bool:
    """Whether an artifact's files are all there as they were written."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        files = read_manifest(folder)["files"]
    except UserError:
        return False
    return all(
        (folder / name).is_file() and disk.sha256(folder / name) == written["sha256"]
        for name, written in files.items()
    )
