"""Reads the questions of a data source: the file that a YAML under conf/data pins, or a file of your own."""

import contextlib
import http.client
import importlib.resources
import json
import os
import tempfile
import urllib.error
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cyberlm.config.bounds import is_hub_id
from cyberlm.config.mixture import source_configs
from cyberlm.config.schema import DataConfig
from cyberlm.data.hub import dataset_folder
from cyberlm.data.readers import QuestionSet, read_questions
from cyberlm.data.text_files import stem_of
from cyberlm.runtime.cache import cache_folder
from cyberlm.runtime.errors import DataError, Problem, lfs_problems
from cyberlm.runtime.files import sha256_of
from cyberlm.runtime.progress import say, say_once, track
from cyberlm.tasks.task import Task

TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 16
SAMPLE = DataConfig(name="sample", address="package://cyberlm/data/sample.json")
"""Embedded questions, for checks where a run's own questions are gone."""


@dataclass(frozen=True)
class PinnedFile:
    """One file of a data source.

    Attributes:
        address: `https://...`, `package://PACKAGE/FILE` (in an installed package), `file://...` or a path.
        sha256: Of the file's bytes; None where it is not checked.
    """

    address: str
    sha256: str | None

    @property
    def file_name(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.address).path)).name

    @property
    def name(self) -> str:
        return stem_of(Path(self.file_name))

    @property
    def cached(self) -> Path:
        """Place in the cache folder, downloaded or not."""
        return cache_folder() / self.file_name


def pinned_file(config: DataConfig, size: int | None) -> PinnedFile:
    """The file of a data source, the one of `data.size` where it has several."""
    entry = config.files[size] if size is not None and config.files else {}
    pinned = {"commit": config.commit, "sha256": config.sha256, **entry}
    return PinnedFile(str(config.address).format(**pinned), pinned["sha256"])


def load_sources(config: DataConfig, task: Task) -> tuple[QuestionSet, ...]:
    """Reads the questions that a run is about.

    The commit of a hub dataset that is not pinned is filled in, in `config`.

    Returns:
        The main file, and the held-out test file where `data.test_size`, `data.test_path` or `data.test_split` names
        one; of a mixture those of each source, whose name their questions have.

    Raises:
        DataError: A file is missing, cannot be downloaded, is not the pinned one, or holds bad rows.
    """
    if not config.mix:
        return tuple(_load_source(config, task))
    found = []
    for name, source in source_configs(config).items():
        found += [_named(file, name) for file in _load_source(source, task)]
        if source.commit is not None:
            config.sources[name]["commit"] = source.commit
    return tuple(found)


def _named(file: QuestionSet, source: str) -> QuestionSet:
    """A file of a source in a mixture: its ids differ from those of all other files."""
    name = f"{source}-test" if file.held_out else source
    renamed = (replace(item, id=f"{name}{item.id.removeprefix(file.name)}", source=source) for item in file.questions)
    return replace(file, name=name, questions=tuple(renamed))


def _load_source(config: DataConfig, task: Task) -> Iterator[QuestionSet]:
    if config.address is not None:
        yield _read_pinned(config, config.size, task)
        if config.test_size is not None:
            yield replace(_read_pinned(config, config.test_size, task), held_out=True)
        return
    path = str(config.path)
    main = _read_own(path, stem_of(Path(path)), config, task)
    yield main
    if config.test_path is None and config.test_split is None:
        return
    test_path = config.test_path or path
    # Ids begin with the name, so two files of one name in two folders must not share it.
    name = stem_of(Path(test_path)) if stem_of(Path(test_path)) != main.name else f"{main.name}-test"
    plain = config.test_path is not None and Path(config.test_path).is_file()  # which has no subsets and splits
    subset, split = (None, config.test_split) if plain else (config.subset, config.test_split or config.split)
    held_out = _read_own(test_path, name, replace(config, subset=subset, split=split), task)
    yield replace(held_out, held_out=True)


def _read_own(path: str, name: str, config: DataConfig, task: Task) -> QuestionSet:
    """Reads a file or folder, or a dataset of the hub, whose commit is filled in."""
    if not is_hub_id(path):
        return _read(Path(path), name, config, task)
    folder, commit = dataset_folder(path, config.commit, config.licence)
    config.commit = commit
    found = _read(folder, name, config, task)
    return replace(found, source=f"https://huggingface.co/datasets/{path}/tree/{commit}")


def _read(path: Path, name: str, config: DataConfig, task: Task) -> QuestionSet:
    if "NC" in config.licence.split("-"):
        say_once(f"{config.name} is licensed {config.licence}: not for commercial use.")
    columns, dataset = config.columns, (config.subset, config.split)
    found = read_questions(path, name, config.on_bad_row, task, columns, config.reader, *dataset)
    for note, count in found.notes.items():
        say_once(f"{name}: {note} in {count} rows")
    if found.unread:
        say_once(f"{name}: columns that are not read: {', '.join(found.unread)}")
    return found


