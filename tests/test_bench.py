"""bench/: the shared measuring, the count of operations, and that each script says what it does without any peer."""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typed import run_python

from cyberlm.data.batches import AnswerCollator

BENCH = Path(__file__).parent.parent / "bench"
SCRIPTS = sorted(file.name for file in BENCH.glob("*.py") if "\ndef main()" in file.read_text())


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in ("measure", "flops", "random_llama", "gpu_training", "pack_gpu_kit", "gpu_accept"):
        sys.modules.pop(name, None)


def test_sides_take_turns_and_ratios_are_of_pairs() -> None:
    import measure

    order: list[str] = []
    times = {"a": iter([2.0, 6.0, 12.0]), "b": iter([1.0, 2.0, 3.0])}
    sides = {name: lambda name=name: order.append(name) or next(times[name]) for name in times}
    turns = measure.interleave(sides, 3)
    assert order == ["a", "b"] * 3
    found = measure.ratio(turns["a"], turns["b"])
    assert found == (3.0, 2.0, 4.0, [2.0, 3.0, 4.0])
    assert str(found) == "3 (2 to 4)"


def test_blocks_cut_a_loop_and_leave_out_what_lies_between() -> None:
    import time

    import measure

    seen: list[measure.Block] = []

    def between(block: measure.Block) -> None:
        seen.append(block)
        time.sleep(0.2)

    blocks = measure.Blocks(2, between)
    for step in range(5):
        blocks.step(10 + step, torch.tensor(float(step)))
    assert [(block.tokens, block.losses) for block in seen] == [(21, [0.0, 1.0]), (25, [2.0, 3.0])]
    assert all(block.seconds < 0.1 for block in seen)


ECHO = """
import sys; sys.path.insert(0, sys.argv[1])
import measure
channel = measure.Channel()
print("noise of a library")
while order := channel.receive():
    if order["order"] == "fail":
        raise ValueError("what went wrong")
    channel.reply(twice=2 * order["value"], path=sys.path)
"""


def test_a_worker_answers_with_the_packages_of_its_caller_and_its_death_is_told(monkeypatch) -> None:
    import measure

    monkeypatch.setenv("PYTHONPATH", "/mine")
    command = [sys.executable, "-c", ECHO, str(BENCH)]
    with pytest.raises(RuntimeError, match="what went wrong"), measure.Worker("echo", command) as worker:
        assert worker.ask("double", value=1)["twice"] == 2
        path = worker.ask("double", value=4)["path"]
        assert path.index(str(measure.ROOT)) < path.index("/mine")
        worker.ask("fail")


def test_results_hold_command_machine_and_raw_times_and_disagreement_is_loud(monkeypatch, tmp_path: Path) -> None:
    import measure

    monkeypatch.setattr(measure, "BENCH", tmp_path)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--pairs", "2"])
    found = json.loads(measure.write_results("x", False, {"seconds": [1.5, 2.5]}).read_text())
    assert (found["command"], found["seconds"]) == ("python bench/x.py --pairs 2", [1.5, 2.5])
    assert found["versions"]["torch"] and found["cpu"] and found["threads"] == 1
    measure.agree("loss", 1.0, 1.0005, 1e-3)
    for other in (1.01, float("nan")):
        with pytest.raises(measure.Disagreement, match="loss"):
            measure.agree("loss", 1.0, other, 1e-3)


def test_training_flops_by_hand() -> None:
    """One layer, hidden 2, intermediate 3, one head of 2, vocabulary 5: four matrices of 4 weights and three of 6."""
    from flops import Shape, training_flops

    shape = Shape(hidden=2, intermediate=3, layers=1, heads=1, kv_heads=1, head_size=2, vocabulary=5)
    tokens, labels = 3 + 1, 2
    attention = 6 * 2 * (3 * 4 + 1 * 2)
    assert training_flops(shape, [3, 1], labels, None) == 6 * 34 * tokens + 6 * 10 * labels + attention
    adapters = 4 * (2 + 2) + 3 * (2 + 3)
    unneeded = 3 * (2 * 4 + 2 * 2)  # gradients of the first layer's q, k, v inputs, and of those of their A
    expected = (4 * 34 + 6 * adapters - unneeded) * tokens + 4 * 10 * labels + attention
    assert training_flops(shape, [3, 1], labels, rank=1) == expected


