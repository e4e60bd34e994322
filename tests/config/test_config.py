"""Every rule across fields, with the words that a user reads; what presets resolve to."""

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support import compose

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig, TrainConfig
from cyberlm.runtime.errors import ConfigError, Problem

ROOT = Path(__file__).parents[2]
FILE = ROOT / "pyproject.toml"
FOLDER = ROOT / "conf"


def split(line: str) -> list[str]:
    """Overrides as a shell would hand them over, but for quotes, which Hydra reads."""
    return re.findall(r"(?:[^\s']|'[^']*')+", line)


def problems(line: str, command: str = "train") -> list[Problem]:
    schema = TrainConfig if command == "train" else EvaluateConfig
    with pytest.raises(ConfigError) as caught:
        build_config(compose(*split(line), command=command), schema)
    return list(caught.value.problems)


SHARDED = "trainer.strategy=fsdp2 trainer.devices"

BAD = [
    # overrides, and what is told to be wrong
    ("model=local", "model.source=local without model.path"),
    ("model=llama3_8b model.hub_id=null", "model.source=hub without model.hub_id"),
    ("model.path=x", "model.path=x with model=smollm2_135m"),
    ("model=tiny_random model.tiny.hidden_size=60", "model.tiny.hidden_size=60 with 4 heads"),
    ("model=tiny_random model.tiny.num_key_value_heads=3", "model.tiny.num_key_value_heads=3 with 4 heads"),
    ("method=qlora quant=none", "method=qlora quant=none: QLoRA is LoRA on a 4-bit base"),
    ("method=sft quant=nf4", "method=sft quant=nf4: 4-bit weights cannot be trained, only an adapter on them"),
    ("experiment=llama3_lora method=sft", "method=sft with method.lora"),
    ("method=lora method.lora=null", "method=lora without method.lora"),
    ("method.lora.target_modules=[]", "method.lora.target_modules=[]"),
    ("method.lora.target_modules=[q_proj,7]", "method.lora.target_modules=['q_proj', 7]"),
    (
        "method.lora.target_modules=[q_proj,lm_head]",
        "method.lora.target_modules holds lm_head, which smollm2_135m shares between input and output: merging the "
        "adapter would change both",
    ),
    ("data=file", "data=file without data.path"),
    ("data.size=80", "data.size=80 with data=sample"),
    (f"data=cybermetric data.test_path={FILE}", f"data.test_path={FILE} with data=cybermetric"),
    ("data.columns.answer_is=number", "data.columns.answer_is=number"),
    ("data.columns.question=1 data.columns.answer=GT", "data.columns has names and numbers"),
    ("data.columns.question=0", "data.columns.question=0"),
    ("data=cybermetric data.test_size=7", "data.test_size=7: cybermetric has no such file"),
    ("data=cybermetric data.size=500 data.test_size=500", "data.test_size=500 is the training file itself"),
    (
        "data.validation_fraction=0.5 data.test_fraction=0.5",
        "data.validation_fraction=0.5 and data.test_fraction=0.5 leave nothing to train on",
    ),
    ("prompt.question='{question'", "prompt.question='{question'"),
    ("prompt.option='{letter} {text} {x}'", "prompt.option='{letter} {text} {x}'"),
    (
        "prompt=letter prompt.show_options=false prompt.question='{question}'",
        "prompt.protocol=letter prompt.show_options=false: a letter means nothing without the options",
    ),
    ("task=cvss prompt=letter", "prompt.protocol=letter: an answer of this task is not one letter"),
    ("prompt.plain_cue=''", "prompt.plain_cue is empty"),
    (
        "optim=paged_adamw_8bit trainer.accelerator=cpu",
        "optim.name=paged_adamw_8bit on a CPU: 8-bit states need a GPU",
    ),
    ("trainer.precision=16-mixed trainer.accelerator=cpu", "trainer.precision=16-mixed on a CPU"),
    (
        "trainer.val_check_interval=7 trainer.accumulate_grad_batches=4",
        "trainer.val_check_interval=7 with trainer.accumulate_grad_batches=4: validation would fall inside an "
        "optimizer step",
    ),
    ("data.batch_size=10 data.micro_batch_size=4", "data.batch_size=10 with data.micro_batch_size=4"),
    (
        "data.batch_size=32 data.micro_batch_size=4 trainer.accumulate_grad_batches=3",
        "data.batch_size=32 with trainer.accumulate_grad_batches=3",
    ),
    ("trainer.strategy=ddp", "trainer.strategy=ddp with one device"),
    (f"optim=paged_adamw_8bit {SHARDED}=2", "trainer.strategy=fsdp2 with optim.name=paged_adamw_8bit"),
    (f"method.lora.use_dora=true {SHARDED}=2", "trainer.strategy=fsdp2 with method.lora.use_dora=true"),
    ("trainer.cpu_offload=true", "trainer.cpu_offload=true with trainer.strategy=auto"),
    ("trainer.replicas=2 trainer.devices=4", "trainer.replicas=2 with trainer.strategy=auto"),
    (f"trainer.replicas=3 {SHARDED}=4", "trainer.replicas=3 with trainer.devices=4"),
    ("+logger.mine.level=3", "logger.mine has no _target_"),
    ("~task._target_", "task has no _target_"),
    ("+nothing=1", "there is no key 'nothing'."),
    ("+method.lora.rnk=8", "there is no key 'method.lora.rnk'. Did you mean 'method.lora.rank'?"),
    ("optim.learning_rate=${nowhere}", "Interpolation key 'nowhere' not found"),
    ("prompt.name=???", "prompt.name has no value"),
]


