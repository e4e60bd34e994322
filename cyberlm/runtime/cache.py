"""Cache directory for downloaded files, converted models and tokenised questions; a home for users without one."""

import getpass
import os
import stat
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

from cyberlm.runtime.errors import ConfigError, Problem


def cache_folder() -> Path:
    """$CYBERLM_CACHE_DIR, or the user's cache folder for cyberlm; a temporary one where that cannot be written to."""
    given = os.environ.get("CYBERLM_CACHE_DIR")
    folder = Path(given) if given else user_cache_path("cyberlm")
    existing = _existing(folder)
    if not given and existing.is_dir() and not writable(folder):
        return _own_temporary() / "cache"
    if existing.exists() and not existing.is_dir():
        raise ConfigError(
            "The cache directory cannot be made:",
            [Problem(f"{existing} is not a folder", "a folder, or a name that is free", "CYBERLM_CACHE_DIR=FOLDER")],
        )
    return folder


def writable(folder: Path) -> bool:
    """True for a folder that can be written to, or made."""
    return os.access(_existing(folder), os.W_OK | os.X_OK)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def ensure_home() -> None:
    """Gives a process without a home folder or a user's name both: libraries ask for them that need neither."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # a number without an entry in /etc/passwd, as containers use
        os.environ["LOGNAME"] = f"uid{os.getuid()}"
    try:
        home = Path.home().is_dir()
    except RuntimeError:
        home = False
    if not home:
        os.environ["HOME"] = str(_own_temporary())


def _own_temporary() -> Path:
    """A temporary folder that is this user's alone, the same for every process."""
    folder = Path(tempfile.gettempdir()) / f"cyberlm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # another user made it
        return Path(tempfile.mkdtemp(prefix="cyberlm-"))
    return folder
