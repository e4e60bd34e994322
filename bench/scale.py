"""Training at 10,000 questions over training at 500: tokens/s and peak host memory; and the time to read, split and
tokenise.

The questions are CyberMetric-2000's, each in five versions with every third word changed, so that no two are near
duplicates; the 500 are every twentieth of the 10,000 by length. Both sides go through cyberlm's real path (file,
checks, split, tokens, `training.fit.fit`), each in a process of its own, and take turns of the same number of steps.
Validation, whose questions grow with the data, is held at 16 and not timed. Memory is ru_maxrss of the whole process.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

from cyberlm.tasks.task import make_task

MANY, FEW, VERSIONS = 10_000, 500, 5


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="smollm2_135m", help="default %(default)s")
    parser.add_argument("--block", type=int, default=7, help="optimizer steps of one turn (default %(default)s)")
    parser.add_argument("--worker", help="(used by the script itself)")
    options = parser.parse_args()
    measure.limit_threads(options.threads)
    if options.worker:
        return train(measure.Channel())
    if options.small:
        options.pairs, options.block, options.model = 2, 4, "tiny_random"
    with tempfile.TemporaryDirectory() as folder:
        compare(options, write_questions(Path(folder)))


def write_questions(folder: Path) -> dict[str, Path]:
    """Both files, in the format of `data=mcq`."""
    from cyberlm_side import cybermetric

    questions = cybermetric(MANY // VERSIONS)
    rows = []
    for version in range(VERSIONS):
        for k, question in enumerate(questions):
            words = question.question.split()
            for place in range(version % 3, len(words), 3) if version else ():
                words[place] = f"{words[place]}{version}"
            text = f"{' '.join(words)} ({k})"
            rows.append({"question": text, "options": list(question.options), "answer": question.letter})
    by_length = sorted(rows, key=lambda row: -len(json.dumps(row)))
    files = {"10,000 questions": rows, "500 questions": by_length[:: MANY // FEW]}
    paths = {}
    for name, chosen in files.items():
        paths[name] = folder / f"questions_{len(chosen)}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return paths


def compare(options: Any, files: dict[str, Path]) -> None:
    many, few = files
    script = Path(__file__).resolve()
    workers = {name: measure.Worker(name, [sys.executable, script, "--worker", name]) for name in files}
    steps = (1 + options.pairs) * options.block
    with workers[many], workers[few]:
        prepared = {}
        for name, worker in workers.items():
            job = {"file": str(files[name]), "model": options.model, "block": options.block, "steps": steps}
            prepared[name] = worker.ask("prepare", **job)
            worker.ask("block")
            print(f"{name}: prepared and warm", flush=True)
        sides = {name: lambda worker=worker: worker.ask("block") for name, worker in workers.items()}
        turns = measure.interleave(sides, options.pairs, lambda text: print(text, flush=True))
        memory = {name: worker.ask("finish")["peak_bytes"] for name, worker in workers.items()}
    rates = {name: [turn["tokens"] / turn["seconds"] for turn in rows] for name, rows in turns.items()}
    ratio = measure.ratio(rates[many], rates[few])
    phases = ("read", "split", "tokenise")
    rows: list[list[object]] = [["", "tokens/s", "peak memory, GiB", *(f"{phase}, s" for phase in phases)]]
    for name in files:
        times = [f"{prepared[name][phase]:.1f}" for phase in phases]
        rows.append([name, measure.spread(rates[name]), f"{memory[name] / 2**30:.3f}", *times])
    print("\n" + measure.table(f"{options.model}, {options.pairs} x {options.block} steps of 8 questions", rows))
    growth = memory[many] / memory[few]
    print(f"\ntokens/s at 10,000 over 500: {ratio}; memory: {growth:.3f}")
    body = {
        "goal": "tokens/s ratio at least 0.95; memory flat",
        "model": options.model,
        "ratio": ratio._asdict(),
        "memory_ratio": growth,
        "peak_bytes": memory,
        "prepared": prepared,
        "turns": turns,
    }
    measure.write_results("scale", options.small, body)


def train(channel: measure.Channel) -> None:
    import torch
    from cyberlm_side import config_of, fit_in_blocks

    from cyberlm.data.datamodule import encode_questions
    from cyberlm.data.sources import load_sources
    from cyberlm.data.splits import split_questions
    from cyberlm.models.loading import load_base, load_tokenizer
    from cyberlm.models.methods.method import attach
    from cyberlm.tasks.prompts import Prompt

    job = channel.receive()
    overrides = (f"data.path={job['file']}", "data.max_validation=16", f"trainer.max_steps={job['steps']}")
    config = config_of("data=mcq", f"model={job['model']}", *overrides)
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def took(phase: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[phase], clock = now - clock, now

    sources = load_sources(config.data, make_task(config))
    took("read")
    split = split_questions(config.data, sources)
    took("split")
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    encoded = {n: encode_questions(p, prompt, config.data.max_length) for n, p in split.parts().items()}
    took("tokenise")
    steps = len(split.train) // config.data.micro_batch_size  # of the only epoch
    if steps < job["steps"]:
        raise ValueError(f"{len(split.train)} training questions are {steps} steps, not {job['steps']}: lower --block")
    loaded = attach(load_base(config.model, config.quant, torch.device("cpu")), config)
    counts = {name: len(part) for name, part in split.parts().items()}
    channel.reply(**seconds, questions=counts, clusters=split.clusters)
    fit_in_blocks(config, loaded, prompt, encoded, lambda: measure.OrderedBlocks(channel, job["block"]))
    unit = 1 if sys.platform == "darwin" else 1024
    channel.reply(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    main()