@pytest.mark.parametrize(("line", "what"), BAD, ids=[row[0][:60] for row in BAD])
def test_broken_rule_is_told_and_what_is_typed_instead_mends_it(line: str, what: str) -> None:
    (problem,) = problems(line)
    assert problem.what == what
    if not problem.fix or re.search(r"FOLDER|\.\.\.|questions\.jsonl", problem.fix):
        return
    typed = shlex.split(problem.fix)
    replaced = tuple(item.partition("=")[0] + behind for item in typed for behind in "=.")
    kept = [item for item in split(line) if not item.startswith(replaced)]
    left: list[str] = []
    try:
        build_config(compose(*kept, *typed), TrainConfig)
    except ConfigError as error:
        left = [other.what for other in error.problems]
    assert set(left) <= {"model.source=local without model.path", "data=file without data.path"}  # what comes next


MIN_1 = "1 or more"
SHARE = "at least 0 and below 1"
A_NAME = "up to 64 letters, digits, spaces and _ . + -, a letter or digit first"
A_RUN = ": there is no config.yaml in it"
OUT_OF_BOUNDS = {
    # override, one or two for each kind of bound and each depth: what is told behind it, and what is allowed
    "model.name=a/b": ("", A_NAME),
    "model.tiny.hidden_size=0": ("", MIN_1),
    "data.path=nowhere.jsonl": (
        ": there is no such file",
        "a .json, .jsonl, .csv, .tsv or .parquet file, a folder of the datasets library, or a hub id (owner/name)",
    ),
    "data.validation_fraction=-0.1": ("", SHARE),
    "data.near_duplicate_jaccard=1.1": ("", "above 0 and at most 1"),
    "data.max_length=8": ("", "16 or more"),
    "prompt.name=.x": ("", A_NAME),
    "trainer.max_steps=0": ("", MIN_1),
    "trainer.accelerator=tpu": ("", "auto, cpu, cuda"),
    "trainer.resume=nowhere": (A_RUN, "the folder of a run, under outputs/, or auto"),
    "seed=4294967296": ("", "0 to 4294967295"),
    "method.lora.alpha=nan": ("", "above 0"),
    "method.lora.dropout=1": ("", SHARE),
    "optim.learning_rate=inf": ("", "above 0"),
    "optim.weight_decay=nan": ("", "0 or more"),
    "plan.device_memory_gib=0": ("", "above 0"),
}


def test_every_value_out_of_bounds_is_told_at_once() -> None:
    found = problems(f"model=tiny_random data=mcq {' '.join(OUT_OF_BOUNDS)}")
    assert found == [Problem(f"{line}{wrong}", allowed) for line, (wrong, allowed) in OUT_OF_BOUNDS.items()]


def test_bad_evaluation_config() -> None:
    assert [problem.what for problem in problems("run=/nowhere", "evaluate")] == [f"run=/nowhere{A_RUN}"]
    run = ROOT / "tests" / "saved_runs" / "lora"
    assert [problem.what for problem in problems(f"run={run} runs=[x]", "evaluate")] == ["run=... and runs=[...]"]
    screen = ConfigError("Many:", [Problem(f"number {k}") for k in range(50)]).screen()
    assert "number 39" in screen and "number 40" not in screen and screen.endswith("... and 10 more")


