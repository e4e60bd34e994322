"""Likelihood of the right answers, and of the letters together."""

import math
from collections.abc import Iterator

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.metrics.metric import Metric, mean_metric
from cyberlm.evaluation.predictions import Predictions, has_candidates


def nll(predictions: Predictions, context: EvalSet) -> Iterator[Metric]:
    """Mean negative log-likelihood a token of the right answer (nats); mean probability of all option letters.

    Of free answers with its interval.
    """
    rows, n = predictions.test, len(predictions.test)
    each, label = [row.gold_nll for row in rows], "gold answer NLL, nats/token"
    limits = None if has_candidates(rows) else mean_metric("gold_nll", each, context.clusters, label=label).interval
    yield Metric("gold_nll", math.fsum(each) / n, limits, n, label=label)
    if context.asks_letters:
        mass = sum(sum(map(math.exp, row.option_logprobs)) for row in rows) / n
        label = "mean probability on letters"
        yield Metric("letter_mass", mass, n=n, label=label, format_spec=".1%", place="evidence")
