"""Where what can be made again is kept: downloaded files, converted models, tokenised questions."""

import os
from pathlib import Path

from platformdirs import user_cache_path

from cyberlm.errors import ConfigError, Problem


def cache_folder() -> Path:
    """$CYBERLM_CACHE_DIR, or the user's cache folder for cyberlm.

    Raises:
        ConfigError: If something else stands there.
    """
    given = os.environ.get("CYBERLM_CACHE_DIR")
    folder = Path(given) if given else user_cache_path("cyberlm")
    standing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if standing.exists() and not standing.is_dir():
        raise ConfigError(
            "The cache has no place:",
            [Problem(f"{standing} is not a folder", "a folder, or a name that is free", "CYBERLM_CACHE_DIR=FOLDER")],
        )
    return folder
