"""Where what can be made again is kept: downloaded files, converted models, tokenised questions."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """$CYBERLM_CACHE_DIR, or the user's cache folder for cyberlm."""
    given = os.environ.get("CYBERLM_CACHE_DIR")
    return Path(given) if given else user_cache_path("cyberlm")
