"""Paths and one rule for every test: nothing is written outside the test's own folders, nothing asks the network."""

import sys
from pathlib import Path

import absl.logging
import pytest
import torch
from hydra.core.hydra_config import HydraConfig

sys.path.insert(0, str(Path(__file__).parent))
# rouge_score brings absl, whose log handler closes its stream when Hydra configures logging: it must not be pytest's
absl.logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
torch.set_num_threads(1)  # tiny models: a second thread costs more than it brings


@pytest.fixture(autouse=True)
def _own_places(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    HydraConfig.instance().cfg = None  # what a command run in this process before has left
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
