"""Equivalence, non-inferiority, and the family of a study's comparisons."""

import json
from dataclasses import asdict

import numpy as np

from cyberlm.evaluation.equivalence import analyse


def test_a_study_can_be_written_as_json() -> None:
    rng = np.random.default_rng(0)
    ability = rng.normal(size=300)
    outcomes = {
        method: (ability + rng.normal(0, 0.4, (seeds, 300)) + gain > 0).astype(float)
        for method, seeds, gain in (("base", 1, 0.0), ("sft", 3, 1.0), ("lora", 3, 1.0), ("qlora", 2, 0.4))
    }
    found = analyse(outcomes, "base", "sft", np.arange(300) // 2, resamples=200)
    assert json.loads(json.dumps(asdict(found)))["means"][1]["method"] == "sft"
    assert list(found.verdicts) == ["lora", "qlora"]
