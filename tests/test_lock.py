"""requirements.lock pins what constraints.txt pins, each with the hashes of its files."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def names(text: str) -> dict[str, str]:
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_lock_is_fresh_and_holds_what_the_project_needs() -> None:
    pinned = names((ROOT / "constraints.txt").read_text())
    lock = (ROOT / "requirements.lock").read_text()
    assert pinned.pop("torch")
    assert names(lock) == pinned, "type make lock"
    entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", lock, flags=re.MULTILINE).strip())
    assert len(entries) == len(pinned) > 100
    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)] == []
    # make install asks pip for nothing beyond the lock and torch
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    bare = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", item)[0]).lower() for item in wanted}
    assert bare <= {*pinned, "torch"}