def _read_pinned(config: DataConfig, size: int | None, task: Task) -> QuestionSet:
    file = pinned_file(config, size)
    with contextlib.ExitStack() as opened:
        path, source = _checked(file, config, opened)
        if config.answer_address is not None:
            answers = PinnedFile(config.answer_address.format(commit=config.commit), config.answer_sha256)
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            path = _with_answers(path, _checked(answers, config, opened)[0], folder / f"{file.name}.json")
        found = _read(path, file.name, config, task)
    return replace(found, source=source)


def _checked(file: PinnedFile, config: DataConfig, opened: contextlib.ExitStack) -> tuple[Path, str]:
    """A pinned file once its hash is checked, and the name of its place."""
    place = urlsplit(file.address)
    source, fix = None, ""
    if place.scheme == "package":
        package, _, inner = file.address.removeprefix("package://").partition("/")
        try:
            root = importlib.resources.files(package)
        except (ImportError, ValueError) as error:
            problem = Problem(str(error), "an installed package")
            raise DataError(f"{file.address} cannot be read:", [problem]) from error
        path = opened.enter_context(importlib.resources.as_file(root / inner))
        # Not the path: it differs between machines, and would make their manifests differ.
        source = f"{package}/{inner}"
    elif place.scheme in ("http", "https"):
        path, fix = _fetched(file, config.dir, config.licence)
        source = file.address if config.dir is None else None
    else:
        path = Path(unquote(place.path) if place.scheme == "file" else file.address)
    _check_hash(path, file, str(path), fix)
    return path, source or str(path)


def _with_answers(texts: Path, answers: Path, target: Path) -> Path:
    """Writes a JSON file of the lines of one file as questions, and those of another as their answers."""
    lines, labels = _lines(texts), _lines(answers)
    if len(lines) != len(labels):
        problem = Problem(f"{len(lines)} and {len(labels)} lines", "as many")
        raise DataError(f"{texts} and {answers} do not belong together:", [problem])
    rows = [{"question": line, "answer": label} for line, label in zip(lines, labels, strict=True)]
    target.write_text(json.dumps(rows), "utf-8")
    return target


def _lines(path: Path) -> list[str]:
    """Lines of a text file, or of the only file in a zip archive."""
    if path.suffix != ".zip":
        return path.read_text("utf-8").splitlines()
    with zipfile.ZipFile(path) as archive:
        return archive.read(archive.namelist()[0]).decode("utf-8").splitlines()


def _fetched(file: PinnedFile, folder: str | None, licence: str) -> tuple[Path, str]:
    """The file in a folder of the user's, else in the cache folder, downloaded if need be; what fetches it anew."""
    path = Path(folder) / file.file_name if folder else file.cached
    fetch = f"curl -fLo '{path}' {file.address}" if folder else f"rm '{path}'   (the next run downloads it again)"
    if folder and not path.is_file():
        raise DataError(
            f"{folder} does not hold the questions asked for:",
            [Problem(f"there is no {path.name} in it", "nothing is downloaded where data.dir is set", fetch)],
        )
    if not path.is_file():
        say(f"{file.name}: licence {licence}")
        _download(file, path)
    return path, fetch


def _check_hash(path: Path, file: PinnedFile, what: str, fix: str) -> None:
    if file.sha256 is None:
        return
    try:
        found = sha256_of([path])
    except OSError as error:
        raise DataError(f"{path} cannot be read:", [Problem(error.strerror or str(error))]) from error
    if found != file.sha256:
        raise DataError(
            f"{what} is not the {file.name} that is pinned by its sha256:",
            lfs_problems([path]) or [Problem(f"its sha256 is {found}", file.sha256, fix)],
            "A file of your own in the same shape is read with data=file data.path=FILE.",
        )


def _download(file: PinnedFile, target: Path) -> None:
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
            f"{file.file_name} could not be downloaded to {target.parent}:",
            [Problem(f"{file.address}: {error}")],
            f"No network here? With {file.file_name} in a folder: data.dir=FOLDER, or CYBERLM_DATA_DIR=FOLDER."
            "\nNo room or no right to write there? CYBERLM_CACHE_DIR=FOLDER keeps downloads elsewhere."
            "\n`python train.py data=sample` works offline.",
        ) from error


def _fetch(file: PinnedFile, part: Path) -> None:
    received = 0
    with urllib.request.urlopen(file.address, timeout=TIMEOUT_SECONDS) as response, part.open("xb") as stream:
        length = response.headers.get("Content-Length")
        with track(f"Downloading {file.file_name}", int(length or 0), "bytes") as advance:
            while chunk := response.read(CHUNK_BYTES):
                stream.write(chunk)
                received += len(chunk)
                advance(len(chunk))
        stream.flush()
        os.fsync(stream.fileno())
    if length is not None and received != int(length):
        raise http.client.HTTPException(f"the connection closed after {received} of {length} bytes")
