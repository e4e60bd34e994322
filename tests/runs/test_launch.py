"""From the command line to one screen: errors as the user sees them, run_folder, and what a sweep's job is given."""

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from support import compose

from cyberlm.config import compose as config_compose
from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.runs import jobs, launch, run_folder
from cyberlm.runtime.errors import ConfigError, Problem, UserError

ROOT = Path(__file__).parents[2]
ALL_KEYS = "All keys and values: python train.py --cfg job"


def run_script(
    folder: Path, *arguments: str, script: str = "train.py", **variables: str
) -> subprocess.CompletedProcess[str]:
    """`python train.py ...` as a user types it in `folder`, with no login anywhere."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HYDRA", "HF_"))}
    environment |= {"HOME": str(folder), "CYBERLM_CACHE_DIR": str(folder / "cache"), "COLUMNS": "200", **variables}
    line = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def screen(done: subprocess.CompletedProcess[str]) -> str:
    """The one screen of an error, after checking that it is one."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("\n") and done.stderr.endswith("\n\n")
    return done.stderr.strip()


# --------------------------------------------------------------------------------- the real thing, in a process


def test_several_mistakes_are_one_screen(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        *("model=lama3_8b", "trainer.max_epoch=3", "method.lora.rank=many", "evaluation.option_score=words"),
    )
    models = "llama31_8b_instruct, llama32_1b_instruct, llama32_3b_instruct, llama3_70b_instruct, llama3_8b, "
    models += "llama3_8b_instruct, local, smollm2_135m, tiny_random"
    assert screen(done) == (
        f"""These overrides cannot be used:
  - model=lama3_8b: there is no model 'lama3_8b'
      allowed: {models}
      type:    model=llama3_8b
  - trainer.max_epoch=3: there is no key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?
  - method.lora.rank=many: Value 'many' of type 'str' could not be converted to Integer
  - evaluation.option_score=words: Invalid value 'words', expected one of [sum, per_token, per_char]

{ALL_KEYS}"""
    )
    assert list(tmp_path.iterdir()) == []


def test_broken_rule_is_one_screen(tmp_path: Path) -> None:
    shown = screen(run_script(tmp_path, "method=qlora", "quant=none"))
    assert shown == (
        """The configuration has a problem:
  - method=qlora quant=none: QLoRA is LoRA on a 4-bit base
      allowed: method=qlora (which sets quant=nf4), or method=lora quant=none
      type:    method=lora"""
    )


def test_evaluation_names_its_own_command(tmp_path: Path) -> None:
    shown = screen(run_script(tmp_path, "rum=outputs/x", script="evaluate.py"))
    assert "there is no key 'rum'. Did you mean 'run'?" in shown
    assert shown.endswith("python evaluate.py --cfg job")


def test_help(tmp_path: Path) -> None:
    done = run_script(tmp_path, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for words in ("method: lora, qlora, sft", "experiment: llama3_lora", "max_epochs: 1"):
        assert words in done.stdout


def test_configuration_is_printed_resolved(tmp_path: Path) -> None:
    done = run_script(tmp_path, "method=qlora", "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    printed = OmegaConf.create(done.stdout)
    assert printed.quant.name == "nf4"
    assert printed.optim.learning_rate == printed.method.learning_rate == 2e-4
    assert printed.logger.wandb.save_dir == "<run folder>"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        ("model=tiny_random", "--cfg", "job", "seed=7"),
        ("--cfg", "job", "model=tiny_random", "seed=7"),
        ("model=tiny_random", "-c", "job", "seed=7", "--resolve", "group=g"),
    ],
)
def test_a_flag_may_stand_between_overrides(line: tuple[str, ...], tmp_path: Path) -> None:
    done = run_script(tmp_path, *line)
    assert done.returncode == 0 and "name: tiny_random" in done.stdout and "\nseed: 7\n" in done.stdout, done.stderr


