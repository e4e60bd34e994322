"""Where questions come from: the embedded sample, CyberMetric (downloaded once, hash-checked), or your own file."""

import hashlib
import http.client
import importlib.resources
import os
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from cyberlm.config.schema import DataConfig, DataName, OnBadRow
from cyberlm.data.readers import QuestionSet, read_questions
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import DataError, Problem, lfs_problems
from cyberlm.runtime.progress import track
from cyberlm.tasks.task import Task

CYBERMETRIC_ADDRESS = "https://raw.githubusercontent.com/cybermetric/CyberMetric"
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class CyberMetricFile:
    """One file of github.com/cybermetric/CyberMetric, pinned.

    Attributes:
        name: File name without `.json`.
        commit: Of the repository.
        sha256: Of the file's bytes.
    """

    name: str
    commit: str
    sha256: str

    @property
    def address(self) -> str:
        return f"{CYBERMETRIC_ADDRESS}/{self.commit}/{self.name}.json"


CYBERMETRIC_FILES = {
    80: CyberMetricFile(
        "CyberMetric-80-v1", "2f5818b", "1624aeecc54761198bff4828442ce4a10de6cb87c9da3298088b34ae11e15ba0"
    ),
    500: CyberMetricFile(
        "CyberMetric-500-v1", "2f5818b", "036747c989da9f38f39a6b33fa2d5ab14147c928df0274217bbecab20be88faa"
    ),
    2000: CyberMetricFile(
        "CyberMetric-2000-v1", "2f5818b", "3ccc4d425bc4e74d27e0e9790d62369e4626e325d2b661d851c61b1648a0cd4a"
    ),
    10000: CyberMetricFile(
        "CyberMetric-10000-v1",
        "205262cdf5022ba890e792efd176fb19d42913fa",
        "4e35bb62c73b60bd27e54512b2ace6f9286ff2921a45a3d5fe2da22401e04bbb",
    ),
}
"""By size, as in `data.size`; the largest holds 10,180 questions."""


def load_sources(config: DataConfig, task: Task) -> tuple[QuestionSet, QuestionSet | None]:
    """Reads the questions that a run is about.

    Returns:
        The main file, and the held-out test file where `data.test_size` or `data.test_path` names one.

    Raises:
        DataError: A file is missing, cannot be downloaded, is not the pinned one, or holds bad rows.
    """
    if config.name is DataName.sample:
        return _sample(task), None
    if config.name is DataName.cybermetric:
        held_out = _cybermetric(config.test_size, config, task) if config.test_size is not None else None
        return _cybermetric(config.size, config, task), held_out
    return _own_files(config, task)


def _sample(task: Task) -> QuestionSet:
    with importlib.resources.as_file(importlib.resources.files("cyberlm.data") / "sample.json") as path:
        # Not the path: it differs between machines, and would make their manifests differ.
        return replace(read_questions(path, "sample", OnBadRow.error, task), source="cyberlm/data/sample.json")


def _own_files(config: DataConfig, task: Task) -> tuple[QuestionSet, QuestionSet | None]:
    if config.path is None:
        raise DataError("data=mcq has no file to read:", [Problem("data.path is not set", fix="data.path=FILE")])
    path = Path(config.path)
    main = read_questions(path, path.stem, config.on_bad_row, task)
    if config.test_path is None:
        return main, None
    test_path = Path(config.test_path)
    # Ids begin with the name, so two files of one name in two folders must not share it.
    name = test_path.stem if test_path.stem != path.stem else f"{path.stem}-test"
    return main, read_questions(test_path, name, config.on_bad_row, task)


def _cybermetric(size: int | None, config: DataConfig, task: Task) -> QuestionSet:
    file = CYBERMETRIC_FILES.get(size or 0)
    if file is None:
        sizes = ", ".join(map(str, CYBERMETRIC_FILES))
        raise DataError("There is no such CyberMetric file:", [Problem(f"data.size={size}", sizes, "data.size=2000")])
    if config.dir is not None:
        return read_questions(_file_at_hand(file, Path(config.dir)), file.name, config.on_bad_row, task)
    return replace(read_questions(_cached(file), file.name, config.on_bad_row, task), source=file.address)


def _file_at_hand(file: CyberMetricFile, folder: Path) -> Path:
    path = folder / f"{file.name}.json"
    fetch = f"curl -fLo '{path}' {file.address}"
    if not path.is_file():
        raise DataError(
            f"{folder} does not hold the questions asked for:",
            [Problem(f"there is no {path.name} in it", "nothing is downloaded where data.dir is set", fetch)],
        )
    _check_hash(path, file, str(path), fetch)
    return path


def _cached(file: CyberMetricFile) -> Path:
    """The file in the cache folder (CYBERLM_CACHE_DIR, or the user's), downloaded where it is not there yet."""
    folder = cache_folder()
    path = folder / f"{file.name}.json"
    if not path.is_file():
        _download(file, path)
    _check_hash(path, file, str(path), f"rm '{path}'   (the next run downloads it again)")
    return path


def _check_hash(path: Path, file: CyberMetricFile, what: str, fix: str) -> None:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read:", [Problem(error.strerror or str(error))]) from error
    if found != file.sha256:
        raise DataError(
            f"{what} is not the {file.name} that cyberlm was made for:",
            lfs_problems([path]) or [Problem(f"its sha256 is {found}", file.sha256, fix)],
            "A file of your own in the same shape is read with data=mcq data.path=FILE.",
        )


def _download(file: CyberMetricFile, target: Path) -> None:
    """Downloads to a file beside the target, checks it, and only then gives it its name."""
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(file, part)
            _check_hash(part, file, f"What {file.address} sent", f"curl -fLo '{target}' {file.address}")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(
            f"{file.name}.json could not be downloaded to {target.parent}:",
            [Problem(f"{file.address}: {error}")],
            f"No network here? With {file.name}.json in a folder: data.dir=FOLDER, or CYBERLM_DATA_DIR=FOLDER."
            "\nNo room or no right to write there? CYBERLM_CACHE_DIR=FOLDER keeps downloads elsewhere."
            "\n`python train.py data=sample` works offline.",
        ) from error


def _fetch(file: CyberMetricFile, part: Path) -> None:
    received = 0
    with (
        urllib.request.urlopen(file.address, timeout=TIMEOUT_SECONDS) as response,
        part.open("xb") as stream,
    ):
        length = response.headers.get("Content-Length")
        with track(f"Downloading {file.name}.json", int(length or 0), "bytes") as advance:
            while chunk := response.read(CHUNK_BYTES):
                stream.write(chunk)
                received += len(chunk)
                advance(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())
    if length is not None and received != int(length):
        raise http.client.HTTPException(f"the connection closed after {received} of {length} bytes")
