"""`data.mix`: sources of one task, each with the settings of its own YAML; everything else is refused on one screen."""

import sys
from pathlib import Path

import pytest
from support import TINY, compose, config_of

from cyberlm.config.mixture import source_configs
from cyberlm.config.rules import build_config
from cyberlm.config.saved import config_of as saved_config_of
from cyberlm.config.saved import save_config
from cyberlm.config.schema import OnBadRow, TrainConfig
from cyberlm.runtime.errors import ConfigError


def test_each_source_has_the_settings_of_its_yaml(tmp_path: Path) -> None:
    config = config_of("data.mix=[cybermetric,cti_mcq]", "+data.sources.cybermetric.size=500", "data.max_test=9")
    data, licence = config.data, "several: none stated, CC BY-NC-SA 4.0"
    assert (data.name, data.address, data.licence) == ("cybermetric+cti_mcq", None, licence)
    cybermetric, cti = source_configs(data).values()
    assert (cybermetric.size, len(cybermetric.files), cybermetric.columns["question"]) == (500, 4, None)
    assert (cti.columns["answer"], cti.on_bad_row, cti.size) == ("GT", OnBadRow.skip, None)
    assert data.max_test == 9 and "max_test" not in data.sources["cti_mcq"]
    save_config(tmp_path, config)
    assert saved_config_of(tmp_path) == config


def test_a_mixture_of_another_task_takes_what_its_sources_choose() -> None:
    config = config_of("prompt=text", "data=cti_rcm", "data.mix=[cti_rcm,cti_rcm_2021]", "metrics=[classification]")
    assert config.task["form"] == r"CWE-\d+"
    assert [source.reader for source in source_configs(config.data).values()] == [None, "raw_tsv"]


def test_a_source_of_a_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text(f"name: mine\npath: {tmp_path}/q.csv\nlicence: MIT\n")
    (tmp_path / "q.csv").write_text("question,A,B,solution\nx?,1,2,A\n")
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config-dir={tmp_path}"])
    data = config_of("data.mix=[sample,mine]").data
    assert source_configs(data)["mine"].path == f"{tmp_path}/q.csv"
    assert data.licence == "several: Apache-2.0, MIT"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("data.mix=[sample,cti_mqc]",), ("there is no data=cti_mqc", "cti_mcq")),
        (("data.mix=[cti_rcm,cti_rcm_2021]",), ("the run of", "data=cti_rcm 'data.mix=[cti_rcm,cti_rcm_2021]'")),
        (("data.mix=[sample,cti_rcm]",), ("task._target_ is", "MultipleChoice' with sample", "cation' with cti_rcm")),
        (("data=tram", "data.mix=[tram,cti_rcm]"), ("task.form is ''", "with tram, 'CWE-", "asked in the same words")),
        (("data=mal_api", "data.mix=[sample,cti_mcq]"), ("data=mal_api is not in data.mix",)),
        (
            ("data=cybermetric", "data.size=80", "data.mix=[cybermetric,cti_mcq]"),
            ("data.size=80", "type:    +data.sources.cybermetric.size=80"),
        ),
        (("data.mix=[sample,sample]",), ("two sources or more, each once",)),
        (("data.mix=[sample,cti_mcq]", "data.weights=[1]"), ("1 numbers, data.mix 2 sources",)),
        (("data.weights=[1]",), ("1 numbers, data.mix 0 sources",)),
        (("data.mix=[sample,cti_mcq]", "data.weights=[1,0]"), ("numbers above 0",)),
        (("data.mix=[sample,cti_mcq]", "+data.sources.cti_mcq.siz=9"), ("data.sources.cti_mcq.siz", "size")),
        (("data.mix=[sample,cti_mcq]", "+data.sources.tram.size=9"), ("data.sources.tram: it is not in data.mix",)),
        (
            ("data.mix=[sample,cybermetric]", "+data.sources.cybermetric.size=9"),
            ("data.sources.cybermetric.size=9: cybermetric has no such file", "+data.sources.cybermetric.size=2000"),
        ),
        (("data.mix=[sample,cybermetric]", "+data.sources.cybermetric.size=many"), ("data.sources: ", "many")),
    ],
)
def test_what_cannot_be_mixed_is_refused(line: tuple[str, ...], told: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(compose(*TINY, *line), TrainConfig)
    screen = caught.value.screen()
    assert all(text in screen for text in told), screen
    assert len(screen.splitlines()) < 24