def test_flags_come_last_with_their_values() -> None:
    line = ["a=1", "-m", "b=2", "--info", "searchpath", "c=3", "-i", "d=4", "--config-dir", "x=y", "~e"]
    ordered = ["a=1", "b=2", "c=3", "d=4", "~e", "-m", "--info", "searchpath", "-i", "--config-dir", "x=y"]
    assert launch._flags_last(line) == ordered


def test_gated_model_without_the_hub(tmp_path: Path) -> None:
    """Nothing but what is typed: where to accept the licence, how to log in, and what works without it."""
    started = time.monotonic()
    done = run_script(
        tmp_path,
        *("method=qlora", "model=llama3_8b", "hydra.run.dir=run"),
        HF_ENDPOINT="http://127.0.0.1:9",  # refuses at once: no test asks the network
    )
    assert time.monotonic() - started < 60
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip() == (
        """The model llama3_8b cannot be loaded.
  - meta-llama/Meta-Llama-3-8B: the Hugging Face hub cannot be reached (ConnectError)

Licence (Meta Llama 3 Community License), read and accepted at:
    https://huggingface.co/meta-llama/Meta-Llama-3-8B
Log in with a token that may read it:
    hf auth login
Weights already on this machine:
    model=local model.path=FOLDER
Works without the hub:
    python train.py method=qlora        (the embedded model and data)"""
    )
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["objective"]) == ("failed", None)
    assert status["reason"].startswith("The model llama3_8b cannot be loaded. meta-llama/Meta-Llama-3-8B: ")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left <= {".hydra", "train.log", "status.json", "config.yaml", "split_manifest.json", "wandb"}
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert "outputs" not in {path.name for path in tmp_path.iterdir()}


def test_torch_is_imported_only_once_the_configuration_is_right(tmp_path: Path) -> None:
    code = "import sys, cyberlm.__main__, cyberlm.config; print({'torch', 'transformers', 'wandb'} & set(sys.modules))"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


