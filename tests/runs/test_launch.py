"""From the command line to a run in its folder, or to the one screen that says why there is none."""

import shlex
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from typed import ROOT, TRAIN, run_python, type_line

from cyberlm.runs import launch
from cyberlm.runtime.errors import ConfigError, Problem

ALL_KEYS = "All keys and values: python train.py --help"
TITLE = "These overrides cannot be used:"


def refused(folder: Path, *arguments: str, command: str = "train") -> str:
    """The one screen that a command line must end with, leaving nothing behind but the folder of a sweep."""
    before = set(folder.rglob("*"))

    def never(*_: object) -> float:
        raise AssertionError("this configuration must not run")

    ended = type_line(folder, command, *arguments, run=never)
    assert (ended.code, ended.out) == (1, "")
    assert "-m" in arguments or set(folder.rglob("*")) == before
    return ended.err


def given(folder: Path, *arguments: str, command: str = "train") -> tuple[Any, Path]:
    """The configuration and the folder that a run is given."""
    seen: list[tuple[Any, Path]] = []
    ended = type_line(folder, command, *arguments, run=lambda *both: seen.append(both))
    assert ended.code == 0, ended.err
    return seen[0]


def test_several_mistakes_are_one_screen_in_a_process_of_its_own(tmp_path: Path) -> None:
    line = ("model=lama3_8b", "trainer.max_epoch=3", "method.lora.rank=many", "evaluation.option_score=words")
    done = run_python(tmp_path, "-X", "importtime", TRAIN, *line, HOME=str(tmp_path))
    shown = "\n".join(item for item in done.stderr.splitlines() if not item.startswith("import time:"))
    models = "gemma3_1b_it, llama31_8b_instruct, llama32_1b_instruct, llama32_3b_instruct, llama3_70b_instruct, "
    models += "llama3_8b, llama3_8b_instruct, local, mistral_7b_instruct, olmo2_1b_instruct, olmo2_7b_instruct, "
    models += "phi3_mini_instruct, qwen3_4b_instruct, smollm2_135m, tiny_random"
    assert (done.returncode, done.stdout) == (1, "")
    assert shown.strip() == (
        f"""{TITLE}
  - model=lama3_8b: there is no model 'lama3_8b'
      allowed: {models}
      type:    model=llama3_8b
  - trainer.max_epoch=3: there is no key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?
  - method.lora.rank=many: Value 'many' of type 'str' could not be converted to Integer
  - evaluation.option_score=words: Invalid value 'words', expected one of [sum, per_token, per_char]

{ALL_KEYS}"""
    )
    assert list(tmp_path.iterdir()) == []
    imported = {item.rpartition("|")[2].strip() for item in done.stderr.splitlines()}
    assert "hydra" in imported and not imported & {"torch", "transformers", "wandb"}


def test_a_flag_may_stand_between_overrides(tmp_path: Path) -> None:
    line = ["a=1", "-m", "b=2", "--info", "searchpath", "c=3", "-i", "d=4", "--config-dir", "x=y", "~e"]
    ordered = ["a=1", "b=2", "c=3", "d=4", "~e", "-m", "--info", "searchpath", "-i", "--config-dir", "x=y"]
    assert launch._flags_last(line) == ordered
    printed = OmegaConf.create(type_line(tmp_path, "train", "method=qlora", "-c", "job", "seed=7", "--resolve").out)
    assert (printed.quant.name, printed.seed, printed.logger.wandb.save_dir) == ("nf4", 7, "<run folder>")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ what cannot be composed

