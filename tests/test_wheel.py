"""The wheel holds code, configuration, sample questions and licence, and works far from the checkout."""

import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def run(folder: Path, *line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by hatchling alone, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    done = run(ROOT, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def under(folder: Path, suffix: str = "") -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(f"*{suffix}") if path.is_file()}


def test_wheel_holds_all_that_is_needed_and_states_its_licence(unpacked: Path) -> None:
    shipped = under(unpacked)
    assert {f"cyberlm/{name}" for name in under(ROOT / "cyberlm", ".py")} <= shipped
    assert {f"hydra_plugins/{name}" for name in under(ROOT / "hydra_plugins", ".py")} <= shipped
    assert {f"cyberlm/conf/{name}" for name in under(ROOT / "conf", ".yaml")} <= shipped
    templates = "cyberlm/evaluation/pages/templates"
    assert {f"{templates}/{name}" for name in under(ROOT / templates)} <= shipped
    assert {"cyberlm/data/sample.json", "cyberlm/conf/train.yaml", "cyberlm/conf/evaluate.yaml"} <= shipped
    for name in ("cyberlm/data/sample.json", "cyberlm/conf/train.yaml"):
        assert (unpacked / name).read_bytes() == (ROOT / name.replace("cyberlm/conf", "conf")).read_bytes()
    assert not {name.split("/")[0] for name in shipped} & {"tests", "bench", "docs", "conf", "outputs"}
    (info,) = unpacked.glob("cyberlm-*.dist-info")
    for name in ("LICENSE", "NOTICE"):
        assert (info / "licenses" / name).read_bytes() == (ROOT / name).read_bytes()
    metadata = message_from_string((info / "METADATA").read_text("utf-8"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"tensorboard", "mlflow", "serve", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    assert (info / "entry_points.txt").read_text().split() == [
        *("[console_scripts]", "cyberlm", "=", "cyberlm.__main__:main")
    ]


def test_unpacked_wheel_prints_its_own_configuration(unpacked: Path, tmp_path: Path) -> None:
    """Configuration and sample questions come from the wheel, not from the checkout that happens to be here."""

    def python(*line: str) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, sys.executable, *line, PYTHONPATH=str(unpacked))

    (unpacked / "cyberlm" / "conf" / "experiment" / "here_only.yaml").write_text("# @package _global_\nseed: 77\n")
    (unpacked / "conf").mkdir()  # another package's
    code = (
        "from importlib import resources; import cyberlm; "
        "print(cyberlm.__file__); print((resources.files('cyberlm.data') / 'sample.json').is_file())"
    )
    assert python("-c", code).stdout.split() == [str(unpacked / "cyberlm" / "__init__.py"), "True"]
    done = python("-m", "cyberlm", "train", "experiment=here_only", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    printed = yaml.safe_load(done.stdout)
    assert (printed["method"]["name"], printed["model"]["name"], printed["seed"]) == ("lora", "smollm2_135m", 77)
    assert list(tmp_path.iterdir()) == []
    done = python("-m", "cyberlm", "train", "model=lama3")
    assert done.returncode == 1 and "there is no model 'lama3'" in done.stderr
    assert "All keys and values: python -m cyberlm train --help" in done.stderr