# ------------------------------------------------------------------------------------------------ in this process


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Hydra gives the root logger a file in the run's folder."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        handler.close()
    root.handlers, root.level = handlers, level


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Types a command line, which must end with one screen; returns it."""

    def type_(*arguments: str, command: str = "train") -> str:
        from cyberlm.config.schema import EvaluateConfig

        def never(*_: object) -> float:
            raise AssertionError("this configuration must not run")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")
        schema = TrainConfig if command == "train" else EvaluateConfig
        with pytest.raises(SystemExit) as ended:
            launch.main(command, schema, never)
        assert ended.value.code == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        return shown.err.strip()

    yield type_
    monkeypatch.undo()


TITLE = "These overrides cannot be used:"
LORA_ONLY = """  - method.lora.rank={}: there is no method.lora with method=sft
      allowed: with method=lora or method=qlora"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("trainer.max_epoch=1", "  - trainer.max_epoch=1: there is no key 'trainer.max_epoch'. "
         "Did you mean 'trainer.max_epochs'?"),
        ("nothing=1", "  - nothing=1: there is no key 'nothing'."),
        ("trainer.max_epochs=null", "  - trainer.max_epochs=null: field 'trainer.max_epochs' is not Optional"),
        (
            "experiment=llama3_qlor",
            "  - experiment=llama3_qlor: there is no experiment 'llama3_qlor'\n"
            "      allowed: llama3_lora, llama3_qlora, llama3_sft\n"
            "      type:    experiment=llama3_qlora",
        ),
        (
            "optim=sgd",
            "  - optim=sgd: there is no optim 'sgd'\n      allowed: adamw, paged_adamw_8bit",
        ),
        ("trainer=null", "  - trainer=null: there is no trainer 'null'\n      allowed: default"),
        (
            "logger=[wandb,tensorbord]",
            "  - logger=[wandb,tensorbord]: there is no logger 'tensorbord'\n"
            "      allowed: csv, mlflow, none, tensorboard, wandb\n"
            "      type:    logger=[wandb,tensorboard]",
        ),
        (
            "method=lora,qlora",
            "  - method=lora,qlora: several values are a sweep\n      type:    python train.py -m method=lora,qlora",
        ),
        (
            "method.lora.target_modules=q_proj,v_proj",
            "  - method.lora.target_modules=q_proj,v_proj: a list stands in brackets\n"
            "      allowed: 'method.lora.target_modules=[q_proj,v_proj]', or a sweep: python train.py -m "
            "method.lora.target_modules=q_proj,v_proj\n"
            "      type:    'method.lora.target_modules=[q_proj,v_proj]'",
        ),
        (
            "logger=csv,wandb",
            "  - logger=csv,wandb: a list stands in brackets\n"
            "      allowed: 'logger=[csv,wandb]', or a sweep: python train.py -m logger=csv,wandb\n"
            "      type:    'logger=[csv,wandb]'",
        ),
        ("method=sft method.lora.rank=4", LORA_ONLY.format(4)),
        (
            "model.tiny.hidden_size=32",
            "  - model.tiny.hidden_size=32: there is no model.tiny with the default model\n"
            "      allowed: with model=tiny_random",
        ),
        # of a sweep, before its first job
        (
            "-m method=lora,qlra",
            "  - method=qlra: there is no method 'qlra'\n      allowed: lora, qlora, sft\n      type:    method=qlora",
        ),
        ("-m seed=1,two", "  - seed=two: Value 'two' of type 'str' could not be converted to Integer"),
        ("seed=1,x -m prompt=text", "  - seed=x: Value 'x' of type 'str' could not be converted to Integer"),
        ("-m method=sft,lora method.lora.rank=2,4", LORA_ONLY.format(2)),
        (
            "sweep=rank_alpha method.lora.rnk=2",
            "  - method.lora.rnk=2: there is no key 'method.lora.rnk'. Did you mean 'method.lora.rank'?",
        ),
    ],
)  # fmt: skip
def test_override_that_cannot_be_used(typed, line: str, expected: str) -> None:
    assert typed(*line.split()) == f"{TITLE}\n{expected}\n\n{ALL_KEYS}"


@pytest.mark.parametrize("line", ["model", "seed=$(x", "~model", "--config-dir=/nowhere", "-m hydra/launcher=nowhere"])
def test_line_that_hydra_cannot_read(typed, line: str) -> None:
    shown = typed(*line.split())
    assert shown.startswith(TITLE)
    assert shown.endswith(ALL_KEYS)
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("override", "key", "meant"),
    [
        ("hydra.run.dir=~/runs/x", "hydra.run.dir", "{home}/runs/x"),
        ("data.path=~/q.json", "data.path", "{home}/q.json"),
        ("hydra.run.dir=größe", "hydra.run.dir", "größe"),
        ("prompt.system=Who's there? (now)", "prompt.system", "Who's there? (now)"),
    ],
)
def test_value_that_needs_quotes(typed, override: str, key: str, meant: str) -> None:
    """What is told to be typed is read as it was meant, by a shell and by Hydra."""
    first, problem, fix = typed("data=mcq", override).splitlines()
    assert first == "These overrides cannot be read:"
    assert problem == f"  - {override}: this value needs quotes of its own"
    (word,) = shlex.split(fix.removeprefix("      type:"))
    read = OverridesParser.create().parse_override(word)
    assert (read.key_or_group, str(read.value())) == (key, meant.format(home=Path.home()))


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_folder_of_a_name_too_long(typed, sweep: tuple[str, ...]) -> None:
    key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
    shown = typed("model=tiny_random", *sweep, f"{key}={'x' * 300}")
    assert shown.startswith("The run's folder cannot be made or written to:")
    assert "File name too long" in shown


