"""One run, whichever launcher starts its processes: the same adapter, bit for bit, and the same answers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_support import EVALUATE, ROOT, TORCHRUN, TRAIN, answers, environment, once, run, wait_for, whole
from debian import install

pytestmark = pytest.mark.slow


def test_torchrun_starts_a_run_again_after_a_rank_was_killed(reference: Path, tmp_path: Path) -> None:
    """SIGKILL before the fifth micro-batch of rank 1; the same line goes on, and ends as the run never killed."""
    kill = once(batch=5, rank=1, signum=int(signal.SIGKILL))
    line = ["--nproc-per-node=2", "--max-restarts=1", "train.py", *TRAIN, *kill, f"hydra.run.dir={tmp_path}"]
    said = run([sys.executable, *TORCHRUN, *line])
    assert (tmp_path / "once").is_file() and "Resuming from" in said
    assert whole(tmp_path) == whole(reference / "train")


# ------------------------------------------------------------------------------------------------------- two machines


@pytest.fixture(scope="session")
def nodes() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces with a wire between them: name, interface and address of each."""
    if os.geteuid():
        pytest.skip("network namespaces want root")
    install("iproute2", program="ip")
    known = os.getpid() % 10000
    found = [(f"cy{known}n{k}", f"cy{known}v{k}", f"10.77.0.{k + 1}") for k in range(2)]
    (name, wire, _), (other, other_wire, _) = found
    lines = [["netns", "add", name], ["netns", "add", other]]
    lines += [["link", "add", wire, "netns", name, "type", "veth", "peer", other_wire, "netns", other]]
    for namespace, interface, address in found:
        lines += [["-n", namespace, "addr", "add", f"{address}/24", "dev", interface]]
        lines += [["-n", namespace, "link", "set", device, "up"] for device in (interface, "lo")]
    try:
        for line in lines:
            done = subprocess.run(["ip", *line], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"ip {' '.join(line)}: {done.stderr.strip()}")
        yield found
    finally:
        for namespace, _, _ in found:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def on_both(nodes: list[tuple[str, str, str]], folder: Path, *line: str) -> str:
    """Types a line under torchrun on both nodes; returns what both print, which goes to the folder until then."""
    started = []
    for number, (namespace, interface, address) in enumerate(nodes):
        torchrun = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", "--rdzv-backend=c10d"]
        torchrun += [f"--rdzv-endpoint={nodes[0][2]}:29500", f"--rdzv-conf=is_host={int(number == 0)}"]
        torchrun += [f"--local-addr={address}"]
        whole_line = ["ip", "netns", "exec", namespace, sys.executable, *torchrun, *line]
        with (folder / namespace).open("w") as log:
            pipes = {"stdout": log, "stderr": subprocess.STDOUT, "env": environment(GLOO_SOCKET_IFNAME=interface)}
            started.append(subprocess.Popen(whole_line, cwd=ROOT, **pipes))

    def said() -> str:
        return "\n".join((folder / namespace).read_text() for namespace, _, _ in nodes)

    def codes() -> list[int | None]:
        return [process.poll() for process in started]

    try:
        wait_for(lambda: all(code == 0 for code in codes()) or any(codes()), said)
    finally:
        for process in started:  # one that hangs would outlive the test
            process.kill()
    assert codes() == [0, 0], said()
    return said()


def test_two_machines(reference: Path, nodes: list[tuple[str, str, str]], tmp_path: Path) -> None:
    """The process of the second is killed on the way; the first, whose torchrun has lost none, goes on with it."""
    kill = once(batch=5, rank=1, signum=int(signal.SIGKILL))
    said = on_both(nodes, tmp_path, "train.py", *TRAIN, *kill, f"hydra.run.dir={tmp_path / 'train'}")
    assert "Resuming from" in said
    assert whole(tmp_path / "train") == whole(reference / "train")
    line = [*EVALUATE, f"run={tmp_path / 'train'}", f"hydra.run.dir={tmp_path / 'evaluate'}"]
    on_both(nodes, tmp_path, "evaluate.py", *line)
    assert answers(tmp_path / "evaluate") == answers(reference / "evaluate")


# ----------------------------------------------------------------------------------------------------------------- Ray


def test_ray_train(reference: Path, launchers: Path, tmp_path: Path) -> None:
    """Two workers on two raylets; each calls what `train.py` and `evaluate.py` call."""
    script = [launchers, Path(__file__).with_name("ray_train.py"), tmp_path]
    lines = [["train", *TRAIN, f"hydra.run.dir={tmp_path / 'train'}"]]
    lines += [["evaluate", *EVALUATE, f"run={tmp_path / 'train'}", f"hydra.run.dir={tmp_path / 'evaluate'}"]]
    run([*script, *lines[0], "--", *lines[1]])
    assert whole(tmp_path / "train") == whole(reference / "train")
    assert answers(tmp_path / "evaluate") == answers(reference / "evaluate")
