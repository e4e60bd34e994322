"""Seconds and memory of each stage of the data path, per question, at 10,000, 100,000 and 1,000,000 questions.

    python bench/data_scale.py --threads 1
    python bench/data_scale.py --threads 1 --folder /tmp/scale --sizes 1000000 --stages cluster,split   # in parts

The questions are made up: frames such as "Which of the following best describes ...?" filled with made-up words, of
which a few are common and ever more are rare, as in real text (a word of rank r has the share (r + 50)^-1.6), and with
a name in each gap, ending in x, that no other question has. Every twentieth is an earlier one with a word changed,
every fiftieth an earlier one as it is; these are taken of the others, so that a question has as many near-duplicates in
a large file as in a small one. Stages are cyberlm's own functions, with the embedded model's tokenizer and
`prompt=text`, each in a process of its own. Seconds, of the processor, and peak memory are those above what a stage was
given: that is loaded before, and then Linux's peak counter is reset. `kept` is what remains at its end. Exit status 1
where a stage takes more than `--limit` times as much per question at the largest size as at the smallest.
"""

import argparse
import ctypes
import gc
import json
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

FRAMES = """\
Which of the following best describes {}?
What is the primary purpose of {} in {}?
What is the main difference between {} and {}?
Which {} is most likely to be used against {} when {} is in place?
An analyst sees {} in the logs of {}. What should be done first about {}?
How does {} protect {} from {}?
Why is {} considered a weakness of {}?
In the context of {}, what does {} refer to?
Which of the following is not a property of {} that {} requires?
A company wants to move {} to {} without losing {}. Which approach fits {} best?"""
QUESTIONS, TOKENS = "questions.jsonl", "tokenised"
SYLLABLES = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ol")]


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="default %(default)s")
    parser.add_argument("--stages", default=",".join(STAGES), help="default %(default)s")
    parser.add_argument("--limit", type=float, default=2.0, help="default %(default)s")
    parser.add_argument("--folder", help="keeps questions and results, for a run of other sizes or stages")
    parser.add_argument("--worker", help="(used by the script itself)")
    options = parser.parse_args()
    measure.limit_threads(options.threads)
    if options.worker:
        return work(measure.Channel())
    if options.small:
        options.sizes, options.limit = "500,1000", 100.0
    sizes, stages = sorted(map(int, options.sizes.split(","))), options.stages.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        for size in sizes:
            measure_size(folder / f"{size}", size, stages)
        report(options, folder)