def test_added_key_is_not_swallowed(typed) -> None:
    shown = typed("+trainer.max_epoch=1", "++foo=1", "model=tiny_random")
    assert shown == (
        """The configuration has 2 problems:
  - there is no key 'trainer.max_epoch'. Did you mean 'trainer.max_epochs'?
  - there is no key 'foo'."""
    )


def test_only_the_override_at_fault_is_blamed(typed, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nseed: 3\n")
    shown = typed(f"--config-dir={tmp_path / 'mine'}", "experiment=own", "seed=x")
    assert shown.splitlines()[1:-2] == ["  - seed=x: Value 'x' of type 'str' could not be converted to Integer"]


def test_broken_file_is_named(typed, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text("# @package _global_\nseed: [3\n")
    shown = typed(f"--config-dir={tmp_path / 'mine'}", "experiment=own")
    assert "own.yaml" in shown
    assert shown.startswith(TITLE)


def test_full_error_on_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "model=lama3"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not find 'model/lama3'"):
        launch.main("train", TrainConfig, lambda *_: 0.0)


def run_in_process(monkeypatch: pytest.MonkeyPatch, folder: Path, run, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", "model=tiny_random", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    launch.main("train", TrainConfig, run)


def test_run_is_given_its_configuration_and_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    run_in_process(monkeypatch, tmp_path, lambda config, folder: seen.append((config, folder)), "method=qlora")
    (config, folder), *rest = seen
    assert not rest
    assert config.model.name == "tiny_random"
    assert config.logger["wandb"]["save_dir"] == str(folder)
    assert folder.resolve().parent == tmp_path / "outputs"
    assert folder.name.endswith("_tiny_random_qlora")
    assert (folder / ".hydra" / "overrides.yaml").is_file()


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (r"prompt.question='{question}\n{options}\tx'", "{question}\n{options}\tx"),
        (r'prompt.question="{question}\n\n{options}"', "{question}\n\n{options}"),
        (r"prompt.question='{question} {options} C:\\new \d'", r"{question} {options} C:\new \d"),
        ("prompt.question='{question}\n{options}'", "{question}\n{options}"),
    ],
)
def test_escapes_of_prompt_texts(typed: str, read: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    others = (r"prompt.option='{letter}\t{text}'", r"++prompt.system='a\nb'", r"prompt.plain_cue='x\n:'")
    run_in_process(monkeypatch, tmp_path, lambda config, _: seen.append(config.prompt), typed, "prompt=letter", *others)
    (prompt,) = seen
    texts = (prompt.question, prompt.option, prompt.system, prompt.plain_cue)
    assert texts == (read, "{letter}\t{text}", "a\nb", "x\n:")


@pytest.mark.parametrize("line", ["", r"\n"])
def test_an_escaped_reference_in_a_prompt_stays_text(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    typed = rf"prompt.system='{line}price \${{oc.env:HOME}} \${{x}}'"
    run_in_process(monkeypatch, tmp_path, lambda config, _: seen.append(config.prompt.system), typed, "prompt=letter")
    assert seen == [f"{line and chr(10)}price ${{oc.env:HOME}} ${{x}}"]


def test_escapes_in_a_file_are_left_to_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = r"""{name: mine, protocol: text, question: "{question}\n", system: 'C:\new', show_options: false}"""
    (tmp_path / "prompt").mkdir()
    (tmp_path / "prompt" / "mine.yaml").write_text(text)
    seen = []
    mine = ("--config-dir", str(tmp_path), "prompt=mine")
    run_in_process(monkeypatch, tmp_path, lambda config, _: seen.append(config.prompt), *mine)
    assert (seen[0].question, seen[0].system) == ("{question}\n", r"C:\new")


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (ConfigError("It is wrong:", [Problem("this", fix="that")]), 1, "It is wrong:\n  - this\n      type:    that"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_user_error_of_a_run_is_its_screen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], raised, code: int, shown: str
) -> None:
    def run(*_: object) -> float:
        raise raised

    with pytest.raises(SystemExit) as ended:
        run_in_process(monkeypatch, tmp_path, run)
    assert ended.value.code == code
    assert capsys.readouterr().err.strip() == shown


def test_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What no user can put right is not dressed up as a user's error."""

    def run(*_: object) -> float:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run_in_process(monkeypatch, tmp_path, run)


def test_part_that_cannot_be_made_is_one_screen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import hydra

    def run(config, _: Path) -> float:
        hydra.utils.instantiate(config.logger["mine"])
        return 0.0

    with pytest.raises(SystemExit):
        run_in_process(monkeypatch, tmp_path, run, "+logger.mine={_target_:nowhere.Logger}")
    shown = capsys.readouterr().err.strip()
    assert shown.startswith("A part of the run cannot be made:")
    assert "nowhere.Logger" in shown


# ------------------------------------------------------------------------------------------------------- folders


def test_fresh_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_folder._fresh(folder) == str(folder)
    folder.mkdir()
    assert run_folder._fresh(folder) == f"{folder}_2"
    (tmp_path / "run_2").mkdir()
    (tmp_path / "run_3").touch()
    assert run_folder._fresh(folder) == f"{folder}_4"


CLAIM = """
import sys, time
from pathlib import Path
from omegaconf import OmegaConf
from cyberlm.runs import run_folder
OmegaConf.register_new_resolver("named", lambda: run_folder._fresh(Path("outputs/same")), use_cache=True)
config = OmegaConf.create({"hydra": {"run": {"dir": "${named:}"}}})
config.hydra.run.dir  # composing has made up a name: the same in every process
print("ready", flush=True)
sys.stdin.readline()
print(run_folder.claim_folder(config, "hydra.run.dir", lambda folder: None).name)
"""


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    line, environment = [sys.executable, "-c", CLAIM], {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(line, cwd=tmp_path, env=environment, **pipes) for _ in range(6)]  # type: ignore[call-overload]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert found == ["same", *(f"same_{number}" for number in range(2, 7))]


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("hydra.run.dir=used", "results.json"),
        ("hydra.run.dir=used", "checkpoints/best.ckpt"),
        ("-m seed=1,2 hydra.sweep.dir=used", "0/results.json"),
    ],
)
def test_results_are_not_written_over(typed, tmp_path: Path, line: str, file: str) -> None:
    (tmp_path / "used" / file).parent.mkdir(parents=True)
    (tmp_path / "used" / file).touch()
    shown = typed(*line.split(), "model=tiny_random")
    assert shown.startswith(f"used holds results already, which are not written over.\n  - there is {file}")


