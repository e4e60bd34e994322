"""Paths and one rule for every test: nothing is written outside the test's own folders, nothing asks the network."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import absl.logging
import pytest
import torch
from hydra.core.hydra_config import HydraConfig

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))
# rouge_score brings absl, whose log handler closes its stream when Hydra configures logging: it must not be pytest's
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _session(shared_folder: Path) -> Iterator[None]:
    """One cache for all tests, and paths for the processes that they start.

    Runs collect garbage between their phases: what was imported is left out of it.
    """
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
        patch.setenv("CYBERLM_CACHE_DIR", str(shared_folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_API_KEY", raising=False)
        yield


LONGEST = ("test_fsdp2.py", "test_two_processes.py", "test_bench.py", "test_serving.py")
"""Files that take minutes in the slow tier begin first, so that no worker of pytest-xdist ends long before another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _no_composed_command() -> None:
    HydraConfig.instance().cfg = None  # what a command run in this process before has left


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`finished_run("method=lora", ...)`: folder of a finished run; see `support`."""
    from support import train_tiny  # imports torch and all of cyberlm: only for tests that need a run

    folder, runs = tmp_path_factory.mktemp("runs"), {}

    def run(*overrides: str) -> Path:
        if overrides not in runs:
            runs[overrides] = train_tiny(folder / str(len(runs)), *overrides)
        return runs[overrides]

    return run


@pytest.fixture(scope="session")
def lora_run(finished_run: Callable[..., Path]) -> Path:
    return finished_run("method=lora")


@pytest.fixture(scope="session")
def sft_run(finished_run: Callable[..., Path]) -> Path:
    return finished_run("method=sft")


@pytest.fixture(scope="session")
def qlora_run(finished_run: Callable[..., Path]) -> Path:
    return finished_run("method=qlora")
