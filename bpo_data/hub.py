"""Hand a finished export to the Hugging Face hub: one commit, private unless asked otherwise."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bpo_data import __version__
from bpo_data.artifacts import MANIFEST, Artifact
from bpo_data.cards.metadata import UNKNOWN
from bpo_data.errors import UserError, plain, some
from bpo_data.llm.endpoint import redact
from bpo_data.runtime import quiet_libraries

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
CARD_LINES = 12
"""Lines of the card that are shown before it is sent."""

NAMED = 5
"""Files of others in a repository that are named."""

CAUSES = {
    400: "the hub refuses what was sent, most likely the card. Mend export.license or the like",
    401: "the hub does not take the token. Set HF_TOKEN to a valid one, or run: hf auth login",
    403: "the token may not write there. Set HF_TOKEN to one that may, or choose another name",
    404: "there is no such place, or the token may not see it. Check the name of the organisation",
}


@dataclass(frozen=True)
class Parcel:
    """What is sent."""

    files: dict[str, Path]
    """Path in the repository -> file."""
    digests: dict[str, str]
    """Path in the repository -> sha256."""
    card: str
    message: str
    """Of the commit, with the digest of the rows."""
    license: str

    def lines(self) -> list[str]:
        sizes = {place: path.stat().st_size for place, path in self.files.items()}
        width = max(map(len, self.files))
        head = self.card.splitlines()[:CARD_LINES]
        found = [
            f"{some(len(self.files), 'file')}, {sum(sizes.values()):,} bytes: {self.message}",
            *(
                f"  {place:<{width}}  {size:>13,} bytes  sha256 {self.digests[place][:12]}"
                for place, size in sizes.items()
            ),
            f"{CARD} begins:",
            *(f"  {plain(line)}" if line.strip() == line else f"  {line}" for line in head),
        ]
        if self.license == UNKNOWN:
            found.append(
                "warning: the licence of the source is unknown. Find out whether the data may be "
                "passed on, and name it with export.license=..."
            )
        return found


def problems(repo: str) -> Iterator[str]:
    """What is wrong with the name of a repository; nothing is asked of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # lazy there

    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
        reason = "the organisation or the user is missing."
    except HFValidationError as error:
        reason = plain(str(error))
    yield f"export.push_to_hub={plain(repo)}: write org/name, such as my-lab/balanced. {reason}"


def ready() -> None:
    """Raise UserError when there is no token to push with."""
    token_of_user()


def push(
    export_folder: Path, repo: str, *, private: bool = True, dry_run: bool = False
) -> list[str]:
    """Send the dataset of an export, and its other formats, as one commit; lines that say what.

    A new repository is private if asked; one that exists keeps its visibility and all files that
    the export has not, and is not sent to where it is public and ``private`` is asked for. With
    ``dry_run`` nothing is asked of the hub. Raises UserError, which never holds the token.
    """
    quiet_libraries()
    for problem in problems(repo):
        raise UserError(problem)
    from huggingface_hub import HfApi, constants, get_token

    parcel = packed(export_folder)
    url = f"{constants.ENDPOINT}/datasets/{repo}"
    visibility = "private" if private else "public"
    if dry_run:
        lines = [f"would push to {url}, {visibility} if it is new", *parcel.lines()]
        return lines if get_token() else [*lines, "warning: no token yet. Set HF_TOKEN."]
    token = token_of_user()
    if token in parcel.card:
        raise UserError(f"{CARD} holds your token, so nothing was sent. Take it from the settings.")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what matters is in our lines
    with told_as_user_errors(repo, token):
        return send(HfApi(token=token), parcel, repo, url, private)


def token_of_user() -> str:
    """The hub's token, from the environment or the login. Raises UserError where there is none."""
    quiet_libraries()
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError(
            "export.push_to_hub needs a token of the hub. Run: export HF_TOKEN=... or: "
            "hf auth login"
        )
    return token


