"""Steps of gpu_accept.py that run commands: train.py, evaluate.py, a run killed and resumed, and gpu_training.py.

python bench/gpu_runs.py FILE train.py ...      # train.py, watched: where its model's layers lie while it scores
"""

import atexit
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from gpu_accept import STEPS, Report
from gpu_training import TRL_ARMS
from measure import BENCH, ROOT, python_path

KILL_AT = "CYBERLM_BENCH_KILL_AT"
"""Environment variable: the optimizer step after which a run that has `KillAt` among its callbacks kills itself."""
SIZES = (
    *("model.tiny.hidden_size=1024", "model.tiny.intermediate_size=3072", "model.tiny.num_hidden_layers=8"),
    *("model.tiny.num_attention_heads=16", "model.tiny.num_key_value_heads=8", "data.micro_batch_size=16"),
)
"""On a GPU: large enough for a plan of memory to be about the model. --small takes that of model=tiny_random."""
QUESTIONS = ("data.max_train=64", "data.max_validation=16", "data.max_test=32", "evaluation.max_new_tokens=8")
KILLED_STEP, RUN_STEPS = 6, 12


def start(*parts: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    """Starts a Python script of this checkout; what it prints goes to the step's log."""
    return subprocess.Popen([sys.executable, *map(str, parts)], cwd=ROOT, env={**os.environ, **environment})


def run(*parts: str | Path, **environment: str) -> None:
    must_end(start(*parts, **environment))


def must_end(process: subprocess.Popen[bytes]) -> None:
    if code := process.wait():
        raise SystemExit(f"exit code {code} of: {' '.join(map(str, process.args[1:]))}")  # type: ignore[index]


def overrides(options: Any, folder: Path, *more: str) -> list[str]:
    sizes = () if options.small else SIZES
    fixed = ("model=tiny_random", "logger=none", "callbacks=none", "data=sample", "prompt=letter")
    return [*fixed, *sizes, f"trainer.accelerator={options.device}", f"hydra.run.dir={folder}", *QUESTIONS, *more]


# ------------------------------------------------------------------------------------ 4 and 5: train and evaluate


def step_4(report: Report, options: Any) -> None:
    """train.py with LoRA: where its layers lie while it scores, what moves them, and its memory against the plan."""
    folder, watched = options.work / "lora", options.work / "watched.json"
    run(BENCH / "gpu_runs.py", watched, ROOT / "train.py", *overrides(options, folder))
    seen = json.loads(watched.read_text())
    scored = seen["inference"]
    report.detail(watched=seen)
    report.tell(
        layers_scored=sum(scored.values()),
        parameters_off_device=sum(count for device, count in scored.items() if device != options.device),
        moves_to_cpu=seen["moves_to_cpu"],
    )
    cost = json.loads((folder / "results.json").read_text())["cost"]
    report.detail(cost=cost)
    if options.device == "cuda":
        report.tell(device_peak_gib=(cost["peak_device_bytes"] or 0) / 2**30)
        peak = cost["peak_device_bytes"]
    else:
        report.skip("there is no GPU memory on a CPU", "device_peak_gib")
        peak = cost["peak_host_bytes"]
    report.tell(estimate_off=abs(cost["predicted_peak_bytes"] / peak - 1))


def step_5(report: Report, options: Any) -> None:
    """evaluate.py run=...: the same letters and log-probabilities as training found at its end."""
    folder, evaluated = options.work / "lora", options.work / "evaluated"
    if not (folder / "results.json").is_file():  # this step alone
        run(ROOT / "train.py", *overrides(options, folder))
    run(ROOT / "evaluate.py", f"run={folder}", f"hydra.run.dir={evaluated}")
    before, after = (answers(place) for place in (folder, evaluated))
    if before.keys() != after.keys():
        raise SystemExit(f"{len(before.keys() ^ after.keys())} answers are in one of the two runs only")
    same = [before[key]["choice"] == after[key]["choice"] for key in before]
    pairs = [zip(before[key]["option_logprobs"], after[key]["option_logprobs"], strict=True) for key in before]
    report.tell(letters_same=sum(same) / len(same))
    report.tell(log_probabilities_apart=max(abs(a - b) for pair in pairs for a, b in pair))


def answers(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of predictions.jsonl by model and question."""
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return {(row["model"], row["id"]): row for row in rows}


def watch(file: Path, script: str, arguments: list[str]) -> None:
    """Runs a script; at its end FILE says on which device each layer's parameters were at each call while gradients
    were off (`inference`) and on (`training`), and how often a module with parameters was told to go to the CPU."""
    seen: dict[str, Counter[str]] = {"inference": Counter(), "training": Counter()}
    moves = Counter[str]()
    plain_cpu = torch.nn.Module.cpu

    def before_call(module: torch.nn.Module, inputs: Any) -> None:
        phase = "inference" if torch.is_inference_mode_enabled() else "training"
        for parameter in module._parameters.values():
            if parameter is not None and parameter.device.type != "meta":  # the planner's models have no memory
                seen[phase][parameter.device.type] += 1

    def cpu(module: torch.nn.Module) -> torch.nn.Module:
        moves[type(module).__name__] += any(True for _ in module.parameters())
        return plain_cpu(module)

    torch.nn.Module.cpu = cpu  # type: ignore[method-assign]
    torch.nn.modules.module.register_module_forward_pre_hook(before_call)
    atexit.register(lambda: file.write_text(json.dumps({**seen, "moves_to_cpu": moves.total(), "moved": moves})))
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(script, run_name="__main__")


# ------------------------------------------------------------------------------------------------------- 6: resume


class KillAt(L.Callback):
    """Kills its own process, as a power cut would, after the optimizer step that the environment names."""

    def on_train_batch_end(self, trainer: L.Trainer, *unused: Any) -> None:
        if str(trainer.global_step) == os.environ.get(KILL_AT):
            os.kill(os.getpid(), signal.SIGKILL)


def step_6(report: Report, options: Any) -> None:
    """QLoRA killed in its middle and resumed, against the same run unbroken."""
    from gpu_checks import losses_of

    whole, killed = options.work / "whole", options.work / "killed"
    fixed = [f"data.max_train={8 * RUN_STEPS}", "data.micro_batch_size=8", "data.max_test=8", "evaluation.base=false"]
    fixed += ["evaluation.generate=false", "trainer.checkpoint_every_n_steps=3", "method=qlora"]
    fixed.append("trainer.deterministic=true")
    fixed.append("+callbacks.kill._target_=gpu_runs.KillAt")
    path = {"PYTHONPATH": python_path(BENCH)}
    unbroken = start(ROOT / "train.py", *overrides(options, whole, *fixed), **path)
    broken = start(ROOT / "train.py", *overrides(options, killed, *fixed), **path, **{KILL_AT: str(KILLED_STEP)})
    report.tell(killed=broken.wait() == -signal.SIGKILL)
    run(ROOT / "train.py", f"trainer.resume={killed}", **path)
    must_end(unbroken)
    first, second = losses_of(whole), losses_of(killed)
    report.detail(whole=first, killed_and_resumed=second)
    report.tell(steps_missing=abs(RUN_STEPS - len(first)) + abs(RUN_STEPS - len(second)))
    report.tell(losses_apart=max(abs(a - b) for a, b in zip(first, second, strict=False)))


# ------------------------------------------------------------------------------------- 9 and 10: gpu_training.py


def step_9(report: Report, options: Any) -> None:
    """cyberlm alone, with Liger's kernels and without; the ten largest operations of one step."""
    sides = ["cyberlm"] if options.device == "cpu" else ["cyberlm", "cyberlm_liger"]
    given = ("--methods", "lora", "qlora", "--layouts", "packed", "cybermetric_32", "--sides", *sides, "--profile")
    if options.device == "cpu":
        liger = [name for name in STEPS[9].limits if "_liger_" in name]
        report.skip("Liger's kernels need a GPU", *liger)
        report.skip("the peak of a CPU is not known here", "lora_packed_mfu", "qlora_packed_mfu")
    train(report, options, tell_of_shape, *given)


def step_10(report: Report, options: Any) -> None:
    """LoRA of cyberlm and of TRL in turns: TRL as it comes, without checkpointing, by length, and with Liger's kernels,
    which are held against cyberlm with them."""
    if importlib.util.find_spec("trl") is None:
        return report.skip("TRL is not installed (make gpu-kit brings it)", *STEPS[10].limits)
    sides = ["cyberlm", "cyberlm_liger", *TRL_ARMS]
    if options.device == "cpu":
        sides = [side for side in sides if "liger" not in side]
        report.skip("Liger's kernels need a GPU", *[name for name in STEPS[10].limits if "_liger_" in name])
    fixed = ("--methods", "lora", "--layouts", "packed", "cybermetric", "--pairs", "1")
    train(report, options, tell_of_ratios, "--sides", *sides, *fixed)


def train(report: Report, options: Any, tell: Any, *given: str) -> None:
    """Runs gpu_training.py, and tells its figures as they come."""
    file = report.file.with_name(f"gpu_training_{report.file.name}")
    sizes = ["--tiny", "--block", "2"] if options.small else ["--block", "6"]
    pairs = [] if "--pairs" in given else ["--pairs", "1"]
    fixed = ["--device", options.device, "--output", str(file), *pairs, *sizes]
    process = subprocess.Popen([sys.executable, str(BENCH / "gpu_training.py"), *given, *fixed], cwd=ROOT)
    written = 0.0
    while process.poll() is None or (file.is_file() and file.stat().st_mtime > written):
        if file.is_file() and file.stat().st_mtime > written:
            written = file.stat().st_mtime
            measured = json.loads(file.read_text())["measured"]
            report.detail(gpu_training=measured)
            tell(report, measured)
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode} of gpu_training.py")


def tell_of_shape(report: Report, measured: dict[str, Any]) -> None:
    for name, summary in measured.items():
        for side, found in summary.items():
            key = name.replace(" ", "_") + side.removeprefix("cyberlm")
            rates = {"questions_a_second": found.get("questions_per_second"), "mfu": found.get("mfu")}
            figures = {what: sorted(values)[len(values) // 2] for what, values in rates.items() if values}
            if "gib" in found:
                figures |= {"gib": found["gib"]["allocated"], "gib_reserved": found["gib"]["reserved"]}
            known = {f"{key}_{what}": value for what, value in figures.items()}
            report.tell(**{what: value for what, value in known.items() if what in STEPS[9].limits})


def tell_of_ratios(report: Report, measured: dict[str, Any]) -> None:
    for name, summary in measured.items():
        for side, found in summary.items():
            ours = "cyberlm_liger" if side == "trl_liger" else "cyberlm"
            key = name.split()[1] + ours.removeprefix("cyberlm") + "_over_" + side
            rates = [summary.get(one, {}).get("tokens_per_second") for one in (ours, side)]
            if side in TRL_ARMS and all(rates):
                report.tell(**{key: rates[0][0] / rates[1][0]})
            elif side in TRL_ARMS and "error" in found:
                report.skip(f"{side}: {found['row'][0]}", key)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
