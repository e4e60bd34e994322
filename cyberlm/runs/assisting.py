"""What a further process of a run does (`python -m cyberlm.runs.assisting PORT SIZE`, started by `team` alone)."""

import os
import sys
import threading
from datetime import timedelta

import lightning.pytorch as L
import torch.distributed as dist

from cyberlm.callbacks import CostMeter
from cyberlm.errors import UserError
from cyberlm.launch import show
from cyberlm.models import load_base, load_tokenizer, pick_device
from cyberlm.progress import console
from cyberlm.prompts import Prompt
from cyberlm.runs.parts import Clock
from cyberlm.runs.team import HOST, meet, ready_key, receive
from cyberlm.runs.training import learn

SECONDS_TO_LOAD = 3600
"""How long rank 0 may take for its questions before this process gives up."""


def assist(port: int, size: int) -> None:
    """Meets rank 0, takes its configuration, and works with it until both are done."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    console.quiet = True
    rank = int(os.environ["LOCAL_RANK"])
    store = dist.TCPStore(HOST, port, is_master=False, timeout=timedelta(seconds=SECONDS_TO_LOAD))
    store.set(ready_key(rank), "")
    meet(store, rank, size)
    config, folder = receive()
    L.seed_everything(config.seed, workers=True, verbose=False)
    device = pick_device(config.trainer.accelerator)
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    loaded = load_base(config.model, config.quant, device, trains_all_weights=config.method.lora is None)
    learn(config, folder, loaded, prompt, None, [], CostMeter(), Clock())
    dist.destroy_process_group()


def _end_with_parent() -> None:
    """The run's process never writes to this one's stdin: its end means that the run has ended, killed perhaps."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    try:
        assist(int(sys.argv[1]), int(sys.argv[2]))
    except UserError as error:
        raise SystemExit(show(error)) from None
