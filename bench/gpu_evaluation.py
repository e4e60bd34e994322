"""Scoring and greedy generation of a Llama-3-8B shape with random weights on one GPU: questions/s and peak memory.

The model is the base in bfloat16, the same with a LoRA adapter beside its weights, or in nf4. Questions are the free
sample's, with the letter prompt; every completion has --new-tokens tokens, as random weights end none. Batches are
planned as an evaluation plans them, at each --tokens of `data.max_batch_tokens`; each figure is of a second pass over
the questions, the first one having warmed its shapes. `--tiny --device cpu` shows that it works.
"""

import contextlib
import sys
import time
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
    rows: list[list[object]] = [["", "tokens a batch", "scored/s", "generated/s", "GiB"]]
    found: dict[str, Any] = {}
    for name in options.models:
        loaded = load(name, options)
        for tokens in options.tokens:
            seconds = {}
            for generates in (False, True):
                settings = replace(config.evaluation, generate=generates, max_new_tokens=options.new_tokens)
                for _ in range(2):
                    with contextlib.redirect_stderr(None), settled(options.device):
                        started = time.perf_counter()
                        predict(loaded, prompt, questions, encoded, settings, tokens, name)
                        if options.device == "cuda":
                            torch.cuda.synchronize()
                        seconds[generates] = time.perf_counter() - started
            scored, generated = seconds[False], seconds[True] - seconds[False]
            peak = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else float("nan")
            found[f"{name} {tokens}"] = {"scored_s": scored, "generated_s": generated, "gib": peak}
            rates = [len(questions) / scored, len(questions) / generated]
            rows.append([name, tokens, *(f"{rate:.1f}" for rate in rates), f"{peak:.1f}"])
            print(*rows[-1], flush=True)
            body = {"questions": len(questions), "prompt_tokens": prompt_tokens, "new_tokens": options.new_tokens}
            measure.write_results("gpu_evaluation", options.tiny, body | {"measured": found}, options.output)
        del loaded
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
    from cyberlm.models.methods.method import prepare

    method = "lora" if name == "base" else name
    loaded = open_causal(random_model(method, options.device, options.tiny).eval(), "random", "random")
    if name == "base":
        return loaded
    return prepare(loaded, config_of("model=tiny_random", f"method={method}", f"trainer.accelerator={options.device}"))


@contextlib.contextmanager
def settled(device: str) -> Any:
    """Peak memory is that of what follows."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    yield


if __name__ == "__main__":
    sys.exit(main())
