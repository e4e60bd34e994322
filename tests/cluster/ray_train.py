"""Command lines in two workers of Ray Train, on two raylets: `ray_train.py STORAGE COMMAND ... [-- COMMAND ...]`."""

import itertools
import sys

import ray
from ray.cluster_utils import Cluster
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def work(config: dict[str, list[str]]) -> None:
    from cyberlm.__main__ import run_command

    command, *sys.argv[1:] = config["line"]
    try:
        run_command(command)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit code {end.code}") from None


if __name__ == "__main__":
    storage, *words = sys.argv[1:]
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    ray.init(address=cluster.address)
    for last, line in itertools.groupby(words, lambda word: word == "--"):
        if not last:
            TorchTrainer(
                work,
                train_loop_config={"line": list(line)},
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(storage_path=storage),
            ).fit()
    ray.shutdown()
    cluster.shutdown()