GOOD = [
    "prompt=letter seed=4294967295 group=mine logger=[wandb,csv] callbacks=[early_stopping] "
    "+callbacks.mine={_target_:some.Callback} trainer.val_check_interval=8 trainer.accumulate_grad_batches=4",
    "optim=paged_adamw_8bit data.validation_fraction=0.1 data.test_fraction=0.85",
    "data=cybermetric data.size=2000 data.test_size=500 data.validation_fraction=0.5 data.test_fraction=0.5",
    f"data=mcq data.path={FILE} data.test_path={FILE} prompt.plain_cue='' prompt.style=chat model.source=hub",
    f"model=local model.path={FOLDER} method.lora.target_modules=[lm_head]",
    "model=tiny_random method.lora.target_modules=[q_proj,lm_head]",
]


@pytest.mark.parametrize("line", GOOD)
def test_good_config(line: str) -> None:
    assert isinstance(build_config(compose(*split(line)), TrainConfig), TrainConfig)


def test_batch_size_sets_the_accumulation() -> None:
    """Rounded up: where a step's micro-batches do not divide, some processes have a filler."""
    for devices, accumulated in ((1, 6), (4, 2)):
        line = ("data.batch_size=24", "data.micro_batch_size=4", f"trainer.devices={devices}")
        config = build_config(compose(*line), TrainConfig)
        assert config.trainer.accumulate_grad_batches == accumulated


PRESETS = {
    "": "lora smollm2_135m sample None text none adamw 1 0.0002",
    "method=sft": "sft smollm2_135m sample None text none adamw 1 2e-05",
    "method=qlora": "qlora smollm2_135m sample None text nf4 adamw 1 0.0002",
    "method=lora quant=nf4": "lora smollm2_135m sample None text nf4 adamw 1 0.0002",
    "quant=nf4 method=qlora optim.learning_rate=3e-4": "qlora smollm2_135m sample None text nf4 adamw 1 0.0003",
    "experiment=llama3_lora": "lora llama3_8b_instruct cybermetric 10000 letter none adamw 2 0.0002",
    "experiment=llama3_qlora": "qlora llama3_8b_instruct cybermetric 10000 letter nf4 adamw 2 0.0002",
    "experiment=llama3_sft": "sft llama3_8b_instruct cybermetric 10000 letter none adamw 2 1e-05",
    "experiment=llama3_70b_qlora": "qlora llama3_70b_instruct cybermetric 10000 letter nf4 adamw 2 0.0002",
    "experiment=quickstart": "lora smollm2_135m sample None text_options none adamw 1 0.0005",
    # the command line wins over the preset
    "experiment=llama3_qlora model=llama3_8b prompt=text data.size=80 method=lora trainer.max_epochs=1": (
        "lora llama3_8b cybermetric 80 text none adamw 1 0.0002"
    ),
    "experiment=llama3_lora quant=nf4 optim.learning_rate=1e-3": (
        "lora llama3_8b_instruct cybermetric 10000 letter nf4 adamw 2 0.001"
    ),
    "experiment=llama3_sft trainer.strategy=auto optim=paged_adamw_8bit optim.learning_rate=3e-5": (
        "sft llama3_8b_instruct cybermetric 10000 letter none paged_adamw_8bit 2 3e-05"
    ),
}


@pytest.mark.parametrize(("line", "expected"), PRESETS.items(), ids=PRESETS)
def test_presets(line: str, expected: str) -> None:
    config = build_config(compose(*split(line)), TrainConfig)
    groups = [config.method.name, config.model.name, config.data.name, config.data.size, config.prompt.name]
    groups += [config.quant.name, config.optim.name, config.trainer.max_epochs, config.optim.learning_rate]
    assert " ".join(map(str, groups)) == expected
    assert (config.method.lora is None) == (config.method.name == "sft")
    assert config.logger["wandb"]["_target_"] == "cyberlm.training.loggers.wandb_logger"


def test_presets_are_all_listed() -> None:
    presets = {path.stem for path in (FOLDER / "experiment").glob("*.yaml")}
    assert {line.removeprefix("experiment=") for line in PRESETS if re.fullmatch(r"experiment=\S+", line)} == presets


def test_data_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYBERLM_DATA_DIR", str(FOLDER))
    assert build_config(compose("data=cybermetric"), TrainConfig).data.dir == str(FOLDER)
    monkeypatch.delenv("CYBERLM_DATA_DIR")
    assert build_config(compose("data=cybermetric"), TrainConfig).data.dir is None


def test_saved_configuration_with_a_key_of_another_version_is_refused() -> None:
    saved = OmegaConf.create({"trainer": {"max_epoch": 3}, "nothing": 1})
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        build_config(saved, TrainConfig)
    assert [problem.what for problem in caught.value.problems] == [
        "there is no key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?",
        "there is no key 'nothing'.",
    ]
