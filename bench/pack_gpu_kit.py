"""Prepares gpu_kit/: wheels of all that cyberlm and TRL need and a GPU machine without a network lacks, and run.sh.

    make gpu-kit
    bash gpu_kit/run.sh            # on that machine, in a copy of this checkout: installs, runs bench/gpu_accept.py

That machine brings its own Python, torch, transformers, accelerate, peft, lightning, scipy and scikit-learn. Versions
here are those of constraints.txt. bitsandbytes is reduced to its CPU library and that of one CUDA version. The script
fails where the kit, the checkout's files and shared/ are together larger than what such a machine takes.
"""

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from gpu_training import LIGER, TRL
from measure import ROOT

LACKING = (
    *("bitsandbytes", "hydra-core", "omegaconf", "antlr4-python3-runtime", "datasets", "dill", "multiprocess"),
    *("gguf", "platformdirs", "pydantic", "pydantic_core", "annotated-types", "typing-inspection"),
)
SOURCE_ONLY = ("antlr4-python3-runtime",)
"""On PyPI without a wheel; the one built here is for every Python 3."""
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 5))
MAX_BYTES = 64 * 2**20

RUN = """\
#!/usr/bin/env bash
# Installs the wheels beside this file, without a network, where python3 and its child processes find them first; then
# runs bench/gpu_accept.py. Arguments are its arguments; GPU_KIT_SITE is the folder to install to (default: a new one).
set -euo pipefail
kit=$(cd "$(dirname "$0")" && pwd)
site=${GPU_KIT_SITE:-$(mktemp -d)}
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \\
    "$kit"/wheels/*.whl
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
cd "$kit/.."
exec python3 bench/gpu_accept.py "$@"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="of that machine (default %(default)s)")
    parser.add_argument("--cuda", default="130", help="CUDA version of its torch, digits only (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_kit", help="emptied, then used (default gpu_kit/)")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    wheels = options.out / "wheels"
    wheels.mkdir(parents=True)
    for requirement in requirements():
        fetch(requirement, options.python, wheels)
    reduce_bitsandbytes(next(wheels.glob("bitsandbytes-*.whl")), options.cuda)
    (options.out / "run.sh").write_text(RUN)
    report_size(options.out)


def requirements() -> list[str]:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    return [*(f"{name}=={pins[name]}" for name in LACKING), TRL, LIGER]


def fetch(requirement: str, python: str, wheels: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if requirement.split("==")[0] in SOURCE_ONLY:
        command = [*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), requirement]
    else:
        target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
        target += [f"--platform={platform}" for platform in PLATFORMS]
        command = [*pip, "download", "--no-deps", *target, "--dest", str(wheels), requirement]
    subprocess.run(command, check=True)


def reduce_bitsandbytes(wheel: Path, cuda: str) -> None:
    """Drops the libraries of other CUDA versions, ROCm and XPU from the wheel, and from its list of files."""
    library = re.compile(rf"bitsandbytes/libbitsandbytes_(?!cpu\.|cuda{cuda}\.).*\.so$")
    with zipfile.ZipFile(wheel) as whole:
        names = whole.namelist()
        if f"bitsandbytes/libbitsandbytes_cuda{cuda}.so" not in names:
            raise SystemExit(
                f"{wheel.name} has no library for CUDA {cuda}: see unzip -l of it, and type another --cuda"
            )
        smaller = wheel.with_suffix(".tmp")
        with zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as reduced:
            for name in names:
                if not library.match(name):
                    reduced.writestr(name, _without(whole.read(name), library, name))
    smaller.replace(wheel)


def _without(content: bytes, library: re.Pattern[str], name: str) -> bytes:
    if not name.endswith(".dist-info/RECORD"):
        return content
    rows = [row for row in csv.reader(io.StringIO(content.decode())) if row and not library.match(row[0])]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def report_size(kit: Path) -> None:
    """Prints what travels, and fails where it is too much.

    Raises:
        SystemExit: With the sizes.
    """
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    parts = {
        kit.name: [file for file in kit.rglob("*") if file.is_file()],
        "checkout": [ROOT / name for name in names if name and (ROOT / name).is_file()],
        "shared": [file for file in (ROOT / "shared").rglob("*") if file.is_file()],
    }
    sizes = {name: sum(file.stat().st_size for file in files) for name, files in parts.items()}
    told = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
    print(f"{kit}: {len(list((kit / 'wheels').iterdir()))} wheels. {told}; at most {MAX_BYTES / 2**20:.0f} MiB in all")
    if sum(sizes.values()) > MAX_BYTES:
        raise SystemExit("That is too much: leave files out, or bring them in a second call.")


if __name__ == "__main__":
    main()
