"""Every rule across fields, with the words that a user reads; what presets resolve to."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support import compose

from cyberlm.config.rules import build_config
from cyberlm.config.schema import EvaluateConfig, QuantName, TrainConfig
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


LEAST_1 = "1 or more"
SHARE = "at least 0 and below 1"
SIZES = "80, 500, 2000, 10000"
TARGETS = ("all-linear, or a list of module names", "'method.lora.target_modules=[q_proj,v_proj]'")
WITHOUT_TIED = ("all-linear, or a list without them", "method.lora.target_modules=all-linear")
QUESTION_ONLY = "a template with {question} and no other placeholder"
QUESTION_OPTIONS = "a template with {options} and {question} and no other placeholder"
OPTION = "a template with {letter} and {text} and no other placeholder"
TABLE = "a .json, .jsonl, .csv or .tsv file"

BAD: list[tuple[str, str, str, str]] = [
    # overrides, what is wrong, what is allowed, what to type
    ("model=local", "model.source=local without model.path", "", "model=local model.path=FOLDER"),
    ("model=llama3_8b model.hub_id=null", "model.source=hub without model.hub_id", "", "model.hub_id=..."),
    ("model.package=null", "model.source=embedded without model.package", "", "model.package=..."),
    ("model=tiny_random model.tiny=null", "model.source=tiny without model.tiny", "", "model=tiny_random"),
    (
        "model.path=weights",
        "model.path=weights with model=smollm2_135m",
        "model.path only with model=local",
        "model=local",
    ),
    (
        "model=tiny_random model.tiny.hidden_size=60",
        "model.tiny.hidden_size=60 with 4 heads",
        "a multiple of 8",
        "",
    ),
    ("model=tiny_random model.tiny.hidden_size=0", "model.tiny.hidden_size=0", LEAST_1, ""),
    ("model=tiny_random model.tiny.intermediate_size=0", "model.tiny.intermediate_size=0", LEAST_1, ""),
    ("model=tiny_random model.tiny.num_hidden_layers=0", "model.tiny.num_hidden_layers=0", LEAST_1, ""),
    ("model=tiny_random model.tiny.num_attention_heads=0", "model.tiny.num_attention_heads=0", LEAST_1, ""),
    (
        "model=tiny_random model.tiny.num_key_value_heads=3",
        "model.tiny.num_key_value_heads=3 with 4 heads",
        "a divisor of 4",
        "",
    ),
    ("model=tiny_random model.tiny.seed=-1", "model.tiny.seed=-1", "0 or more", ""),
    (
        "method=qlora quant=none",
        "method=qlora quant=none: QLoRA is LoRA on a 4-bit base",
        "method=qlora (which sets quant=nf4), or method=lora quant=none",
        "method=lora",
    ),
    (
        "method=sft quant=nf4",
        "method=sft quant=nf4: 4-bit weights cannot be trained, only an adapter on them",
        "method=sft quant=none, or method=qlora",
        "method=qlora",
    ),
    (
        "experiment=llama3_lora method=sft",
        "method=sft with method.lora",
        "method.lora only with method=lora or method=qlora",
        "method=sft method.lora=null",
    ),
    ("method=lora method.lora=null", "method=lora without method.lora", "", "method=lora"),
    ("method=qlora method.lora=null", "method=qlora without method.lora", "", "method=qlora"),
    ("method.lora.rank=0", "method.lora.rank=0", LEAST_1, ""),
    ("method.lora.alpha=0", "method.lora.alpha=0", "above 0", ""),
    ("method.lora.alpha=nan", "method.lora.alpha=nan", "above 0", ""),
    ("method.lora.dropout=1", "method.lora.dropout=1", SHARE, ""),
    ("method.lora.dropout=-0.1", "method.lora.dropout=-0.1", SHARE, ""),
    ("method.lora.target_modules=[]", "method.lora.target_modules=[]", *TARGETS),
    ("method.lora.target_modules=3", "method.lora.target_modules=3", *TARGETS),
    ("method.lora.target_modules=[q_proj,7]", "method.lora.target_modules=['q_proj', 7]", *TARGETS),
    ("method.lora.target_modules=''", "method.lora.target_modules=''", *TARGETS),
    (
        "method.lora.target_modules=[q_proj,lm_head]",
        "method.lora.target_modules holds lm_head, which smollm2_135m shares between input and output: merging the "
        "adapter would change both",
        *WITHOUT_TIED,
    ),
    (
        "model=llama32_1b_instruct method.lora.target_modules=embed_tokens",
        "method.lora.target_modules holds embed_tokens, which llama32_1b_instruct shares between input and output: "
        "merging the adapter would change both",
        *WITHOUT_TIED,
    ),
    (
        "data.size=80",
        "data.size=80 with data=sample",
        "data.size only with data=cybermetric, else data.size=null",
        "data=cybermetric data.size=80",
    ),
    (
        f"data.dir={FOLDER}",
        f"data.dir={FOLDER} with data=sample",
        "data.dir only with data=cybermetric, else data.dir=null",
        f"data=cybermetric data.dir={FOLDER}",
    ),
    (
        "data.test_size=80",
        "data.test_size=80 with data=sample",
        "data.test_size only with data=cybermetric, else data.test_size=null",
        "data=cybermetric data.test_size=80",
    ),
    (
        "data.path=q.jsonl",
        "data.path=q.jsonl with data=sample",
        "data.path only with data=mcq, else data.path=null",
        "data=mcq data.path=q.jsonl",
    ),
    (
        "data=cybermetric data.test_path=q.jsonl",
        "data.test_path=q.jsonl with data=cybermetric",
        "data.test_path only with data=mcq, else data.test_path=null",
        "data=mcq data.test_path=q.jsonl",
    ),
    (
        f"data=mcq data.path={FILE} data.size=80",
        "data.size=80 with data=mcq",
        "data.size only with data=cybermetric, else data.size=null",
        "data=cybermetric data.size=80",
    ),
    ("data=mcq", "data=mcq without data.path", "your question file", "data=mcq data.path=questions.jsonl"),
    ("data=mcq data.path=nowhere.jsonl", "data.path=nowhere.jsonl: there is no such file", TABLE, ""),
    (
        f"data=mcq data.path={FILE} data.test_path=nowhere.csv",
        "data.test_path=nowhere.csv: there is no such file",
        TABLE,
        "",
    ),
    ("data=cybermetric data.size=100", "data.size=100: there is no such CyberMetric file", SIZES, "data.size=2000"),
    ("data=cybermetric data.size=null", "data.size=None: there is no such CyberMetric file", SIZES, "data.size=2000"),
    (
        "data=cybermetric data.test_size=7",
        "data.test_size=7: there is no such CyberMetric file",
        SIZES,
        "data.test_size=2000",
    ),
    (
        "data=cybermetric data.size=500 data.test_size=500",
        "data.test_size=500 is the training file itself",
        "another size, or no data.test_size",
        "",
    ),
    (
        "data=cybermetric data.dir=/nowhere",
        "data.dir=/nowhere is not a folder",
        "a folder that holds CyberMetric-<size>-v1.json",
        "",
    ),
    ("data.validation_fraction=-0.1", "data.validation_fraction=-0.1", SHARE, ""),
    ("data.test_fraction=-0.5", "data.test_fraction=-0.5", SHARE, ""),
    (
        "data.validation_fraction=0.5 data.test_fraction=0.5",
        "data.validation_fraction=0.5 and data.test_fraction=0.5 leave nothing to train on",
        "a sum below 1",
        "",
    ),
    ("data.near_duplicate_jaccard=0", "data.near_duplicate_jaccard=0", "above 0 and at most 1", ""),
    ("data.near_duplicate_jaccard=1.1", "data.near_duplicate_jaccard=1.1", "above 0 and at most 1", ""),
    ("data.max_train=0", "data.max_train=0", LEAST_1, ""),
    ("data.max_validation=0", "data.max_validation=0", LEAST_1, ""),
    ("data.max_test=0", "data.max_test=0", LEAST_1, ""),
    ("data.micro_batch_size=0", "data.micro_batch_size=0", LEAST_1, ""),
    ("data.max_batch_tokens=0", "data.max_batch_tokens=0", LEAST_1, ""),
    ("data.max_length=8", "data.max_length=8", "16 or more", ""),
    ("data.num_workers=-1", "data.num_workers=-1", "0 or more", ""),
    ("data.seed=-1", "data.seed=-1", "0 or more", ""),
    ("prompt=letter prompt.question=hello", "prompt.question='hello'", QUESTION_OPTIONS, ""),
    ("prompt=letter prompt.question='{question}'", "prompt.question='{question}'", QUESTION_OPTIONS, ""),
    ("prompt.question='{question} {options}'", "prompt.question='{question} {options}'", QUESTION_ONLY, ""),
    ("prompt.question='{question'", "prompt.question='{question'", QUESTION_ONLY, ""),
    ("prompt.question='{}'", "prompt.question='{}'", QUESTION_ONLY, ""),
    ("prompt.option='{letter}'", "prompt.option='{letter}'", OPTION, ""),
    ("prompt.option='{letter} {text} {x}'", "prompt.option='{letter} {text} {x}'", OPTION, ""),
    (
        "prompt=letter prompt.show_options=false prompt.question='{question}'",
        "prompt.protocol=letter prompt.show_options=false: a letter means nothing without the options",
        "prompt.show_options=true, or prompt=text",
        "prompt=text",
    ),
    (
        "prompt.plain_cue=''",
        "prompt.plain_cue is empty",
        "the last words of a plain prompt",
        "'prompt.plain_cue=Answer:'",
    ),
    ("optim.learning_rate=0", "optim.learning_rate=0", "above 0", ""),
    ("optim.learning_rate=inf", "optim.learning_rate=inf", "above 0", ""),
    ("optim.weight_decay=-1", "optim.weight_decay=-1", "0 or more", ""),
    ("optim.weight_decay=nan", "optim.weight_decay=nan", "0 or more", ""),
    ("optim.beta1=1", "optim.beta1=1", SHARE, ""),
    ("optim.beta2=-0.1", "optim.beta2=-0.1", SHARE, ""),
    ("optim.eps=0", "optim.eps=0", "above 0", ""),
    ("optim.warmup_fraction=1", "optim.warmup_fraction=1", SHARE, ""),
    ("optim.max_grad_norm=-1", "optim.max_grad_norm=-1", "0 or more", ""),
    (
        "optim=paged_adamw_8bit trainer.accelerator=cpu",
        "optim.name=paged_adamw_8bit on a CPU: 8-bit states need a GPU",
        "adamw",
        "optim=adamw",
    ),
    (
        "trainer.precision=16-mixed trainer.accelerator=cpu",
        "trainer.precision=16-mixed on a CPU",
        "auto, 32-true, bf16-mixed",
        "trainer.precision=auto",
    ),
    ("trainer.max_epochs=0", "trainer.max_epochs=0", LEAST_1, ""),
    ("trainer.max_steps=0", "trainer.max_steps=0", LEAST_1, ""),
    ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0", LEAST_1, ""),
    ("trainer.val_check_interval=0", "trainer.val_check_interval=0", LEAST_1, ""),
    (
        "trainer.val_check_interval=7 trainer.accumulate_grad_batches=4",
        "trainer.val_check_interval=7 with trainer.accumulate_grad_batches=4: validation would fall inside an "
        "optimizer step",
        "a multiple of 4",
        "trainer.val_check_interval=8",
    ),
    ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0", LEAST_1, ""),
    ("trainer.checkpoint_every_n_steps=0", "trainer.checkpoint_every_n_steps=0", LEAST_1, ""),
    ("trainer.precision=bf16-true", "trainer.precision=bf16-true", "auto, 32-true, bf16-mixed, 16-mixed", ""),
    ("trainer.accelerator=tpu", "trainer.accelerator=tpu", "auto, cpu, cuda", ""),
    (
        "trainer.resume=/nowhere",
        "trainer.resume=/nowhere is not a folder",
        "the folder of an unfinished run",
        "",
    ),
    ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens=0", LEAST_1, ""),
    ("seed=-1", "seed=-1", "0 to 4294967295", ""),
    ("seed=4294967296", "seed=4294967296", "0 to 4294967295", ""),
    ("+logger.mine.level=3", "logger.mine has no _target_", "the dotted name of the class to make", ""),
    ("+callbacks.mine=3", "callbacks.mine has no _target_", "the dotted name of the class to make", ""),
    ("+nothing=1", "there is no key 'nothing'.", "", ""),
    (
        "++trainer.max_epoch=2",
        "there is no key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?",
        "",
        "",
    ),
    ("+method.lora.rnk=8", "there is no key 'method.lora.rnk'. Did you mean 'method.lora.rank'?", "", ""),
    ("optim.learning_rate=${nowhere}", "Interpolation key 'nowhere' not found", "", ""),
    ("prompt.name=???", "prompt.name has no value", "", "prompt.name=..."),
]


@pytest.mark.parametrize(("line", "what", "allowed", "fix"), BAD, ids=[row[0][:60] for row in BAD])
def test_bad_config(line: str, what: str, allowed: str, fix: str) -> None:
    assert problems(line) == [Problem(what, allowed, fix)]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("run=/nowhere", "run=/nowhere is not a folder"),
        ("seed=-1", "seed=-1"),
        ("data=mcq", "data=mcq without data.path"),
        ("+nothing=1", "there is no key 'nothing'."),
    ],
)
def test_bad_evaluation_config(line: str, what: str) -> None:
    assert [problem.what for problem in problems(line, "evaluate")] == [what]


def test_every_problem_is_shown_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(
            compose(
                "method=qlora",
                "quant=none",
                "method.lora.rank=0",
                "data.size=80",
                "optim.learning_rate=-1",
                "trainer.accelerator=tpu",
            ),
            TrainConfig,
        )
    assert str(caught.value) == (
        """The configuration has 5 problems:
  - data.size=80 with data=sample
      allowed: data.size only with data=cybermetric, else data.size=null
      type:    data=cybermetric data.size=80
  - trainer.accelerator=tpu
      allowed: auto, cpu, cuda
  - method=qlora quant=none: QLoRA is LoRA on a 4-bit base
      allowed: method=qlora (which sets quant=nf4), or method=lora quant=none
      type:    method=lora
  - method.lora.rank=0
      allowed: 1 or more
  - optim.learning_rate=-1
      allowed: above 0"""
    )


def test_one_problem_can_bring_another() -> None:
    both = problems("data.validation_fraction=1")
    assert [problem.what for problem in both] == [
        "data.validation_fraction=1",
        "data.validation_fraction=1 and data.test_fraction=0.2 leave nothing to train on",
    ]


def test_many_problems_are_counted_not_shown() -> None:
    error = ConfigError("Many:", [Problem(f"number {k}") for k in range(50)])
    assert "number 39" in error.screen()
    assert "number 40" not in error.screen()
    assert error.screen().endswith("... and 10 more")


GOOD = [
    "",
    "data.validation_fraction=0.1 data.test_fraction=0.85",
    "data=cybermetric data.size=2000 data.test_size=500 data.validation_fraction=0.5 data.test_fraction=0.5",
    f"data=mcq data.path={FILE} data.test_path={FILE}",
    f"model=local model.path={FOLDER} method.lora.target_modules=[lm_head]",
    "model=tiny_random method.lora.target_modules=[q_proj,lm_head]",
    "model.source=hub",
    "prompt=letter",
    "prompt.plain_cue='' prompt.style=chat",
    "trainer.val_check_interval=8 trainer.accumulate_grad_batches=4",
    "optim=paged_adamw_8bit",
    "seed=4294967295",
    "logger=[wandb,csv] callbacks=[default,early_stopping]",
    "+callbacks.mine={_target_:some.Callback}",
    "group=mine",
]


@pytest.mark.parametrize("line", GOOD)
def test_good_config(line: str) -> None:
    assert isinstance(build_config(compose(*split(line)), TrainConfig), TrainConfig)


@pytest.mark.parametrize(
    ("line", "method", "quant", "adapter", "rate"),
    [
        ("method=sft", "sft", QuantName.none, False, 2e-5),
        ("method=lora", "lora", QuantName.none, True, 2e-4),
        ("method=qlora", "qlora", QuantName.nf4, True, 2e-4),
        ("method=lora quant=nf4", "lora", QuantName.nf4, True, 2e-4),
        ("quant=nf4 method=qlora optim.learning_rate=3e-4", "qlora", QuantName.nf4, True, 3e-4),
    ],
)
def test_methods(line: str, method: str, quant: QuantName, adapter: bool, rate: float) -> None:
    config = build_config(compose(*split(line)), TrainConfig)
    assert (config.method.name, config.quant.name, config.method.lora is not None) == (method, quant, adapter)
    assert config.optim.learning_rate == rate


PRESETS = {
    "": ("lora", "smollm2_135m", "sample", None, "text", "none", "adamw", 1, 2e-4),
    "experiment=llama3_lora": ("lora", "llama3_8b_instruct", "cybermetric", 10000, "letter", "none", "adamw", 2, 2e-4),
    "experiment=llama3_qlora": ("qlora", "llama3_8b_instruct", "cybermetric", 10000, "letter", "nf4", "adamw", 2, 2e-4),
    "experiment=llama3_sft": (
        *("sft", "llama3_8b_instruct", "cybermetric", 10000, "letter", "none", "paged_adamw_8bit", 2, 1e-5),
    ),
    # what the command line says wins over the preset
    "experiment=llama3_qlora method=lora trainer.max_epochs=1": (
        *("lora", "llama3_8b_instruct", "cybermetric", 10000, "letter", "none", "adamw", 1, 2e-4),
    ),
    "experiment=llama3_qlora model=llama3_8b prompt=text data.size=80": (
        *("qlora", "llama3_8b", "cybermetric", 80, "text", "nf4", "adamw", 2, 2e-4),
    ),
    "experiment=llama3_lora quant=nf4 optim.learning_rate=1e-3": (
        *("lora", "llama3_8b_instruct", "cybermetric", 10000, "letter", "nf4", "adamw", 2, 1e-3),
    ),
    "experiment=llama3_sft optim=adamw optim.learning_rate=3e-5": (
        *("sft", "llama3_8b_instruct", "cybermetric", 10000, "letter", "none", "adamw", 2, 3e-5),
    ),
    "experiment=llama3_qlora model=tiny_random data=sample data.size=null": (
        *("qlora", "tiny_random", "sample", None, "letter", "nf4", "adamw", 2, 2e-4),
    ),
}


@pytest.mark.parametrize(("line", "expected"), PRESETS.items(), ids=PRESETS)
def test_presets(line: str, expected: tuple[object, ...]) -> None:
    config = build_config(compose(*split(line)), TrainConfig)
    assert (
        config.method.name,
        config.model.name,
        config.data.name.name,
        config.data.size,
        config.prompt.name,
        config.quant.name.name,
        config.optim.name.name,
        config.trainer.max_epochs,
        config.optim.learning_rate,
    ) == expected
    assert list(config.logger) == ["wandb"]
    assert config.logger["wandb"]["_target_"] == "cyberlm.training.loggers.wandb_logger"


def test_presets_are_all_listed() -> None:
    presets = {path.stem for path in (FOLDER / "experiment").glob("*.yaml")}
    assert {line.removeprefix("experiment=") for line in PRESETS if line and " " not in line} == presets


def test_data_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYBERLM_DATA_DIR", str(FOLDER))
    assert build_config(compose("data=cybermetric"), TrainConfig).data.dir == str(FOLDER)
    monkeypatch.delenv("CYBERLM_DATA_DIR")
    assert build_config(compose("data=cybermetric"), TrainConfig).data.dir is None


def test_saved_configuration_is_read_again() -> None:
    config = build_config(compose("method=qlora", "model=tiny_random", "logger=none"), TrainConfig)
    saved = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert build_config(saved, TrainConfig) == config


def test_saved_configuration_with_a_key_of_another_version_is_refused() -> None:
    saved = OmegaConf.create({"trainer": {"max_epoch": 3}, "nothing": 1})
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        build_config(saved, TrainConfig)
    assert [problem.what for problem in caught.value.problems] == [
        "there is no key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?",
        "there is no key 'nothing'.",
    ]