def measure_size(folder: Path, size: int, stages: list[str]) -> None:
    """Runs the stages, and those before them whose result is not in the folder yet."""
    if not (folder / QUESTIONS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_questions(size, folder / QUESTIONS)
    wanted = set(stages)
    for stage in reversed(STAGES):
        if stage in wanted and not (folder / STAGES[stage][0]).exists():
            wanted.add(STAGES[stage][0])
    for stage in STAGES:
        if stage in wanted:
            with measure.Worker(stage, [sys.executable, Path(__file__).resolve(), "--worker", stage]) as worker:
                row = worker.ask("run", stage=stage, folder=str(folder))
                worker.answer()
            (folder / f"{stage}.json").write_text(json.dumps(row))
            print(f"{size:>9,} {stage:12} {row['seconds']:8.1f} s {row['peak'] / 2**20:8.0f} MiB", flush=True)


def report(options: argparse.Namespace, folder: Path) -> None:
    """Prints all figures of a folder per question, writes them, and fails where one grows."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for file in sorted(folder.glob("*/*.json"), key=lambda file: int(file.parent.name)):
        if file.stem in STAGES:
            found.setdefault(file.stem, {})[int(file.parent.name)] = json.loads(file.read_text())
    sizes = sorted({size for by_size in found.values() for size in by_size})
    growth = {}
    for figure, (unit, factor) in {"seconds": ("us", 1e6), "peak": ("bytes", 1), "kept": ("bytes", 1)}.items():
        rows: list[list[object]] = [["stage", *(f"{size:,}" for size in sizes), "last / first"]]
        for stage in filter(found.__contains__, STAGES):
            each = {size: row[figure] * factor / size for size, row in found[stage].items()}
            growth[f"{stage} {figure}"] = grown = each[max(each)] / max(each[min(each)], 1.0)
            rows.append([stage, *(f"{each[size]:,.0f}" if size in each else "" for size in sizes), f"{grown:.2f}"])
        print("\n" + measure.table(f"{figure}, {unit} per question", rows))
    measure.write_results("data_scale", options.small, {"limit": options.limit, "growth": growth, "stages": found})
    grown_most = [name for name, ratio in growth.items() if ratio > options.limit and not name.endswith("kept")]
    if grown_most:
        raise SystemExit(f"More than {options.limit} times as much per question: {', '.join(grown_most)}")


def write_questions(count: int, file: Path) -> None:
    """Writes `count` multiple-choice questions, in the format of `data=mcq`."""
    import numpy as np

    rng = np.random.default_rng(0)
    frames = FRAMES.splitlines()

    def phrases(rows: int) -> list[str]:
        """Each two to four words, by the law of Zipf and Mandelbrot over a vocabulary without end."""
        ranks = (50 * rng.pareto(0.6, size=(rows, 4))).clip(max=2**40).astype(int).tolist()
        lengths = rng.integers(2, 5, size=rows).tolist()
        return [" ".join(map(word, row[:length])) for row, length in zip(ranks, lengths, strict=True)]

    originals: list[str] = []
    with file.open("w") as stream:
        for begin in range(0, count, 10_000):
            made = iter(phrases(8 * 10_000))
            for number in range(begin, min(begin + 10_000, count)):
                if number % 20 == 3:
                    words = originals[int(rng.integers(len(originals)))].split()
                    words[int(rng.integers(len(words)))] = word(int(rng.integers(1000)))
                    question = " ".join(words)
                elif number % 50 == 7:
                    question = originals[int(rng.integers(len(originals)))]
                else:
                    frame = frames[int(rng.integers(len(frames)))]
                    slots = frame.count("{}")
                    names = [f"{next(made)} {word(4 * number + slot)}x" for slot in range(slots)]
                    question = frame.format(*names)
                    originals.append(question)
                options = [f"{next(made)} {letter}" for letter in "ruin"]
                row = {"question": question, "options": options, "answer": "ABCD"[int(rng.integers(4))]}
                stream.write(json.dumps(row) + "\n")


def word(rank: int) -> str:
    """A pronounceable word of its own for each rank."""
    text = SYLLABLES[rank % 128]
    while rank := rank // 128:
        text += SYLLABLES[rank % 128]
    return text


# ------------------------------------------------------------------------------------------------------------ stages


def work(channel: measure.Channel) -> None:
    """Runs one stage: loads its input, resets the peak counter, and measures what comes on top."""
    from cyberlm_side import config_of

    from cyberlm.models.loading import load_tokenizer
    from cyberlm.tasks.prompts import Prompt
    from cyberlm.tasks.task import make_task

    order = channel.receive()
    folder = Path(order["folder"])
    config = config_of("data=mcq", f"data.path={folder / QUESTIONS}", "prompt=text")
    prompt = Prompt(config.prompt, load_tokenizer(config.model), make_task(config))
    prepare, run = STAGES[order["stage"]]
    given = pickle.loads((folder / prepare).read_bytes()) if prepare else None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what imports have freed is used first, and not counted
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = memory("VmRSS"), time.process_time()
    made = run(config, prompt, folder, given)
    seconds = time.process_time() - begun
    channel.reply(seconds=seconds, peak=memory("VmHWM") - before, kept=memory("VmRSS") - before)
    if made is not None:
        (folder / order["stage"]).write_bytes(pickle.dumps(made))
    channel.reply()


def memory(field: str) -> int:
    """Bytes of the process that Linux counts: `VmRSS` now, `VmHWM` at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def read(config: Any, prompt: Any, folder: Path, given: Any) -> Any:
    from cyberlm.data.sources import load_sources

    return load_sources(config.data, prompt.task)[0]


def cluster(config: Any, prompt: Any, folder: Path, given: Any) -> None:
    from cyberlm.data.splits import near_duplicate_clusters

    near_duplicate_clusters([question.question for question in given.questions], config.data.near_duplicate_jaccard)


def split(config: Any, prompt: Any, folder: Path, given: Any) -> Any:
    from cyberlm.data.splits import split_questions, write_manifest

    made = split_questions(config.data, [given])
    write_manifest(made, config.data, folder / "split_manifest.json")
    return made


def find_again(config: Any, prompt: Any, folder: Path, given: Any) -> None:
    from cyberlm.data.splits import read_manifest, select_questions

    for part in read_manifest(folder / "split_manifest.json")["parts"].values():
        select_questions([given], [row["hash"] for row in part])


def tokenise(config: Any, prompt: Any, folder: Path, given: Any) -> Any:
    from cyberlm.data.datamodule import encode_split

    shutil.rmtree(folder / TOKENS, ignore_errors=True)  # of an earlier call with --folder: they would be read, not made
    return encode_split(given, prompt, config.data, folder / TOKENS)


def tokens_again(config: Any, prompt: Any, folder: Path, given: Any) -> None:
    """Reads what `tokenise` has kept."""
    from cyberlm.data.datamodule import encode_split

    encode_split(given, prompt, config.data, folder / TOKENS)


def lint(config: Any, prompt: Any, folder: Path, given: Any) -> None:
    from cyberlm.data.label_check import lint_labels

    made, encoded = given
    lint_labels(made.train, encoded["train"], prompt)


def audit(config: Any, prompt: Any, folder: Path, given: Any) -> None:
    from cyberlm.evaluation.metrics.contamination import find_contamination

    find_contamination(given.test, (*given.train, *given.validation))


def plan(config: Any, prompt: Any, folder: Path, given: Any) -> None:
    """One epoch's batches and those of validation, without their tensors."""
    from cyberlm.data.datamodule import QuestionData

    _, encoded = given
    data = QuestionData(
        config.data, encoded["train"], encoded["validation"], prompt.end_ids, accumulate=1, seed=0, share_prefix=True
    )
    batches = data.train_dataloader().batch_sampler
    assert sum(len(planned.rows) for planned in batches) == len(encoded["train"])
    assert data.val_dataloader().batch_sampler


STAGES: dict[str, tuple[str, Callable[..., Any]]] = {
    "read": ("", read),
    "cluster": ("read", cluster),
    "split": ("read", split),
    "find_again": ("read", find_again),
    "tokenise": ("split", tokenise),
    "tokens_again": ("split", tokens_again),
    "lint": ("tokenise", lint),
    "plan": ("tokenise", plan),
    "audit": ("split", audit),
}
"""By name, in order: the stage whose result it is given, and what it does."""


if __name__ == "__main__":
    main()
