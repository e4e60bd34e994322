"""One screen for each way in which a command ends early."""

import shutil
import sys
from pathlib import Path

from cyberlm.runtime import signals
from cyberlm.runtime.errors import Problem, RunError, UserError
from cyberlm.runtime.progress import harmless
from cyberlm.runtime.redaction import redact


def show(error: UserError) -> int:
    print(f"\n{harmless(redact(error.screen()))}\n", file=sys.stderr)
    return 1


def stopped(stop: signals.Stopped, command: str, folder: Path | None) -> int:
    """Says how to go on with what a signal ended: a run in its folder, or a sweep."""
    how = "Type the same command again." if folder is not None else "The sweep starts no further job."
    if folder is not None and command == "train" and (folder / "config.yaml").is_file():
        how = f"To go on, type:\n{signals.resume_command(folder)}"
    elif folder is None and any(item.startswith("study=") for item in sys.argv):
        how = f"To go on, type:\n{signals.typed_command(sys.argv[1:])}"
    what = str(stop)
    print(f"\n{what[0].upper()}{what[1:]}. {how}\n", file=sys.stderr)
    return signals.EXIT_STOPPED


def not_made(error: OSError) -> UserError:
    return RunError("The folder of a run cannot be made.", [Problem(f"{error.filename}: {error.strerror}")])


def not_written(error: OSError, folder: Path) -> UserError:
    return RunError(
        f"A file could not be written: {error.strerror}.",
        [Problem(str(error.filename or folder), f"{shutil.disk_usage(folder).free:,} bytes are free in {folder}")],
    )
