"""The questions that all models of an evaluation answer."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cyberlm.config.schema import OptionScore, Protocol, RootConfig
from cyberlm.data.splits import near_duplicate_clusters
from cyberlm.evaluation.statistics import IntArray
from cyberlm.tasks.task import Example

FREE_LICENCE = re.compile(r"(?i)(apache|mit|bsd|cc0|cc[- ]by(?!.*\b(nc|nd)\b)|odc|odbl|pddl|unlicense|public domain)\b")
"""Licences under which questions may be shown to others. `unknown` and `none stated` are none of them."""


@dataclass(frozen=True, eq=False)
class EvalSet:
    """Questions of an evaluation, and the settings that they are asked with: the context of every metric.

    Compared and hashed by identity, so that `functools.lru_cache` keeps what is the same for all models.

    Attributes:
        questions: Test questions, in the order of every model's predictions.
        validation: For what is fitted (`evaluation.validation`).
        seen: Questions that a model was trained on or validated on.
    """

    config: RootConfig
    questions: Sequence[Example]
    validation: Sequence[Example] = ()
    seen: Sequence[Example] = ()

    @functools.cached_property
    def clusters(self) -> IntArray:
        """Near-duplicate cluster of each test question, (N,) int64, in order; or its group, where these are fewer.

        A question without a group is a group of its own.
        """
        texts = [question.question for question in self.questions]
        near = near_duplicate_clusters(texts, self.config.data.near_duplicate_jaccard)
        groups = [question.group or question.id for question in self.questions]
        coarser = near if len(set(near)) <= len(set(groups)) else np.unique(groups, return_inverse=True)[1]
        return np.array(coarser, dtype=np.int64)

    @property
    def asks_letters(self) -> bool:
        return self.config.prompt.protocol is Protocol.letter

    @property
    def options_shown(self) -> bool:
        """True if the prompt shows the options; without them a completion cannot be matched to an option."""
        return self.config.prompt.show_options

    @property
    def shows_text(self) -> bool:
        """True if the licence of the questions allows to show their text, and what models make of it, to others."""
        data = self.config.data
        licences = [source.get("licence", "unknown") for source in data.sources.values()] or [data.licence]
        return all(FREE_LICENCE.match(licence) for licence in licences)

    @property
    def option_score(self) -> OptionScore:
        return OptionScore.sum if self.asks_letters else self.config.evaluation.option_score
