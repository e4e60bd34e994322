"""Programs of Debian's packages, for tests that need one."""

import os
import shutil
import subprocess

import pytest


def install(*packages: str, program: str) -> None:
    """Installs packages of Debian's where a program of theirs is missing; skips the test where that cannot be."""
    if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip(f"{program} is missing, and is installed by root on Debian alone")
    wait = ["-o", "DPkg::Lock::Timeout=300"]
    line = ["apt-get", *wait, "install", "--yes", "--no-install-recommends", *packages]
    subprocess.run(["apt-get", *wait, "update"], capture_output=True, check=False)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        pytest.skip(f"apt-get install {' '.join(packages)}: {done.stderr.strip().splitlines()[-1:]}")