def test_a_sweep_is_alone_in_its_folder(typed, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from cyberlm.runs.run_folder import sole_owner\n"
    code += "with sole_owner(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    line = [sys.executable, "-c", code, str(tmp_path / "sweep")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, cwd=ROOT, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "mine\n"
        assert "is in use by another process" in typed("-m", "seed=1,2", "hydra.sweep.dir=sweep")
        other.communicate()


def test_conf_folder_beside_the_package_or_in_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_compose.conf_folder() == ROOT / "conf"
    package = tmp_path / "site-packages" / "cyberlm"
    monkeypatch.setattr(config_compose, "__file__", str(package / "config" / "compose.py"))
    assert config_compose.conf_folder() == package / "conf"
    (tmp_path / "site-packages" / "conf").mkdir(parents=True)  # another package's
    assert config_compose.conf_folder() == package / "conf"


# ---------------------------------------------------------------------------------------------------- sweep jobs


@pytest.mark.parametrize(
    ("launcher", "cores", "given", "threads"),
    [
        ({}, 8, None, None),
        ({"n_jobs": 1}, 8, None, None),
        ({"n_jobs": 2}, 8, None, "4"),
        ({"n_jobs": 3}, 8, None, "2"),
        ({"n_jobs": 16}, 8, None, "1"),
        ({"n_jobs": -1}, 8, None, "1"),
        ({"n_jobs": 2}, 1, None, "1"),
        ({"n_jobs": 2}, 8, "5", "5"),
    ],
)
def test_jobs_side_by_side_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, int], cores: int, given: str | None, threads: str | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    environment = jobs._child_environment(OmegaConf.create({"launcher": launcher}))
    assert environment.get("OMP_NUM_THREADS") == threads


