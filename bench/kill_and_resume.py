"""Kills training runs with SIGKILL at random points, resumes them, and compares each with a run never killed.

    python bench/kill_and_resume.py --kills 20 --output kills.json
    python bench/kill_and_resume.py --kills 20 --processes 2 --methods lora

Each run is a process of its own that does what `python train.py ...` does, forked from a parent that has only imported
the libraries. Half of the kills come when a checkpoint's temporary file is seen, the others after a random time; every
fourth run is killed once more after it was resumed. A run of several processes loses one of them, chosen at random; the
others get SIGTERM, and all are started again by the same line, as torchrun does it. Compared, byte for byte: the tuned
weights, metrics.csv but for tokens/s and memory, predictions.jsonl; in the last checkpoint the trained weights, the
optimizer and schedule state and the random state; and the scores, objective, steps and token counts of results.json.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

COMMON = (
    *("model=tiny_random", "logger=none", "prompt=letter", "trainer.accelerator=cpu", "trainer.max_epochs=2"),
    *("data.micro_batch_size=4", "data.max_train=160", "data.max_validation=16", "data.max_test=8"),
    *("evaluation.generate=false", "evaluation.base=false", "optim.learning_rate=1e-3", "prompt.system="),
    *("trainer.checkpoint_every_n_steps=3", "prompt.question='{question} {options}'"),
)
VARIANTS = (
    ("trainer.accumulate_grad_batches=1", "data.num_workers=0"),
    ("trainer.accumulate_grad_batches=4", "data.num_workers=0"),
    ("trainer.accumulate_grad_batches=1", "data.num_workers=2"),
    ("trainer.accumulate_grad_batches=4", "data.num_workers=2", "trainer.val_check_interval=12"),
)
METHODS = {
    "sft": (),
    "lora": ("method.lora.dropout=0.1",),
    "qlora": ("method.lora.dropout=0.1",),
}
SECONDS_FOR_A_RUN = 600
POLL_SECONDS = 0.0005
WRITING = "writing"
MEASURED = {"train/tokens_per_second", "train/peak_memory_gib"}
"""Columns of metrics.csv that no other run repeats."""


def start(overrides: list[str], log: Path, processes: int = 1, restarts: int = 0) -> list[int]:
    """Forks the processes of a run, each of which does what `train.py` does; returns their ids, by rank."""
    sys.stdout.flush()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    world["TORCHELASTIC_RESTART_COUNT"] = restarts
    pids = []
    for rank in range(processes):
        pid = os.fork()
        if not pid:
            own = {**world, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
            os.environ.update({name: str(value) for name, value in own.items()})
            train_here(overrides, log)
        pids.append(pid)
    return pids


def train_here(overrides: list[str], log: Path) -> NoReturn:
    """Trains in this process, which has been forked, and ends it."""
    code = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["train.py", *overrides]
        from cyberlm.__main__ import run_command

        run_command("train")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(pids: list[int]) -> int:
    """Waits for the processes of a run; returns an exit code other than 0 if there is one, of rank 0 first."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return next(filter(None, codes), 0)


def ended(pids: list[int]) -> bool:
    return any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None for pid in pids)


def kill_one(pids: list[int]) -> str:
    """Kills one of the processes, and asks the others to end; returns which, where there are several."""
    rank = random.randrange(len(pids))
    os.kill(pids[rank], signal.SIGKILL)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    return f"rank {rank}, " if len(pids) > 1 else ""


def kill_after(pids: list[int], folder: Path, seconds: float) -> str:
    """Kills a process of a run after a while; returns at what it was, empty where the run had ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ended(pids):
            return ""
        time.sleep(POLL_SECONDS)
    who = kill_one(pids)
    rows = (folder / "metrics.csv").read_text().count("\n") - 1 if (folder / "metrics.csv").is_file() else 0
    return f"{who}after {seconds:.2f} s, {max(rows, 0)} rows of metrics"


def kill_in_write(pids: list[int], folder: Path, nth: int) -> str:
    """Kills a process while the run writes its nth checkpoint: when the temporary file is seen."""
    checkpoints = folder / "checkpoints"
    seen, last = 0, None
    while not ended(pids):
        found = next(iter(checkpoints.glob("*.tmp")), None) if checkpoints.is_dir() else None
        if found is not None and found != last:
            seen += 1
            if seen == nth:
                return f"{kill_one(pids)}{WRITING} {found.name}"
        last = found
    return ""


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of everything that has to be the same."""
    import torch

    found = {}
    for name in ("predictions.jsonl", "adapter/adapter_model.safetensors", "model/model.safetensors"):
        if (folder / name).is_file():
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = [{name: row[name] for name in row.keys() - MEASURED} for row in csv.DictReader(stream)]
    found["metrics.csv"] = json.dumps(rows, sort_keys=True)
    results = json.loads((folder / "results.json").read_text())
    tokens = {key: results["cost"][key] for key in ("processed_tokens", "nonpadding_tokens", "label_tokens")}
    found["results.json"] = json.dumps([results[key] for key in ("metrics", "objective", "steps")] + [tokens])
    newest = max((folder / "checkpoints").glob("step_*.ckpt"))
    found["last checkpoint"] = newest.name
    checkpoint = torch.load(newest, weights_only=True)
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        found[key] = digest(checkpoint[key])
    found["random"] = digest(next(s for name, s in checkpoint["callbacks"].items() if "RandomState" in name))
    return found