LORA_ONLY = """method.lora.rank={}: there is no method.lora with method=sft
      allowed: with method=lora or method=qlora"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nothing=1", "nothing=1: there is no key 'nothing'."),
        ("qlora", "qlora: this is no KEY=VALUE"),
        ("--config-dir=/nowhere", "--config-dir=/nowhere: there is no such folder"),
        ("trainer.max_epochs=null", "trainer.max_epochs=null: field 'trainer.max_epochs' is not Optional"),
        (
            "experiment=llama3_qlor",
            "experiment=llama3_qlor: there is no experiment 'llama3_qlor'\n"
            "      allowed: llama3_70b_qlora, llama3_lora, llama3_qlora, llama3_sft, quickstart\n"
            "      type:    experiment=llama3_qlora",
        ),
        ("trainer=null", "trainer=null: there is no trainer 'null'\n      allowed: default"),
        (
            "logger=[wandb,tensorbord]",
            "logger=[wandb,tensorbord]: there is no logger 'tensorbord'\n"
            "      allowed: csv, mlflow, none, tensorboard, wandb\n      type:    logger=[wandb,tensorboard]",
        ),
        (
            "method=lora,qlora",
            "method=lora,qlora: several values are a sweep\n      type:    python train.py -m method=lora,qlora",
        ),
        (
            "logger=csv,wandb",
            "logger=csv,wandb: a list needs brackets\n      allowed: 'logger=[csv,wandb]', or a sweep: "
            "python train.py -m logger=csv,wandb\n      type:    'logger=[csv,wandb]'",
        ),
        ("method=sft method.lora.rank=4", LORA_ONLY.format(4)),
        (
            "model.tiny.hidden_size=32",
            "model.tiny.hidden_size=32: there is no model.tiny with the default model\n"
            "      allowed: with model=tiny_random",
        ),
        # of a sweep, before its first job
        (
            "-m method=lora,qlra",
            "method=qlra: there is no method 'qlra'\n"
            "      allowed: full, ia3, ln_tuning, lora, miss, oft, prompt_tuning, qlora, randlora, sft, shira\n"
            "      type:    method=qlora",
        ),
        ("seed=1,x -m prompt=text", "seed=x: Value 'x' of type 'str' could not be converted to Integer"),
        ("-m method=sft,lora method.lora.rank=2,4", LORA_ONLY.format(2)),
    ],
)
def test_override_that_cannot_be_used(tmp_path: Path, line: str, expected: str) -> None:
    assert refused(tmp_path, *line.split()) == f"{TITLE}\n  - {expected}\n\n{ALL_KEYS}"
    if line == "nothing=1":
        assert refused(tmp_path, line, command="evaluate").endswith("python evaluate.py --help")


def test_every_wrong_override_is_composed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and whatever they are swept over."""
    composed = []
    real = hydra.compose
    monkeypatch.setattr(hydra, "compose", lambda *line: composed.append(line) or real(*line))
    wrong = ["method.lora.rank=x", *(f"trainer.max_epoch{k}={k}" for k in range(3))]
    swept = ("seed=1,2,3", "model=tiny_random,smollm2_135m", "method.lora.rank=1,2,x")
    shown = refused(tmp_path, "-m", *swept, *wrong[1:])
    assert [line.split(":")[0] for line in shown.splitlines()[1:5]] == [f"  - {item}" for item in wrong]
    assert len(composed) <= 1 + 3 + 2 + 3 + 3


@pytest.mark.parametrize("line", ["seed=$(x", "~model", "-m hydra/launcher=nowhere"])
def test_line_that_hydra_cannot_read(tmp_path: Path, line: str) -> None:
    shown = refused(tmp_path, *line.split())
    assert shown.startswith(TITLE) and shown.endswith(ALL_KEYS) and "Traceback" not in shown


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("data.path=~/q.json", "data.path", "{home}/q.json"),
        ("hydra.run.dir=größe", "hydra.run.dir", "größe"),
        ("prompt.system=Who's there? (now)", "prompt.system", "Who's there? (now)"),
    ],
)
def test_value_that_needs_quotes(tmp_path: Path, override: str, key: str, meant: str) -> None:
    """The line to type is read as it was meant, by a shell and by Hydra."""
    first, problem, fix = refused(tmp_path, "data=mcq", override).splitlines()
    assert first == "These overrides cannot be read:"
    assert problem == f"  - {override}: this value needs quotes of its own"
    (word,) = shlex.split(fix.removeprefix("      type:"))
    read = OverridesParser.create().parse_override(word)
    assert (read.key_or_group, str(read.value())) == (key, meant.format(home=Path.home()))


# ---------------------------------------------------------------------------------------- a folder of one's own


@pytest.fixture
def own(tmp_path: Path) -> str:
    """The flag that adds a folder with a method, a task, a metric, a data source and experiments."""
    files = {
        "method/mine.yaml": "defaults: [lora, _self_]\n_target_: my_module.Method\nname: mine\nsettings: {rate: 3}\n",
        "task/mine.yaml": "_target_: my_module.Task\nlabels: [a, b, c]\n",
        "metrics/mine.yaml": "mine: {_target_: my_module.metric}\n",
        "data/mine.yaml": f"defaults: [mcq, _self_]\npath: {ROOT / 'pyproject.toml'}\n",
        "experiment/mine.yaml": "# @package _global_\nseed: 3\n",
        "experiment/broken.yaml": "# @package _global_\nseed: [3\n",
        "experiment/typo.yaml": "# @package _global_\ntrainer: {max_epoch: 3}\n",
        "prompt/mine.yaml": "defaults: [text, _self_]\nname: mine\nquestion: \"{question}\\n\"\nsystem: 'C:\\new'\n",
    }
    for name, text in files.items():
        file = tmp_path / "my_conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return "--config-dir=my_conf"


