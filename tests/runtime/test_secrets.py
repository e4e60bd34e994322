"""Planted secrets: a whole run with every logger, an evaluation, a failure and a sweep, and none of them anywhere."""

import gzip
import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest
from typed import Ended, type_line

SMALL = (
    *("model=tiny_random", "data.max_train=8", "data.max_validation=4", "data.max_test=4"),
    *("evaluation.max_new_tokens=2", "trainer.accelerator=cpu", "callbacks=none"),
)
PLANTED = {
    "HF_TOKEN": "hf_PLANTEDplantedPLANTEDplanted01",
    "WANDB_API_KEY": "0123456789planted0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret/key",
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "MY_DATABASE_PASSWORD": "planted-unknown-password",
}
TYPED = {
    "address": "https://planted-user:planted-url-secret@tracker.invalid/x?api_key=planted-parameter",
    "password": "planted-override-secret",
}
"""Where the configuration refers to the environment, and where somebody types them."""
PARTS = (
    *PLANTED.values(),
    *("planted-user", "planted-url-secret", "planted-parameter", "planted-override-secret", "planted-remote-secret"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose remote holds a password."""
    folder = tmp_path_factory.mktemp("secrets")
    for line in (
        "git init -q .",
        "git remote add origin https://someone:planted-remote-secret@example.invalid/x.git",
        "git -c user.name=n -c user.email=e@example.invalid commit -q --allow-empty -m first",
    ):
        subprocess.run(line.split(), cwd=folder, check=True)
    return folder


def typed(place: Path, *arguments: str, command: str = "train") -> Ended:
    variables = {**PLANTED, "HOME": str(place), "CYBERLM_CACHE_DIR": str(place / "cache"), "WANDB_MODE": "offline"}
    return type_line(place, command, *arguments, **variables, ADDRESS=TYPED["address"], PASSWORD=TYPED["password"])


def found(place: Path, *outputs: str) -> list[str]:
    """Where a planted secret stands: printed, in a file's content (archives opened), or in a file's name."""
    hits = [f"printed: {part}" for part in PARTS for text in outputs if part in text]
    for file in sorted(path for path in place.rglob("*") if path.is_file() and ".git" not in path.parts):
        contents = [file.read_bytes(), str(file.relative_to(place)).encode()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if file.suffix == ".gz":
            contents.append(gzip.decompress(file.read_bytes()))
        hits += [f"{file.relative_to(place)}: {part}" for part in PARTS for text in contents if part.encode() in text]
    return hits


def loggers() -> list[str]:
    optional = [name for name in ("tensorboard", "mlflow") if importlib.util.find_spec(name)]
    line = [f"logger=[{','.join(['wandb', *optional])}]"]
    if "mlflow" in optional:
        line.append("logger.mlflow.tracking_uri='sqlite:///outputs/mlflow.db?password=${oc.env:PASSWORD}'")
    mine = "_target_:secret_logger.logger,save_dir:'${run_dir:}',address:'${oc.env:ADDRESS}'"
    return [*line, f"+logger.mine={{{mine},password:'${{oc.env:PASSWORD}}'}}"]


def test_no_planted_secret_in_any_output(place: Path) -> None:
    ended = typed(place, *SMALL, *loggers(), "hydra.run.dir=outputs/run")
    assert ended.code == 0, ended.err
    run = place / "outputs" / "run"
    assert list(run.rglob("*.wandb"))
    proof = hashlib.sha256(f"{TYPED['address']} {TYPED['password']}".encode()).hexdigest()
    assert (run / "proof.txt").read_text() == proof, "the logger itself gets the values"
    assert found(place, ended.out, ended.err) == []
    assert "password: ${oc.env:PASSWORD}" in (run / "config.yaml").read_text(), "and so it does when the run goes on"
    again = typed(place, "run=outputs/run", *loggers(), command="evaluate")
    assert again.code == 0, again.err
    assert found(place, again.out, again.err) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "seed=1,2", f"+logger.mine.password={TYPED['password']}"),
        ("-m", f"+logger.mine.password={TYPED['password']},planted-url-secret"),
        (f"logger.mlflow.tracking_uri='{TYPED['address']}'", "logger=mlflow"),
        (f"logger.wandb.project={PLANTED['MLFLOW_TRACKING_PASSWORD']}", "logger=wandb"),
        ("callbacks=[]", "+callbacks.mine={_target_:x.y,headers:{authorization:planted-url-secret}}"),
        ("+logger.mine={_target_:secret_logger.nothing,password:planted-override-secret}",),
        (f"model.path={TYPED['address']}", "model=local"),
        (f"trainer.resume={TYPED['address']}",),
        (f"+logger.mine.password={TYPED['password']}", "trainer.max_epoch=1"),
        ("model.hub_id=planted/aws+secret/key", "model=llama3_8b"),
        ("-m", "sweep=optuna", f"hydra.sweeper.storage='{TYPED['address']}'"),
        ("--config-dir=own", "-m", "seed=1,2", "logger=mine"),
    ],
)
def test_no_planted_secret_where_a_run_fails(place: Path, arguments: tuple[str, ...]) -> None:
    (place / "own" / "logger").mkdir(parents=True, exist_ok=True)
    (place / "own" / "logger" / "mine.yaml").write_text("mine: {_target_: x.y, password: not-planted-here}\n")
    ended = typed(place, *SMALL, "logger=none", *arguments)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert found(place, ended.out, ended.err) == []
    written = [file for file in place.glob("outputs/**/*") if file.is_file()]
    assert not [file for file in written if b"not-planted-here" in file.read_bytes()]


@pytest.mark.slow
def test_no_planted_secret_in_a_sweep(place: Path) -> None:
    ended = typed(place, "-m", *SMALL, *loggers()[-1:], "seed=1", "hydra.sweep.dir=outputs/sweep")
    assert ended.code == 0, ended.err
    assert (place / "outputs" / "sweep" / "0" / "proof.txt").is_file()
    assert found(place, ended.out, ended.err) == []