def packed(export_folder: Path) -> Parcel:
    """What the export holds for others. Raises UserError where it is not whole."""
    from huggingface_hub import DatasetCard

    manifest_file = export_folder / MANIFEST
    if not manifest_file.is_file():
        raise UserError(f"{export_folder} holds no finished export. Run stage=export first.")
    artifact = Artifact(export_folder, json.loads(manifest_file.read_text(encoding="utf-8")))
    files, digests = {}, {}
    for name, written in artifact.manifest["files"].items():
        folder, _, rest = name.partition("/")
        place = {"dataset": rest, "formats": name}.get(folder)
        if place:
            files[place] = artifact.checked(name)
            digests[place] = written["sha256"]
    if CARD not in files:
        raise UserError(f"{export_folder} has no dataset/{CARD}. Run stage=export first.")
    card = DatasetCard.load(files[CARD])
    (config,) = card.data.to_dict()["configs"]
    return Parcel(
        files=dict(sorted(files.items())),
        digests=digests,
        card=files[CARD].read_text(encoding="utf-8"),
        message=f"{some(artifact.rows, 'pair')}, {config['description']} (bpo_data {__version__})",
        license=str(card.data.license),
    )


def send(api: HfApi, parcel: Parcel, repo: str, url: str, private: bool) -> list[str]:
    """Make the repository where there is none, and commit."""
    from huggingface_hub import CommitOperationAdd

    there = repository(api, repo)
    lines = [f"{url}, {'private' if private else 'public'}: it is new"]
    if there is None:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
    else:
        lines = about_existing(there, parcel, url, private)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(place, str(path)) for place, path in parcel.files.items()],
            commit_message=parcel.message,
            repo_type="dataset",
        )
    lines += parcel.lines()
    # Other categories are of the library's own making, and say nothing to its users.
    lines += [f"warning: {plain(str(one.message))}" for one in said if one.category is UserWarning]
    unchanged = there is not None and there.sha == commit.oid
    return [*lines, f"{'there already' if unchanged else 'pushed'}: {commit.commit_url}"]


def repository(api: HfApi, repo: str) -> Any:
    """What the hub says of the repository; None where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.repo_info(repo, repo_type="dataset")
    except RepositoryNotFoundError as error:
        if error.response.status_code == 404:
            return None
        raise


def about_existing(there: Any, parcel: Parcel, url: str, private: bool) -> list[str]:
    """Lines on a repository that exists. Raises UserError where sending would publish."""
    if private and not there.private:
        raise UserError(
            f"{url} is public, and export.private=true. Nothing was sent: make it private on the "
            f"hub, choose another name, or publish with export.private=false."
        )
    lines = [f"{url}, {'private' if there.private else 'public'}: it exists"]
    if there.private and not private:
        lines.append("warning: it is private and stays so; change that on the hub.")
    names = [one.rfilename for one in there.siblings or []]
    replaced = [plain(name) for name in names if name in parcel.files]
    others = [plain(name) for name in names if name not in {*parcel.files, ".gitattributes"}]
    for files, what in ((replaced, "written anew"), (others, "left as they are")):
        if files:
            more = f" and {len(files) - NAMED:,} more" if len(files) > NAMED else ""
            lines.append(f"{what}: {', '.join(files[:NAMED])}{more}")
    return lines


@contextmanager
def told_as_user_errors(repo: str, token: str) -> Iterator[None]:
    """Faults of the hub, the network and the token as one line each, without the token."""
    # The error of whichever HTTP library it uses: its versions differ in that.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # passed on there

    # What the hub refuses of a card comes as ValueError, a failed upload of a file as RuntimeError.
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        place = f"export.push_to_hub={repo}"
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
            raise UserError(f"{place}: HF_HUB_OFFLINE is set. Unset it to push.") from error
        status, words = answer(error)
        cause = CAUSES.get(status, "the push failed. Run the same command again to go on")
        said = plain(redact(words, token))[:300]
        code = f" ({status})" if status else ""
        raise UserError(f"{place}{code}: {cause}. {said}") from None  # it may hold the token


def answer(error: BaseException) -> tuple[int, str]:
    """The status and the words of the fault that began it; status 0 where nothing was answered."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            told = getattr(cause, "server_message", None)
            return response.status_code, f"The hub says: {told}" if told else ""
        cause = cause.__cause__
    words = str(error) or type(error).__name__
    return 0, f"{type(error).__name__}: {words}"
