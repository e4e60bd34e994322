"""What the metrics and comparisons of a report cost, over the evaluation that they are of.

CyberMetric-500 is scored by SmolLM2-135M and by the same model with a random adapter, as a training run scores base
and tuned model; the 2000 file stands for the questions that were trained on. Timed in one process, in turns: the
answers of one model by likelihood, which is what accuracy alone needs; and `runs.reporting.results_of` (clusters, all
metrics, pairs) of one model and of two. Generated answers are timed besides. What happens once in a run, metrics for
the first time and generation, is timed once.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import measure


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--prompt", default="text", help="cyberlm's prompt (default %(default)s)")
    parser.add_argument("--model", default="smollm2_135m", help="default %(default)s")
    options = parser.parse_args()
    if options.small:
        options.pairs = 2
    measure.limit_threads(options.threads)
    evaluation = Evaluation(options)
    sides: dict[str, Callable[[], float]] = {
        "likelihood, one model": evaluation.score,
        "evidence, one model": lambda: evaluation.weigh(["base"]),
        "evidence, two models": lambda: evaluation.weigh(["base", "tuned"]),
    }
    first = evaluation.weigh(["base", "tuned"])  # as in a run: libraries are imported, nothing is known yet
    turns = measure.interleave(sides, options.pairs, lambda text: print(text, flush=True))
    likelihood = turns["likelihood, one model"]
    turns["evidence, two models, first time"] = [first]
    turns["generation, one model"] = [evaluation.generate()]
    ratios = {
        "evidence, one model": measure.ratio(turns["evidence, one model"], likelihood),
        "evidence, two models": measure.ratio(turns["evidence, two models"], [2 * seconds for seconds in likelihood]),
    }
    ratios["evidence, two models, first time"] = measure.ratio([first], [2 * statistics.median(likelihood)])
    whole = likelihood[-1] + turns["generation, one model"][0]
    rows: list[list[object]] = [["", "seconds", "over likelihood of as many models"]]
    rows += [[name, measure.spread(seconds), ratios.get(name, "-")] for name, seconds in turns.items()]
    print("\n" + measure.table(f"{len(evaluation.test)} questions, {options.model}, prompt={options.prompt}", rows))
    share = first / (2 * whole)
    print(f"\nevidence of two models over their whole default evaluation, generation included: {share:.3%}")
    body = {
        "goal": "at most 0.05",
        "questions": len(evaluation.test),
        "prompt": options.prompt,
        "ratio": {name: found._asdict() for name, found in ratios.items()},
        "share_of_default_evaluation": share,
        "seconds": turns,
    }
    measure.write_results("evidence_cost", options.small, body)


class Evaluation:
    """Two models, the questions, and their answers."""

    def __init__(self, options: Any) -> None:
        import torch
        from cyberlm_side import config_of, cybermetric

        from cyberlm.evaluation.predictions import Predictions
        from cyberlm.models.loading import load_base, load_tokenizer
        from cyberlm.models.methods.method import attach
        from cyberlm.tasks.prompts import Prompt

        self.config = config_of(f"model={options.model}", f"prompt={options.prompt}")
        self.prompt = Prompt(self.config.prompt, load_tokenizer(self.config.model))
        self.test = cybermetric(32 if options.small else 500, size=500)
        held_out = {question.hash for question in self.test}
        seen = tuple(question for question in cybermetric(2000) if question.hash not in held_out)
        self.seen, self.encoded = seen, self.prompt.encode(self.test)
        self.loaded = load_base(self.config.model, self.config.quant, torch.device("cpu"))
        self.answers = {"base": Predictions(self.predict())}  # the warm-up
        torch.manual_seed(self.config.seed)
        tuned = attach(self.loaded, self.config)
        with torch.no_grad():
            for name, weight in tuned.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.01)
        self.loaded = tuned
        self.answers["tuned"] = Predictions(self.predict())

    def predict(self, generate: bool = False) -> Any:
        from cyberlm.evaluation.inference import predict

        wanted = replace(self.config.evaluation, generate=generate)
        tokens = self.config.data.max_batch_tokens
        return predict(self.loaded, self.prompt, self.test, self.encoded, wanted, tokens, "the model")

    def score(self) -> float:
        return seconds_of(self.predict)

    def generate(self) -> float:
        """Likelihood and generation less likelihood: generation alone."""
        both = seconds_of(lambda: self.predict(generate=True))
        return both - self.score()

    def weigh(self, names: list[str]) -> float:
        from cyberlm.evaluation.eval_set import EvalSet
        from cyberlm.evaluation.records import ModelSpec
        from cyberlm.runs.reporting import results_of

        models = {name: self.answers[name] for name in names}
        specs = {name: ModelSpec(name, "base" if name == "base" else "adapter", tuned_from="base") for name in names}
        return seconds_of(lambda: results_of(EvalSet(self.config, self.test, seen=self.seen), models, specs, {}))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
