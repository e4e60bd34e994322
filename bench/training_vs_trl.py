"""LoRA training of SmolLM2-135M on CyberMetric: effective tokens/s of cyberlm and of TRL's SFTTrainer with PEFT.

Effective tokens are each question's own in full, though cyberlm computes what they share once a batch.

Same examples, weights, adapter (rank 16, alpha 32, all linear layers), batch size, steps, learning rate, schedule and
clipping; loss on the answer only; one epoch. Each side trains in a process of its own, in one continuous run that is
paused after each block of steps; only these steps are timed. TRL stands here three times: with its best
options (gradient_checkpointing=False, batches grouped by length), which is the baseline, without the grouping, and with
its defaults, which recompute activations.

Both in float32: TRL's default bf16=True is left off, because bfloat16 matrix products are emulated on most CPUs and
many times slower.

The script fails unless TRL's tokens are cyberlm's, both loss functions give the same value for the same weights
(1e-3), and the held-out loss after training is the same within 5 % (the order of the examples differs, and so do the
adapter's random numbers).
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure

TRL = "trl==1.16.0"
SAME_LOSS = 1e-3
"""Nats a token: both loss functions, on the same weights and tokens."""
SAME_TRAINING = 0.05
"""Share of the held-out loss by which the two trainings may end apart."""
OURS, DEFAULTS, NO_CHECKPOINTING = "cyberlm", "TRL defaults", "TRL gradient_checkpointing=False"
BEST = "TRL gradient_checkpointing=False, group_by_length"
PEERS: dict[str, dict[str, Any]] = {
    BEST: {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    NO_CHECKPOINTING: {"gradient_checkpointing": False},
    DEFAULTS: {},
}
"""Options of TRL's SFTConfig, by the name of the side."""


def main() -> None:
    options = arguments()
    measure.limit_threads(options.threads)
    if options.worker == "cyberlm":
        return train_cyberlm(measure.Channel())
    if options.worker == "trl":
        return train_trl(measure.Channel())
    python = measure.peer_python("trl", [TRL])
    with tempfile.TemporaryDirectory() as folder:
        compare(options, python, Path(folder))


