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
    if order["order"] == "path":
        channel.reply(path=sys.path)
    if order["order"] == "fail":
        raise ValueError("what went wrong")
    channel.reply(twice=2 * order["value"])
"""


def test_a_worker_answers_and_its_death_is_told() -> None:
    import measure

    command = [sys.executable, "-c", ECHO, str(BENCH)]
    with measure.Worker("echo", command) as worker:
        assert [worker.ask("double", value=value)["twice"] for value in (1, 4)] == [2, 8]
    with pytest.raises(RuntimeError, match="what went wrong"), measure.Worker("echo", command) as worker:
        worker.ask("fail")


def test_a_worker_sees_the_packages_that_its_caller_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    import measure

    monkeypatch.setenv("PYTHONPATH", "/mine")
    with measure.Worker("echo", [sys.executable, "-c", ECHO, str(BENCH)]) as worker:
        path = worker.ask("path")["path"]
    assert "/mine" in path and path.index(str(measure.ROOT)) < path.index("/mine")


def test_results_hold_command_machine_and_raw_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import measure

    monkeypatch.setattr(measure, "BENCH", tmp_path)
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench/x.py", "--pairs", "2"])
    found = json.loads(measure.write_results("x", False, {"seconds": [1.5, 2.5]}).read_text())
    assert found["command"] == "python bench/x.py --pairs 2"
    assert found["seconds"] == [1.5, 2.5]
    assert found["versions"]["torch"] and found["cpu"] and found["threads"] == 1


def test_disagreement_is_loud() -> None:
    import measure

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


def test_every_script_is_listed() -> None:
    listed = (BENCH / "README.md").read_text()
    assert SCRIPTS and all(f"`{name}`" in listed for name in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_fast_and_needs_no_peer(script: str) -> None:
    loaded = "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[1]); del sys.argv[1]\n"
    loaded += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    loaded += "except SystemExit as end: assert not end.code\n"
    loaded += "assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", loaded, str(BENCH / script), str(BENCH), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--small" in done.stdout or "measure.parser" not in (BENCH / script).read_text()


def test_the_gpu_script_trains_on_the_tokens_that_it_drew() -> None:
    import gpu_training

    question = gpu_training.encode(gpu_training.Example([1, 2, 3, 4, 5, 9], 3), end=1)
    assert AnswerCollator((9,), share_prefix=False).example(question) == ((1, 2, 3, 4, 5, 9), [3, 4, 5])


def test_a_pass_times_its_steps_after_the_first_and_ends_after_one_more() -> None:
    import gpu_training

    recorder = gpu_training.Pass(2)
    for step in range(3):
        recorder.step(10, torch.tensor(float(step)), (4, 7))
    with pytest.raises(gpu_training.PassDone):
        recorder.step(10, torch.tensor(5.0), (4, 9))
    assert (recorder.tokens, recorder.all_tokens, recorder.questions) == (20, 40, 8) and recorder.losses == [0, 1, 2, 5]
    assert recorder.shapes == [(4, 7)] * 3 + [(4, 9)] and recorder.allocated > 0
    assert len(recorder.step_seconds) == 2 and recorder.seconds >= sum(recorder.step_seconds) > 0


# ------------------------------------------------------------------------------------------------- acceptance on a GPU

CPU = argparse.Namespace(device="cpu", small=True)


def test_a_figure_passes_or_fails_by_its_limit_and_one_that_is_missing_fails() -> None:
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


def test_a_step_past_its_deadline_ends_and_what_it_had_measured_stays(tmp_path: Path) -> None:
    import gpu_accept

    gpu_accept.Report(tmp_path / "1.json").tell(logits=1e-6)
    step = gpu_accept.run_step(1, CPU, tmp_path, deadline=0.2)
    assert step["lines"][0].startswith("PASS 1.logits 1e-06")
    assert all(line.startswith("FAIL") and "deadline" in line for line in step["lines"][1:])
    assert step["seconds"] < 10


def accept(folder: Path, *arguments: str) -> tuple[int, dict[str, str], str]:
    """Runs gpu_accept.py on the CPU; returns its exit code, the state of each figure, and all that it printed."""
    command = [sys.executable, str(BENCH / "gpu_accept.py"), "--device", "cpu", "--small", *arguments]
    environment = {**os.environ, "OUT": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    body = json.loads((folder / "gpu_accept_small.json").read_text())
    lines = [line for step in body["steps"].values() for line in step["lines"]]
    assert done.stdout.splitlines()[:-1] == lines, done.stderr
    logs = [step["log"] for step in body["steps"].values() if "log" in step]
    return done.returncode, {line.split()[1]: line.split()[0] for line in lines}, "\n".join([done.stdout, *logs])


def test_the_first_checks_of_a_gpu_pass_on_a_cpu(tmp_path: Path) -> None:
    code, states, printed = accept(tmp_path, "--steps", "1,3")
    assert code == 0 and set(states.values()) == {"PASS"}, printed
    assert len(states) == 15


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_other_checks_of_a_gpu_pass_on_a_cpu(tmp_path: Path) -> None:
    """Every step but the last, which asks TRL."""
    code, states, printed = accept(tmp_path, "--steps", "2,4,5,6,7,8,9")
    assert code == 0, printed
    missing = {name for name, state in states.items() if state == "SKIP"}
    needs_gpu = {"4.device_peak_gib", "7.paged_resumed", "9.lora_packed_mfu", "9.qlora_packed_mfu"}
    needs_gpu |= {name for name in states if "_liger_" in name}
    assert missing <= needs_gpu, printed


# ------------------------------------------------------------------------------------------------------------ the kit


def wheel(folder: Path, name: str, files: dict[str, str]) -> Path:
    file = folder / f"{name}-1.0-py3-none-any.whl"
    record = "".join(f"{path},sha256=x,1\n" for path in [*files, f"{name}-1.0.dist-info/RECORD"])
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": record,
    }
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        for path, text in about.items():
            archive.writestr(f"{name}-1.0.dist-info/{path}", text)
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


def test_every_package_of_the_kit_has_a_pinned_version() -> None:
    import pack_gpu_kit

    wanted = pack_gpu_kit.requirements()
    assert {requirement.split("==")[0] for requirement in wanted} == {*pack_gpu_kit.LACKING, "trl", "liger-kernel"}


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
