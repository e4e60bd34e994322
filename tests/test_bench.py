"""bench/: the shared measuring, the count of operations, and that each script says what it does without any peer."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"
SCRIPTS = sorted(file.name for file in BENCH.glob("*.py") if "\ndef main()" in file.read_text())


@pytest.fixture(autouse=True)
def _bench_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in ("measure", "flops", "gpu_training"):
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
    channel.reply(twice=2 * order["value"])
"""


def test_a_worker_answers_and_its_death_is_told() -> None:
    import measure

    command = [sys.executable, "-c", ECHO, str(BENCH)]
    with measure.Worker("echo", command) as worker:
        assert [worker.ask("double", value=value)["twice"] for value in (1, 4)] == [2, 8]
    with pytest.raises(RuntimeError, match="what went wrong"), measure.Worker("echo", command) as worker:
        worker.ask("fail")


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


def test_the_gpu_script_makes_batches_that_training_takes() -> None:
    import gpu_training

    examples = [gpu_training.Example([1, 2, 3, 4, 5], [False, False, False, True, True])]
    examples.append(gpu_training.Example([6, 7, 8], [False, True, True]))
    (batch,) = gpu_training.answer_batches(examples, 2)
    assert batch.tokens == 6 and batch.questions == 2 and batch.step_label_tokens == 4
    following = {2: 3, 3: 4, 4: 5, 6: 7, 7: 8}
    places = batch.input_ids.flatten()[batch.answer_index].tolist()
    assert [following[token] for token in places] == batch.targets.tolist()
