"""A logger that is given an address with a password, as a user's own may be; used by test_secrets."""

import hashlib
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger


def logger(save_dir: str, address: str, password: str) -> Any:
    """A CSV logger that leaves proof of having got both as they were typed."""
    proof = hashlib.sha256(f"{address} {password}".encode()).hexdigest()
    Path(save_dir, "proof.txt").write_text(proof)
    return CSVLogger(save_dir, name="mine", version="")