LOADED = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
for script in sys.argv[2:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code
    assert "torch" not in sys.modules
"""


def test_every_script_is_listed_and_its_help_is_fast_and_needs_no_peer() -> None:
    listed = (BENCH / "README.md").read_text()
    assert SCRIPTS and all(f"`{name}`" in listed for name in SCRIPTS)
    command = [sys.executable, "-c", LOADED, str(BENCH), *(str(BENCH / script) for script in SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    measuring = [name for name in SCRIPTS if "measure.parser" in (BENCH / name).read_text()]
    assert done.stdout.count("\n  --small") >= len(measuring) > 0 and done.stdout.count("usage: ") == len(SCRIPTS)


def test_a_pass_of_the_gpu_script() -> None:
    import gpu_training

    recorder = gpu_training.Pass(2)
    for step in range(3):
        recorder.step(10, torch.tensor(float(step)), (4, 7))
    with pytest.raises(gpu_training.PassDone):
        recorder.step(10, torch.tensor(5.0), (4, 9))
    assert (recorder.tokens, recorder.all_tokens, recorder.questions) == (20, 40, 8) and recorder.losses == [0, 1, 2, 5]
    assert recorder.shapes == [(4, 7)] * 3 + [(4, 9)] and recorder.allocated > 0
    assert len(recorder.step_seconds) == 2 and recorder.seconds >= sum(recorder.step_seconds) > 0
    # it trains on the tokens that it drew
    import gpu_training

    question = gpu_training.encode(gpu_training.Example([1, 2, 3, 4, 5, 9], 3), end=1)
    assert AnswerCollator((9,), share_prefix=False).example(question) == ((1, 2, 3, 4, 5, 9), [3, 4, 5])


# ------------------------------------------------------------------------------------------------- acceptance on a GPU


def test_a_figure_passes_or_fails_by_its_limit_and_one_that_is_missing_fails(tmp_path: Path) -> None:
    import gpu_accept

    def judged(**measured: float) -> list[str]:
        values = {name: {"value": value, "seconds": 1.5} for name, value in measured.items()}
        found = {"measured": values, "skipped": {"ties": "no ties here"}}
        return gpu_accept.judge(2, found, True, "its deadline of 3 s passed", 4.0)

    assert judged(loss=0.005, letters_same=0.97) == [
        "PASS 2.loss 0.005 <=0.01 1.5",
        "FAIL 2.letters_same 0.97 >=0.98 1.5",
        "SKIP 2.ties - <=0.01 4.0 no ties here",
    ]
    assert judged(loss=float("nan"))[:2] == [
        "FAIL 2.loss nan <=0.01 1.5",
        "FAIL 2.letters_same - >=0.98 4.0 its deadline of 3 s passed",
    ]
    assert judged(loss=0.0, letters_same=1.0)[-1].startswith("FAIL 2.ended")
    # a step past its deadline ends, and what it had measured stays
    gpu_accept.Report(tmp_path / "1.json").tell(logits=1e-6)
    step = gpu_accept.run_step(1, argparse.Namespace(device="cpu", small=True), tmp_path, deadline=0.2)
    assert step["lines"][0].startswith("PASS 1.logits 1e-06") and step["seconds"] < 10
    assert all(line.startswith("FAIL") and "deadline" in line for line in step["lines"][1:])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_checks_of_a_gpu_pass_on_a_cpu(tmp_path: Path) -> None:
    """Every step but the last, which asks TRL."""
    line = (str(BENCH / "gpu_accept.py"), "--device", "cpu", "--small", "--steps", "1,2,3,4,5,6,7,8,9")
    done = run_python(Path.cwd(), *line, OUT=str(tmp_path))
    steps = json.loads((tmp_path / "gpu_accept_small.json").read_text())["steps"].values()
    lines = [line for step in steps for line in step["lines"]]
    assert done.stdout.splitlines()[:-1] == lines, done.stderr
    assert done.returncode == 0, "\n".join([done.stdout, *(step["log"] for step in steps if "log" in step)])
    skipped = {line.split()[1] for line in lines if line.startswith("SKIP")}
    needs_gpu = {"4.device_peak_gib", "7.paged_resumed", "9.lora_packed_mfu", "9.qlora_packed_mfu"}
    assert not {name for name in skipped - needs_gpu if "_liger_" not in name}


# ------------------------------------------------------------------------------------------------------------ the kit


def wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    file, about = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    every = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "".join(f"{path},sha256=x,1\n" for path in [*files, f"{about}/RECORD"]),
    }
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in every.items():
            archive.writestr(path, text)
    return file


def test_the_kit_keeps_the_libraries_of_one_cuda_version(tmp_path: Path) -> None:
    import pack_gpu_kit

    names = ["cpu", "cuda128", "cuda130", "cuda1301", "rocm72", "xpu2026"]
    files = {f"bitsandbytes/libbitsandbytes_{name}.so": name for name in names}
    whole = wheel(tmp_path, "bitsandbytes", {"bitsandbytes/__init__.py": "", **files})
    pack_gpu_kit.reduce_bitsandbytes(whole, "130")
    with zipfile.ZipFile(whole) as reduced:
        libraries = [name for name in reduced.namelist() if name.endswith(".so")]
        record = reduced.read("bitsandbytes-1.0.dist-info/RECORD").decode()
    assert libraries == ["bitsandbytes/libbitsandbytes_cpu.so", "bitsandbytes/libbitsandbytes_cuda130.so"]
    assert [line.split(",")[0] for line in record.splitlines() if ".so," in line] == libraries
    with pytest.raises(SystemExit, match="no library for CUDA 118"):
        pack_gpu_kit.reduce_bitsandbytes(whole, "118")
    wanted = {requirement.split("==")[0] for requirement in pack_gpu_kit.requirements()}
    assert wanted == {*pack_gpu_kit.LACKING, "trl", "liger-kernel"}


def test_the_kit_installs_without_a_network_where_child_processes_see_it(tmp_path: Path) -> None:
    import pack_gpu_kit

    kit, site = tmp_path / "gpu_kit", tmp_path / "site"
    (kit / "wheels").mkdir(parents=True)
    (kit / "run.sh").write_text(pack_gpu_kit.RUN)
    wheel(kit / "wheels", "probe", {"probe.py": ""})
    (tmp_path / "bench").mkdir()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import probe; print(probe.__file__)'])"
    (tmp_path / "bench" / "gpu_accept.py").write_text(child)
    place = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": place, "GPU_KIT_SITE": str(site), "PIP_NO_INDEX": "1"}
    done = subprocess.run(["bash", str(kit / "run.sh")], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == str(site / "probe.py"), done.stderr
