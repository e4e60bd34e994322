"""Scoring and greedy generation of a Llama-3-8B shape with random weights on one GPU: questions/s and peak memory.

The model is the base in bfloat16, the same with a LoRA adapter beside its weights, or in nf4. Questions are the free
sample's, with the letter prompt; every completion has --new-tokens tokens, as random weights end none. Batches are
planned as an evaluation plans them, at each --tokens of `data.max_batch_tokens`; each figure is of a second pass over
the questions, the first one having warmed its shapes. `--tiny --device cpu` shows that it works.
"""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
from random_llama import random_model

MODELS = ("base", "lora", "qlora")


def main() -> None:
    options = arguments()
    import torch
    from cyberlm_side import config_of, sample

    from cyberlm.evaluation.inference import predict
    from cyberlm.models.tiny import tiny_tokenizer
    from cyberlm.tasks.prompts import Prompt

    config = config_of("model=tiny_random", "prompt=letter", f"trainer.accelerator={options.device}", "data=sample")
    prompt = Prompt(config.prompt, tiny_tokenizer())
    questions = sample(options.questions)
    encoded = prompt.encode(questions)
    prompt_tokens = sum(len(one.prompt_ids) for one in encoded)
    body = {"questions": len(questions), "prompt_tokens": prompt_tokens, "new_tokens": options.new_tokens}
    rows: list[list[object]] = [["", "tokens a batch", "scored/s", "generated/s", "GiB"]]
    found: dict[str, Any] = {}
    settings = replace(config.evaluation, max_new_tokens=options.new_tokens)
    for name in options.models:
        answer = functools.partial(predict, load(name, options), prompt, questions, encoded)
        for tokens in options.tokens:
            scored, both = (
                second_pass(options.device, functools.partial(answer, replace(settings, generate=how), tokens, name))
                for how in (False, True)
            )
            seconds = {"scored_s": scored, "generated_s": both - scored}
            peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else float("nan")
            found[f"{name} {tokens}"] = {**seconds, "gib": peak}
            rates = [f"{len(questions) / second:.1f}" for second in seconds.values()]
            rows.append([name, tokens, *rates, f"{peak:.1f}"])
            measure.write_results("gpu_evaluation", options.tiny, body | {"measured": found}, options.output)
        del answer  # makes room for the next model
    print(measure.table(f"{prompt_tokens / len(questions):.0f} tokens a prompt, on {options.device}", rows))


def arguments() -> Any:
    parser = measure.parser(__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape instead of Llama-3-8B's")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default %(default)s")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL")
    parser.add_argument("--tokens", nargs="+", type=int, default=[4096, 16384, 65536], metavar="TOKENS")
    parser.add_argument("--questions", type=int, default=200, help="default %(default)s")
    parser.add_argument("--new-tokens", type=int, default=32, help="default %(default)s")
    parser.add_argument("--output", type=Path, help="JSON file (default bench/results/gpu_evaluation.json)")
    return parser.parse_args()


def load(name: str, options: Any) -> Any:
    from cyberlm_side import config_of

    from cyberlm.models.loaded import open_causal
    from cyberlm.models.methods.method import attach

    method = "lora" if name == "base" else name
    loaded = open_causal(random_model(method, options.device, options.tiny).eval(), "random", "random")
    if name == "base":
        return loaded
    return attach(loaded, config_of("model=tiny_random", f"method={method}", f"trainer.accelerator={options.device}"))


def second_pass(device: str, work: Callable[[], object]) -> float:
    """Seconds that `work` takes the second time; torch's peak memory is that of this time."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    wait()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
