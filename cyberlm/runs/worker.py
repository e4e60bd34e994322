"""Main function of a further process of a run (`python -m cyberlm.runs.worker`, started by `Team` alone)."""

import logging
import os
import pickle
import sys
import threading

import lightning.pytorch as L
import torch.distributed as dist

from cyberlm.models.loading import load_tokenizer, pick_device
from cyberlm.models.methods.method import load_for_training
from cyberlm.runs.processes import Order, meet, ready_key, store_at
from cyberlm.runs.reporting import Clock
from cyberlm.runs.train import learn
from cyberlm.runtime import signals
from cyberlm.runtime.errors import UserError
from cyberlm.runtime.progress import console
from cyberlm.runtime.screens import show
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.task import make_task
from cyberlm.training.callbacks.meters import CostMeter


def assist(order: Order) -> None:
    """Loads what the run's own process loads, meets it, and works with it until both are done."""
    config, size = order.config, order.config.trainer.devices
    L.seed_everything(config.seed, workers=True, verbose=False)
    device = pick_device(config.trainer.accelerator)
    prompt = Prompt(config.prompt, load_tokenizer(config.model), make_task(config))
    loaded = load_for_training(config, device)
    store = store_at(order.meeting_place, size)
    store.set(ready_key(order.rank), "")
    meet(store, order.rank, size)
    learn(config, order.folder, loaded, prompt, None, [], CostMeter(), Clock())
    dist.destroy_process_group()


def _end_with_parent() -> None:
    """The run's process writes no more to this one's input: what ends it is that process's end, however it came."""
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    console.quiet = True
    logging.disable(logging.WARNING)  # the run's own process says the same
    order = pickle.load(sys.stdin.buffer)  # from the process that started this one, over a pipe of its own
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with signals.handled():
            assist(order)
    except signals.Stopped:
        raise SystemExit(signals.EXIT_STOPPED) from None
    except UserError as error:
        raise SystemExit(show(error)) from None


if __name__ == "__main__":
    main()
