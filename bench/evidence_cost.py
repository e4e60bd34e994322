"""What the default evidence costs, over the evaluation that it stands on.

CyberMetric-500 is scored by SmolLM2-135M and by the same model with a random adapter, as a training run scores base
and tuned model; the 2000 file stands for the questions that were trained on. Timed in one process, in turns: the
answers of one model by likelihood, which is what accuracy alone needs; and weighing the evidence
(`runs.answering.weigh`: clusters, intervals, floors, letters, calibration, leak audit, pairs), for one model and for
two. Metrics (`runs.parts.results_of`) and generated answers are timed besides. What happens once in a run, evidence
for the first time and generation, is timed once.
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
        "metrics, two models": evaluation.metrics,
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

        from cyberlm.evaluation.evidence import Answers
        from cyberlm.models.loading import load_base, load_tokenizer
        from cyberlm.runs.inference import Asked
        from cyberlm.tasks.prompts import Prompt
        from cyberlm.training.fit import prepare

        self.config = config_of(f"model={options.model}", f"prompt={options.prompt}")
        self.prompt = Prompt(self.config.prompt, load_tokenizer(self.config.model))
        self.test = cybermetric(32 if options.small else 500, size=500)
        held_out = {question.hash for question in self.test}
        seen = tuple(question for question in cybermetric(2000) if question.hash not in held_out)
        self.asked = Asked(self.test, self.prompt.encode(self.test), seen=seen)
        self.loaded = load_base(self.config.model, self.config.quant, torch.device("cpu"))
        self.answers = {"base": Answers(self.predict())}  # the warm-up
        torch.manual_seed(self.config.seed)
        tuned = prepare(self.loaded, self.config)
        with torch.no_grad():
            for name, weight in tuned.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.01)
        self.loaded = tuned
        self.answers["tuned"] = Answers(self.predict())

    def predict(self, generate: bool = False) -> Any:
        from cyberlm.evaluation.inference import predict

        wanted = replace(self.config.evaluation, generate=generate)
        tokens = self.config.data.max_batch_tokens
        return predict(self.loaded, self.prompt, self.test, self.asked.encoded, wanted, tokens, "the model")

    def score(self) -> float:
        return seconds_of(self.predict)

    def generate(self) -> float:
        """Likelihood and generation less likelihood: generation alone."""
        both = seconds_of(lambda: self.predict(generate=True))
        return both - self.score()

    def weigh(self, names: list[str]) -> float:
        from cyberlm.runs.inference import weigh

        return seconds_of(lambda: weigh({name: self.answers[name] for name in names}, self.asked, self.config))

    def metrics(self) -> float:
        from cyberlm.runs.reporting import results_of

        parts = {"test": self.test}
        return seconds_of(lambda: results_of(self.config, "train", parts, self.answers, self.prompt, {}))


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
