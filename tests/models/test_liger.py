"""Liger's kernels, which need a GPU: here, what is said where they cannot be used."""

import logging

import pytest
from support import config_of, tiny
from transformers.utils import is_liger_kernel_available

from cyberlm.models.liger import choose_kernels
from cyberlm.runtime.errors import ConfigError, ModelError


def test_a_cpu_leaves_them_out_and_says_so_and_a_sharded_model_has_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tiny(config_of("model.use_liger_kernel=true"))
    assert "Liger's kernels need a GPU" in caplog.text
    with pytest.raises(ConfigError, match=r"model\.use_liger_kernel=false"):
        config_of("model.use_liger_kernel=true", "trainer.strategy=fsdp2")


@pytest.mark.skipif(is_liger_kernel_available(), reason="liger-kernel is installed")
def test_a_missing_package_is_named() -> None:
    loaded, _ = tiny(config_of())
    with pytest.raises(ModelError, match=r"pip install 'cyberlm\[liger\]'"):
        choose_kernels(loaded.causal, liger=True)
    choose_kernels(loaded.causal, liger=False)