def digest(value: Any) -> str:
    """Hash of nested dictionaries, lists and tensors, bit for bit."""
    import torch

    hashed = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            hashed.update(f"{item.dtype}{tuple(item.shape)}".encode() + item.contiguous().numpy().tobytes())
        elif isinstance(item, dict):
            for key in item:
                hashed.update(repr(key).encode())
                add(item[key])
        elif isinstance(item, list | tuple):
            for part in item:
                add(part)
        else:
            hashed.update(repr(item).encode())

    add(value)
    return hashed.hexdigest()


def one_kill(overrides: list[str], folder: Path, number: int, seconds: float, writes: int, processes: int) -> list[str]:
    """Runs, kills once or twice, and resumes until the run has finished; returns what it was doing at each kill."""
    log = folder.with_suffix(".log")
    begin = [*overrides, f"hydra.run.dir={folder}"]
    kills: list[str] = []
    wanted = 2 if number % 4 == 3 else 1
    while True:
        resumable = processes == 1 and (folder / "config.yaml").is_file()
        pids = start([f"trainer.resume={folder}"] if resumable else begin, log, processes, len(kills))
        if len(kills) == wanted:
            code = finish(pids)
            if code:
                raise SystemExit(f"{folder} cannot be resumed (exit code {code}): see {log}")
            return kills
        left = 0.6 if kills else 1.0  # after one kill there is less to do
        if number % 2:
            what = kill_in_write(pids, folder, random.randint(1, max(1, int(writes * left))))
        else:
            what = kill_after(pids, folder, random.uniform(0.02, seconds * left))
        finish(pids)
        if what:
            kills.append(what)
        else:  # it had finished before the kill: again
            shutil.rmtree(folder)
            kills.clear()


def method_kills(method: str, count: int, work: Path, processes: int) -> list[dict[str, Any]]:
    """Kills `count` runs of a method, in turn over the variants; returns a row for each."""
    rows = []
    references: dict[int, tuple[dict[str, str], float, int]] = {}
    for number in range(count):
        variant = number // 2 % len(VARIANTS)
        overrides = [*COMMON, f"method={method}", *METHODS[method], *VARIANTS[variant]]
        if variant not in references:
            folder = work / f"{method}_{variant}_whole"
            began = time.monotonic()
            if finish(start([*overrides, f"hydra.run.dir={folder}"], folder.with_suffix(".log"), processes)):
                raise SystemExit(f"the run that is not killed failed: see {folder.with_suffix('.log')}")
            steps = json.loads((folder / "results.json").read_text())["steps"]
            references[variant] = (outcome(folder), time.monotonic() - began, steps // 3)
        expected, seconds, writes = references[variant]
        folder = work / f"{method}_{number}"
        kills = one_kill(overrides, folder, number, seconds, writes, processes)
        found = outcome(folder)
        differ = [name for name in expected if found.get(name) != expected[name]]
        rows.append({"method": method, "variant": " ".join(VARIANTS[variant]), "kills": kills, "differ": differ})
        print(f"{method} {number + 1}/{count}: {'; '.join(kills)}: {', '.join(differ) or 'identical'}", flush=True)
        if not differ:
            shutil.rmtree(folder)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="runs to kill, for each method")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--output", type=Path, default=Path("kill_and_resume.json"), help="JSON file of every kill")
    parser.add_argument("--work", type=Path, default=Path("outputs/kill_and_resume"), help="emptied, then used")
    parser.add_argument("--processes", type=int, default=1, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the points in time")
    chosen = parser.parse_args()
    random.seed(chosen.seed)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch

    torch.set_num_threads(1)  # a parent with threads of its own could not be forked safely
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    import cyberlm.runs.train  # noqa: F401

    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    work = chosen.work.resolve()
    rows = [row for method in chosen.methods for row in method_kills(method, chosen.kills, work, chosen.processes)]
    print(
        "\n| method | runs | kills | of these while a checkpoint was written | bit-identical |\n|---|---|---|---|---|"
    )
    for method in chosen.methods:
        mine = [row for row in rows if row["method"] == method]
        kills = [kill for row in mine for kill in row["kills"]]
        writing = sum(WRITING in kill for kill in kills)
        same = sum(not row["differ"] for row in mine)
        print(f"| {method} | {len(mine)} | {len(kills)} | {writing} | {same} of {len(mine)} |")
    chosen.output.write_text(json.dumps({"command": " ".join(sys.argv), "runs": rows}, indent=2) + "\n")
    raise SystemExit(any(row["differ"] for row in rows))


if __name__ == "__main__":
    main()