MINE = ("method=mine", "task=mine", "metrics=[default,mine]", "data=mine")


def test_run_is_given_its_configuration_and_folder_with_own_options(tmp_path: Path, own: str) -> None:
    config, folder = given(tmp_path, own, *MINE, "experiment=mine", "logger=none", "prompt=mine")
    assert (config.method._target_, config.method.settings) == ("my_module.Method", {"rate": 3})
    assert config.task == {"_target_": "my_module.Task", "labels": ["a", "b", "c"]}
    assert config.metrics["mine"] == {"_target_": "my_module.metric"}
    assert (config.data.path, config.seed) == (str(ROOT / "pyproject.toml"), 3)
    assert folder.name.endswith("_mine")
    assert (config.prompt.question, config.prompt.system) == ("{question}\n", r"C:\new")  # escapes are YAML's
    assert given(tmp_path, own, *MINE[1:], command="evaluate")[0].task == config.task
    # without them
    config, folder = given(tmp_path, "model=tiny_random", "method=qlora")
    assert config.model.name == "tiny_random"
    assert config.logger["wandb"]["save_dir"] == str(folder)
    assert folder.parent == Path("outputs") and folder.name.endswith("_tiny_random_qlora")
    assert (tmp_path / folder / ".hydra" / "overrides.yaml").is_file()


def test_own_options_are_named_beside_ours_and_a_broken_file_too(tmp_path: Path, own: str) -> None:
    shown = refused(tmp_path, own, "method=mne", "task=min", "experiment=mine", "seed=x")
    for group, meant in (("method", "mne"), ("task", "min")):
        options = sorted(["mine", *(file.stem for file in (ROOT / "conf" / group).glob("*.yaml"))])
        told = f"  - {group}={meant}: there is no {group} '{meant}'\n      allowed: {', '.join(options)}\n"
        assert f"{told}      type:    {group}=mine\n" in shown
    assert "  - seed=x: Value 'x' of type 'str' could not be converted to Integer\n" in shown
    shown = refused(tmp_path, own, "experiment=broken")
    assert "broken.yaml" in shown and shown.startswith(TITLE)
    shown = refused(tmp_path, own, "experiment=typo")
    assert "'max_epoch' not in 'TrainerConfig'. Did you mean 'trainer.max_epochs'?" in shown


# -------------------------------------------------------------------------------------------------------- a run


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (r"prompt.question='{question}\n{options}\tx'", "{question}\n{options}\tx"),
        (r'prompt.question="{question}\n\n{options}"', "{question}\n\n{options}"),
        (r"prompt.question='{question} {options} C:\\new \d'", r"{question} {options} C:\new \d"),
        ("prompt.question='{question}\n{options}'", "{question}\n{options}"),
        (r"prompt.system='\nprice \${oc.env:HOME} \${x}'", "\nprice ${oc.env:HOME} ${x}"),
        (r"++prompt.system='\${x}'", "${x}"),
    ],
)
def test_escapes_of_prompt_texts(typed: str, read: str, tmp_path: Path) -> None:
    others = (r"prompt.option='{letter}\t{text}'", r"prompt.plain_cue='x\n:'", r"+task.instruction='{text}\n'")
    others += (r"+task.option_instruction='${oc.env:HOME}\n'",)
    config = given(tmp_path, typed, "prompt=letter", *others)[0]
    prompt = config.prompt
    assert (config.task["instruction"], config.task["option_instruction"]) == ("{text}\n", "${oc.env:HOME}\n")
    assert (prompt.option, prompt.plain_cue) == ("{letter}\t{text}", "x\n:")
    assert read == (prompt.question if "question" in typed else prompt.system)


def test_how_a_run_that_raises_ends(tmp_path: Path) -> None:
    """A user's error is a screen; one that no user can put right keeps its traceback."""

    def ended(raised: BaseException) -> tuple[object, str]:
        def run(*_: object) -> float:
            raise raised

        found = type_line(tmp_path, "train", run=run)
        return found.code, found.err

    wrong = ConfigError("It is wrong:", [Problem("this", fix="that")])
    assert ended(wrong) == (1, "It is wrong:\n  - this\n      type:    that")
    assert ended(KeyboardInterrupt()) == (130, "")
    with pytest.raises(ValueError, match="a defect"):
        ended(ValueError("a defect"))
    with pytest.raises(Exception, match="Could not find 'model/lama3'"):
        type_line(tmp_path, "train", "model=lama3", HYDRA_FULL_ERROR="1")
