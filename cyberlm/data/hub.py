"""Downloads a dataset of the Hugging Face hub, at one commit, or finds it in the hub's own cache."""

from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import get_session

from cyberlm.data.formats import FORMATS
from cyberlm.runtime.errors import DataError, Problem
from cyberlm.runtime.progress import say_once

DOWNLOADED_FILES = ["*.md", "*.yaml", "*.arrow", *(f"*{ending}{gz}" for ending in FORMATS for gz in ("", ".gz"))]
"""Files of a repository that are downloaded: data and what describes it, no code."""


def dataset_folder(hub_id: str, revision: str | None, licence: str) -> tuple[Path, str]:
    """Folder of a dataset's files, and their commit; where the hub cannot be reached, the files in its cache.

    Args:
        revision: Branch, tag or commit; null for the newest commit.
        licence: Shown before the download.
    """
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable()
    say_once(f"{hub_id}: licence {licence} (huggingface.co/datasets/{hub_id})")
    try:
        options: Any = {"revision": revision, "allow_patterns": DOWNLOADED_FILES, "local_files_only": bool(reason)}
        folder = Path(snapshot_download(hub_id, repo_type="dataset", **options))
    except LocalEntryNotFoundError as error:
        reason = f"it is not in the local cache, and {reason or error}"
        raise _unavailable(hub_id, revision, reason) from error
    except (OSError, ValueError) as error:
        raise _unavailable(hub_id, revision, " ".join(str(error).split())[:300]) from error
    if reason:
        say_once(f"{hub_id}: commit {folder.name} of the local cache is read, as {reason}")
    return folder, folder.name


def _unreachable() -> str:
    """Reason why the hub cannot be reached, empty if it can; in seconds, as its client retries for half a minute."""
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the client library behind the hub has changed its exception types before
        return f"the Hugging Face hub cannot be reached ({type(error).__name__})"
    return ""


def _unavailable(hub_id: str, revision: str | None, reason: str) -> DataError:
    return DataError(
        f"The dataset {hub_id}{f' at {revision}' if revision else ''} cannot be read:",
        [Problem(reason, "a file, a folder, or the id of a dataset on the hub (owner/name)")],
        "Of a dataset that asks for an accepted licence: accept it on its page, then log in: hf auth login\n"
        "Without a network: its files in a folder (hf download --repo-type dataset ID --local-dir FOLDER),\n"
        "    data=file data.path=FOLDER",
    )