def test_job_can_import_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # launch sets it for itself
    monkeypatch.setenv("PYTHONPATH", "mine")
    environment = jobs._child_environment(OmegaConf.create({"launcher": {}}))
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "mine"]
    assert "HYDRA_FULL_ERROR" not in environment
    monkeypatch.delenv("PYTHONPATH")
    assert jobs._child_environment(OmegaConf.create({"launcher": {}}))["PYTHONPATH"] == str(ROOT)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs one job of a sweep with a stand-in for its process; returns the objective, the line and the status."""

    def run_job(
        code: int,
        status: dict[str, object] | None,
        *overrides: str,
        sweep: str = "sweep",
        direction: str | None = None,
    ):
        folder = tmp_path / sweep / "0"
        lines = []

        def stand_in(line: list[str], _: object) -> int:
            lines.append(line)
            if status is not None:
                folder.mkdir(parents=True)
                (folder / "status.json").write_text(json.dumps(status))
            return code

        hydra_config = OmegaConf.create(
            {
                "runtime": {"output_dir": str(folder), "config_sources": SOURCES},
                "overrides": {"task": ["group=other", *overrides]},
                "sweep": {"dir": str(folder.parent)},
                "job": {"config_name": "train", "num": 0},
                "launcher": {},
                "sweeper": {"direction": direction},
            }
        )
        monkeypatch.setattr(HydraConfig, "get", lambda: hydra_config)
        monkeypatch.setattr(jobs.signals, "run_forwarding", stand_in)
        composed = compose("model=tiny_random", "logger=none", *overrides)
        objective = jobs.run_in_child("train", TrainConfig, composed)
        written = folder / "status.json"
        return objective, lines, json.loads(written.read_text()) if written.is_file() else None

    yield run_job
    monkeypatch.undo()


SOURCES = [{"provider": "main", "path": "/conf"}, {"provider": "command-line", "path": "/mine"}]
FINISHED = {"state": "finished", "objective": 0.75, "reason": ""}
RUNNING = {"state": "running", "objective": None, "reason": ""}
STOPPED = {"state": "stopped", "objective": None, "reason": "SIGTERM"}
FAILED = {"state": "failed", "objective": None, "reason": "ModelError: no model"}


@pytest.mark.parametrize(
    ("code", "status", "objective", "reason"),
    [
        (0, FINISHED, -0.75, ""),
        (0, {**FINISHED, "objective": 1e30}, jobs.WORST_OBJECTIVE, ""),
        (0, {**FINISHED, "objective": None}, jobs.WORST_OBJECTIVE, ""),
        (1, FAILED, jobs.WORST_OBJECTIVE, "ModelError: no model"),
        (75, STOPPED, jobs.WORST_OBJECTIVE, "SIGTERM"),
        (-9, RUNNING, jobs.WORST_OBJECTIVE, "killed by SIGKILL"),
        (-15, None, jobs.WORST_OBJECTIVE, "killed by SIGTERM"),
        (3, None, jobs.WORST_OBJECTIVE, "exit code 3"),
        (0, None, jobs.WORST_OBJECTIVE, "exit code 0"),
    ],
)
def test_how_a_job_ended(job, code: int, status: dict[str, object] | None, objective: float, reason: str) -> None:
    found, lines, written = job(code, status, "seed=3")
    assert found == objective
    assert len(lines) == 1
    state = "stopped" if status is STOPPED else "failed" if reason else "finished"
    assert (written["state"], written["reason"]) == (state, reason)


@pytest.mark.parametrize(("monitor", "reported"), [("option_nll", -0.75), ("accuracy", 0.75)])
def test_higher_is_better_in_what_a_sweep_gets(job, monitor: str, reported: float) -> None:
    found, _, _ = job(0, FINISHED, f"trainer.monitor={monitor}", direction="maximize")
    assert found == reported > jobs.WORST_OBJECTIVE


def test_a_sweep_for_the_worst_job_is_refused(job) -> None:
    with pytest.raises(ConfigError, match="would look for the worst job"):
        job(0, FINISHED, direction="minimize")


def test_job_repeats_the_command(job, tmp_path: Path) -> None:
    _, (line,), _ = job(0, FINISHED, "seed=3", "prompt.system='a, b'")
    assert line == [
        *(sys.executable, "-m", "cyberlm", "train", "--config-name=train", "--config-dir=/mine"),
        *("seed=3", "prompt.system='a, b'"),
        *("group='sweep'", "hydra.mode=RUN", f"hydra.run.dir='{tmp_path / 'sweep' / '0'}'"),
    ]


ODD_NAMES = (
    "a=b",
    "a:b",
    "it's",
    "a b",
    "a,b",
    "a[1]",
    "a(b)",
    "a{b}",
    'a"b',
    "a\\b",
    "a\\'b\\",
    "@a",
    "-a",
    ".a",
    "ü;%#~",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_job_finds_a_folder_of_any_name(job, name: str, tmp_path: Path) -> None:
    """Hydra reads the folder as it is; the group is a name that loggers take."""
    _, (line,), _ = job(0, FINISHED, sweep=name)
    given = {item.key_or_group: item.value() for item in OverridesParser.create().parse_overrides(line[-3:])}
    assert given["hydra.run.dir"] == str(tmp_path / name / "0")
    assert build_config(compose("model=tiny_random", line[-3]), TrainConfig).group == jobs.as_name(name)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("hydra.job.chdir=true", "A run does not change its working directory:\n  - hydra.job.chdir=true"),
        ("-m seed=1,2 hydra.job.chdir=true", "A run does not change its working directory:\n  - hydra.job.chdir=true"),
        ("-m seed=1,2 hydra.sweep.subdir=x", "All jobs of the sweep would write into one folder:\n  - hydra.sweep.sub"),
        ("-m seed=1,2 hydra.sweep.dir=/proc/x", "The run's folder cannot be made or written to:\n  - /proc/x"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_job(typed, line: str, shown: str) -> None:
    assert typed(*shlex.split(line)).startswith(shown)


def test_folder_of_a_job_that_cannot_be_made(tmp_path: Path) -> None:
    subdir = f"hydra.sweep.subdir={'x' * 300}${{hydra.job.num}}"
    done = run_script(tmp_path, "-m", "model=tiny_random", "seed=1,2", subdir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "The folder of a run cannot be made.\n  - " in done.stderr and "xx0: File name too long" in done.stderr


def test_job_of_a_broken_rule_is_not_started(job, capsys: pytest.CaptureFixture[str]) -> None:
    objective, lines, written = job(0, FINISHED, "method=qlora", "quant=none", "seed=-1")
    assert objective == jobs.WORST_OBJECTIVE
    assert lines == []
    assert written == {
        "state": "failed",
        "objective": None,
        "reason": "seed=-1; method=qlora quant=none: QLoRA is LoRA on a 4-bit base",
    }
    assert "The configuration has 2 problems:" in capsys.readouterr().err


def test_every_user_error_has_a_screen() -> None:
    kinds = UserError.__subclasses__()
    assert {kind.__name__ for kind in kinds} >= {"ConfigError", "DataError", "ModelError", "RunError"}
    for kind in kinds:
        assert kind("Title.", [Problem("what", "allowed", "fix")], "Hint.").screen() == (
            "Title.\n  - what\n      allowed: allowed\n      type:    fix\n\nHint."
        )
