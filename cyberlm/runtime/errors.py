"""Errors that a user can fix. Each is shown as one screen, without a traceback, and ends with exit code 1."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of what Git LFS leaves in place of a large file that was not fetched."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what it is, what is allowed, and what to type instead."""

    what: str
    allowed: str = ""
    fix: str = ""


class UserError(Exception):
    """Base of every error that the user can fix.

    Args:
        problems: Every problem found, not only the first.
        hint: Closing lines, for example the command that works without what is missing.
    """

    def __init__(self, title: str, problems: Iterable[Problem] = (), hint: str = "") -> None:
        self.title = title
        self.problems = tuple(problems)
        self.hint = hint
        super().__init__(self.screen())

    def screen(self, max_problems: int = 40) -> str:
        """The whole message as plain text; problems past `max_problems` are counted, not shown."""
        lines = [self.title]
        for problem in self.problems[:max_problems]:
            lines.append(f"  - {problem.what}")
            if problem.allowed:
                lines.append(f"      allowed: {problem.allowed}")
            if problem.fix:
                lines.append(f"      type:    {problem.fix}")
        if len(self.problems) > max_problems:
            lines.append(f"  ... and {len(self.problems) - max_problems} more")
        if self.hint:
            lines += ["", self.hint]
        return "\n".join(lines)


class ConfigError(UserError):
    """The configuration cannot be run."""


class DataError(UserError):
    """A question file is missing, is not what it should be, or holds bad rows."""


class ModelError(UserError):
    """A model or adapter cannot be loaded, or does not fit its use."""


class RunError(UserError):
    """A run folder is missing, unfinished, or does not fit its use."""


class OutOfMemory(UserError):
    """The run takes more memory than its device has."""


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """`Did you mean 'rank'?`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean '{near[0]}'?" if near else ""


def lfs_problems(files: Iterable[Path]) -> list[Problem]:
    """A problem for each file that is a Git LFS pointer instead of its content."""
    found = []
    for file in files:
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                what = f"{file} is a Git LFS pointer: its content has not been fetched"
                found.append(Problem(what, "the file itself", "git lfs pull"))
    return found
