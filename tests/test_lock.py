"""requirements.lock pins what constraints.txt pins, each with the hashes of its files."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def names(text: str) -> dict[str, str]:
    pairs = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_lock_is_fresh() -> None:
    pinned = names((ROOT / "constraints.txt").read_text())
    locked = names((ROOT / "requirements.lock").read_text())
    assert pinned.pop("torch")
    assert locked == pinned, "type make lock"


def test_every_pin_has_a_hash() -> None:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_what_the_project_needs_is_pinned() -> None:
    """make install asks pip for nothing beyond the lock and torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = names((ROOT / "constraints.txt").read_text())
    bare = {re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", item)[0]).lower() for item in wanted}
    assert bare <= pinned.keys()
