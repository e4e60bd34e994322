"""Letter likelihood of SmolLM2-135M on CyberMetric: questions/s of cyberlm and of lm-eval's hf backend, and agreement.

Both get the same rendered prompts (chat template as text, no special tokens added) and score the letters behind them,
in float32. lm-eval stands here with its default batch_size=1 and with batch_size=8. Tokenising is timed on both
sides. Each side works in a process of its own; in each turn it answers all questions.

The script fails unless all sides choose the same letter on every question, and the letters' log-probabilities for
exactly the same tokens agree within 1e-3. (In the timed turns lm-eval is given text, as its tasks give it. It counts
white space at a prompt's end to the answer: that adds the same number to all letters of a question and changes no
choice.)
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

LM_EVAL = "lm-eval==0.4.13"
SAME_LOG_PROB = 1e-3
OURS = "cyberlm"
BATCH_SIZES = {"lm-eval batch_size=1 (default)": 1, "lm-eval batch_size=8": 8}


def main() -> None:
    options = arguments()
    measure.limit_threads(options.threads)
    if options.worker == "cyberlm":
        return score_with_cyberlm(measure.Channel())
    if options.worker == "lm-eval":
        return score_with_lm_eval(measure.Channel())
    python = measure.peer_python("lm-eval", [LM_EVAL])
    with tempfile.TemporaryDirectory() as folder:
        compare(options, python, Path(folder) / "job.json")


def arguments() -> Any:
    parser = measure.parser(__doc__)
    parser.add_argument("--questions", type=int, default=200, help="default %(default)s")
    parser.add_argument("--profile", action="store_true", help="afterwards, one more turn of each side, profiled")
    parser.add_argument("--worker", help="(used by the script itself)")
    options = parser.parse_args()
    if options.small:
        options.pairs, options.questions = 2, 24
    return options


def compare(options: Any, python: Path, job: Path) -> None:
    script = Path(__file__).resolve()
    with measure.Worker(OURS, [sys.executable, script, "--worker", "cyberlm"]) as ours:
        exact = {OURS: ours.ask("prepare", job=str(job), questions=options.questions)["log_probs"]}
        with measure.Worker("lm-eval", [python, script, "--worker", "lm-eval"]) as peer:
            peer.ask("prepare", job=str(job))
            exact |= {name: peer.ask("exact", batch_size=size)["log_probs"] for name, size in BATCH_SIZES.items()}
            sides: dict[str, Any] = {OURS: lambda: ours.ask("score")}
            sides |= {n: lambda size=size: peer.ask("score", batch_size=size) for n, size in BATCH_SIZES.items()}
            turns = measure.interleave(sides, options.pairs, lambda text: print(text, flush=True))
            profiles = {}
            if options.profile:
                profiles[OURS] = ours.ask("score", profile=True)["operations"]
                for name, size in BATCH_SIZES.items():
                    profiles[name] = peer.ask("score", batch_size=size, profile=True)["operations"]
    report(options, turns, exact, profiles, python)


def report(options: Any, turns: dict[str, Any], exact: dict[str, Any], profiles: dict[str, Any], python: Path) -> None:
    chosen = {name: {tuple(turn["choices"]) for turn in rows} for name, rows in turns.items()}
    rates = {name: [options.questions / turn["seconds"] for turn in rows] for name, rows in turns.items()}
    rows: list[list[object]] = [
        ["", "questions/s", "cyberlm is so many times as fast", "same letter", "log-prob apart"]
    ]
    ratios, agreement = {}, {}
    reference = next(iter(chosen[OURS]))
    for name in turns:
        ratios[name] = measure.ratio(rates[OURS], rates[name])
        apart = max(
            abs(a - b)
            for one, other in zip(exact[OURS], exact[name], strict=True)
            for a, b in zip(one, other, strict=True)
        )
        same = min(sum(a == b for a, b in zip(answers, reference, strict=True)) for answers in chosen[name])
        agreement[name] = {"same_letter": same, "of": options.questions, "largest_log_prob_difference": apart}
        times = "-" if name == OURS else ratios[name]
        rows.append([name, measure.spread(rates[name]), times, f"{same}/{options.questions}", f"{apart:.1e}"])
    print(
        "\n"
        + measure.table(f"Letter likelihood, SmolLM2-135M, float32, {options.questions} CyberMetric questions", rows)
    )
    for name, operations in profiles.items():
        print("\n" + measure.operations_table(f"{name}: one turn", operations))
    body = {
        "peer": measure.versions_of(python, ["lm-eval", "transformers", "torch"]),
        "goal": "at least 3 against lm-eval's default",
        "ratio": {name: ratios[name]._asdict() for name in turns if name != OURS},
        "agreement": agreement,
        "turns": turns,
        "profiles": profiles,
    }
    measure.write_results("scoring_vs_lm_eval", options.small, body)
    for name, found in agreement.items():
        measure.agree(f"{name}: questions with the same letter", found["same_letter"], options.questions, 0)
        measure.agree(f"{name}: log-probabilities", found["largest_log_prob_difference"], 0, SAME_LOG_PROB)


def score_with_cyberlm(channel: measure.Channel) -> None:
    import torch
    from cyberlm_side import config_of, cybermetric, plain_folder

    from cyberlm.evaluation.inference import predict
    from cyberlm.models.loading import load_base, load_tokenizer
    from cyberlm.tasks.prompts import Prompt
    from cyberlm.tasks.task import LETTERS

    order = channel.receive()
    config = config_of("prompt=letter", "evaluation.generate=false")
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    loaded = load_base(config.model, config.quant, torch.device("cpu"))
    questions = cybermetric(order["questions"])
    encoded = prompt.encode(questions)
    job = {
        "model": str(plain_folder(loaded, prompt)),
        "texts": [prompt.render(question) for question in questions],
        "ids": [[item.prompt_ids, item.option_ids] for item in encoded],
        "letters": LETTERS,
    }
    Path(order["job"]).write_text(json.dumps(job))

    def score() -> Any:
        tokens = config.data.max_batch_tokens
        return predict(loaded, prompt, questions, prompt.encode(questions), config.evaluation, tokens, "the base model")

    channel.reply(log_probs=[answer.option_logprobs for answer in score()])
    while order := channel.receive():
        channel.reply(**timed(score, lambda answers: [answer.choice for answer in answers], order))


def score_with_lm_eval(channel: measure.Channel) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    order = channel.receive()
    job = json.loads(Path(order["job"]).read_text())
    counts = [len(options) for _, options in job["ids"]]
    models = {
        size: HFLM(pretrained=job["model"], device="cpu", dtype="float32", batch_size=size, add_bos_token=False)
        for size in BATCH_SIZES.values()
    }
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(text, job["letters"][k]), idx=k)
        for text, count in zip(job["texts"], counts, strict=True)
        for k in range(count)
    ]
    tokens = [(("", str(k)), prompt, ids) for prompt, options in job["ids"] for k, ids in enumerate(options)]
    channel.reply(ready=True)

    def by_question(values: list[tuple[float, bool]]) -> list[list[float]]:
        rest = iter(values)
        return [[next(rest)[0] for _ in range(count)] for count in counts]

    def choices(values: list[tuple[float, bool]]) -> list[int]:
        return [row.index(max(row)) for row in by_question(values)]

    while order := channel.receive():
        model = models[order["batch_size"]]
        if order["order"] == "exact":
            channel.reply(log_probs=by_question(model._loglikelihood_tokens(tokens, disable_tqdm=True)))
        else:
            channel.reply(**timed(lambda: model.loglikelihood(requests, disable_tqdm=True), choices, order))  # noqa: B023


def timed(score: Any, choices: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one turn and the chosen options, with the operations if a profile was ordered."""
    profile = measure.profiler() if order.get("profile") else None
    if profile:
        profile.start()
    started = time.perf_counter()
    values = score()
    seconds = time.perf_counter() - started
    if profile:
        profile.stop()
    operations = measure.top_operations(profile) if profile else []
    return {"seconds": seconds, "choices": choices(values), "operations": operations}


if __name__ == "__main__":
    main()