def arguments() -> Any:
    parser = measure.parser(__doc__)
    parser.add_argument("--prompt", default="text", help="cyberlm's prompt (default %(default)s)")
    parser.add_argument("--block", type=int, default=6, help="optimizer steps of one turn (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="questions of one step (default %(default)s)")
    parser.add_argument("--profile", action="store_true", help="afterwards, one more block of each side, profiled")
    parser.add_argument("--worker", help="(used by the script itself)")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.block = 2, 2
    return options


def compare(options: Any, python: Path, folder: Path) -> None:
    blocks = 1 + options.pairs + bool(options.profile)  # the first is the warm-up
    job = folder / "job.json"
    settings = {"batch": options.batch, "block": options.block, "steps": blocks * options.block}
    job.write_text(json.dumps({**settings, "prompt": options.prompt, "folder": str(folder)}))
    script = Path(__file__).resolve()
    ours = measure.Worker(OURS, [sys.executable, script, "--worker", "cyberlm"])
    with ours:
        ours.ask("prepare", job=str(job))
        peers = {name: measure.Worker(name, [python, script, "--worker", "trl"]) for name in PEERS}
        with contextlib.ExitStack() as stack:
            for name, peer in peers.items():
                stack.enter_context(peer)
                peer.ask("prepare", job=str(job), options=PEERS[name], out=str(folder / name))
            workers = {OURS: ours, **peers}
            turns, profiles = take_turns(workers, options)
            losses = finish(workers, folder)
    report(options, turns, losses, profiles, python)


def take_turns(workers: dict[str, measure.Worker], options: Any) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    for name, worker in workers.items():
        worker.ask("block")
        print(f"{name} is warm", flush=True)
    sides = {name: lambda worker=worker: worker.ask("block") for name, worker in workers.items()}
    turns = measure.interleave(sides, options.pairs, lambda text: print(text, flush=True))
    profiles = {}
    if options.profile:
        profiles = {name: worker.ask("block", profile=True)["operations"] for name, worker in workers.items()}
    return turns, profiles


def finish(workers: dict[str, measure.Worker], folder: Path) -> dict[str, dict[str, float]]:
    """Held-out losses: `before` and `after` by cyberlm's loss, `own` and `own_before` by the side's own."""
    losses = {name: worker.ask("finish") for name, worker in workers.items()}
    for name in PEERS:
        losses[name]["after"] = workers[OURS].ask("score", adapter=str(folder / name))["nll"]
        own, ours = losses[name], losses[OURS]
        measure.agree(f"{name}: loss before training", own["own_before"], ours["before"], SAME_LOSS)
        measure.agree(f"{name}: loss of its adapter by both", own["own"], own["after"], SAME_LOSS)
        tolerance = SAME_TRAINING * ours["after"]
        measure.agree(f"{name}: held-out loss after training", own["after"], ours["after"], tolerance)
    return losses


def report(options: Any, turns: dict[str, list[Any]], losses: dict[str, Any], profiles: Any, python: Path) -> None:
    rates = {name: [turn["tokens"] / turn["seconds"] for turn in rows] for name, rows in turns.items()}
    rows: list[list[object]] = [["", "tokens/s, median (range)", "cyberlm is so many times as fast", "held-out loss"]]
    ratios = {}
    for name, values in rates.items():
        ratios[name] = measure.ratio(rates[OURS], values)
        times = "-" if name == OURS else ratios[name]
        rows.append(
            [name, measure.spread(values), times, f"{losses[OURS]['before']:.4f} -> {losses[name]['after']:.4f}"]
        )
    trained = f"{options.pairs} x {options.block} steps of {options.batch} questions, prompt={options.prompt}"
    print("\n" + measure.table(f"LoRA training of SmolLM2-135M, float32, {trained}", rows))
    for name, operations in profiles.items():
        print("\n" + measure.operations_table(f"{name}: one block", operations))
    body = {
        "peer": measure.versions_of(python, ["trl", "transformers", "peft", "accelerate", "torch"]),
        "goal": "at least 2.0 against TRL with its best options",
        "ratio": {name: ratios[name]._asdict() for name in turns if name != OURS},
        "losses": losses,
        "turns": turns,
        "profiles": profiles,
    }
    measure.write_results("training_vs_trl", options.small, body)


# ---------------------------------------------------------------------------------------------------------- cyberlm


def train_cyberlm(channel: measure.Channel) -> None:
    """Prepares everything that both sides train on, trains, and scores adapters."""
    import torch
    from cyberlm_side import answer_nll, config_of, cybermetric, fit_in_blocks, plain_folder

    from cyberlm.models.loading import load_base, load_tokenizer
    from cyberlm.models.methods.adapters import load_adapter
    from cyberlm.models.methods.method import attach
    from cyberlm.tasks.prompts import Prompt

    file = Path(channel.receive()["job"])
    job = json.loads(file.read_text())
    config = config_of("method=lora", f"prompt={job['prompt']}", f"data.micro_batch_size={job['batch']}")
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    held_out_count = 2 * job["batch"]
    questions = cybermetric(job["steps"] * job["batch"] + held_out_count)
    encoded = prompt.encode(questions)
    loaded = load_base(config.model, config.quant, torch.device("cpu"))
    held_out, train = encoded[:held_out_count], encoded[held_out_count:]
    texts = [[prompt.render(question), prompt.task.target(question)] for question in questions]
    ids = [[*item.prompt_ids, *item.option_ids[item.gold], *prompt.end_ids] for item in encoded]
    optim = {"rank": config.method.lora.rank, "alpha": config.method.lora.alpha, "rate": config.optim.learning_rate}
    optim |= {"warmup": round(config.optim.warmup_fraction * job["steps"]), "clip": config.optim.max_grad_norm}
    data = {"model": str(plain_folder(loaded, prompt)), "texts": texts, "ids": ids, "held_out": held_out_count}
    file.write_text(json.dumps({**job, **data, **optim}))
    before = answer_nll(loaded, prompt, held_out)
    torch.manual_seed(config.seed)
    loaded = attach(loaded, config)
    channel.reply(ready=True)
    parts = {"train": train, "validation": held_out}
    fit_in_blocks(config, loaded, prompt, parts, lambda: measure.OrderedBlocks(channel, job["block"]))
    channel.reply(before=before, after=answer_nll(loaded, prompt, held_out))
    while True:
        adapter = Path(channel.receive()["adapter"])
        assert config.method.name == "lora"
        base = load_base(config.model, config.quant, torch.device("cpu"))
        channel.reply(nll=answer_nll(load_adapter(base, adapter / "adapter"), prompt, held_out))


# -------------------------------------------------------------------------------------------------------------- TRL


def train_trl(channel: measure.Channel) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    order = channel.receive()
    job = json.loads(Path(order["job"]).read_text())
    out = Path(order["out"])
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in job["texts"]]
    cut = job["held_out"]
    settings = SFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=job["batch"],
        per_device_eval_batch_size=cut,  # one batch: its loss is then the mean over all answer tokens
        max_steps=job["steps"],
        learning_rate=job["rate"],
        lr_scheduler_type="cosine",
        warmup_steps=job["warmup"],
        max_grad_norm=job["clip"],
        bf16=False,
        use_cpu=True,
        model_init_kwargs={"dtype": "float32"},
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **order["options"],
    )

    class Turns(TrainerCallback):
        blocks: measure.Blocks
        tokens = 0
        loss: Any = None

        def on_train_begin(self, *unused: Any, **kept: Any) -> None:
            self.blocks = measure.OrderedBlocks(channel, job["block"])

        def on_step_end(self, *unused: Any, **kept: Any) -> None:
            self.blocks.step(self.tokens, self.loss)

    turns = Turns()

    class CountingTrainer(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *others: Any) -> Any:
            turns.tokens = int(inputs["attention_mask"].sum())
            turns.loss = super().training_step(model, inputs, *others)
            return turns.loss

    trainer = CountingTrainer(
        model=job["model"],
        args=settings,
        train_dataset=Dataset.from_list(rows[cut:]),
        eval_dataset=Dataset.from_list(rows[:cut]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(
            r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[turns],
    )
    tokens = [*trainer.eval_dataset["input_ids"], *trainer.train_dataset["input_ids"]]
    if list(map(list, tokens)) != job["ids"]:
        raise measure.Disagreement("TRL's tokens of the examples are not cyberlm's")
    own_before = trainer.evaluate()["eval_loss"]
    channel.reply(ready=True)
    trainer.train()
    own = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(out / "adapter"))
    channel.reply(own_before=own_before, own=own, gradient_checkpointing=trainer.args.gradient_checkpointing)


if __name__ == "__main__":
    main()
