"""Pages read as a browser reads them, and questions that would run a script if they could."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

from results_support import results
from support import config_of

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.pages.run_page import Origin, run_page
from cyberlm.evaluation.pages.sweep_page import Sweep
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.study import (
    Claim,
    Curve,
    Figure,
    Study,
    StudyComparison,
    StudyCost,
    StudyJob,
    StudyRow,
    TunedRate,
)
from cyberlm.tasks.task import Example

SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)>"


def prediction(number: int, choice: int, topic: str = "") -> Prediction:
    """Of a question whose right option is A, answered with some confidence."""
    log_probs = tuple(-0.1 * (number + 1) if option == choice else -2.0 for option in range(4))
    name = f"q:{number}"
    return Prediction(
        name, name, 0, 4, log_probs, (1,) * 4, (1,) * 4, choice, 1.0, f"{SCRIPT} B", choice, "A", "0" * 16, topic
    )


def page(licence: str = "Apache-2.0", topic: str = "Ports: 443", more: Sequence[str] = (), **changes: object) -> str:
    """Of nine questions: `PAIR` says that the first two were lost, the next six gained.

    Args:
        more: Names of further models, which answer as the tuned one does.
        changes: Of the results.
    """
    config = config_of("data=sample")
    config.data.licence = licence
    questions = [Example(f"q:{k}", f"{SCRIPT} number {k}?", (SCRIPT, "two", "three", "four"), 0) for k in range(1, 10)]
    rows = {
        "base": [prediction(k, int(k > 2), topic) for k in range(1, 10)],
        "tuned": [prediction(k, int(k in (1, 2, 9)), "Cloud" if k % 2 else topic) for k in range(1, 10)],
    }
    rows |= dict.fromkeys(more, rows["tuned"])
    models = {name: Predictions(given) for name, given in rows.items()}
    origin = Origin(
        f"a <folder> of {SCRIPT}",
        "python train.py data=sample",
        [("seed", "1", "0")],
        {"train/loss": ([0, 1], [2.0, 1.0])},
    )
    return run_page(results(**changes), EvalSet(config, questions), models, origin)


class Reader(HTMLParser):
    """Tags that a browser would open, and the text that it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


def a_sweep() -> Sweep:
    """Of six jobs that have finished and one that has failed: two settings differ."""
    rows = []
    for place, (rank, alpha) in enumerate(itertools.product(("2", "4", "8"), ("16", "32"))):
        figures = {"val option nll": f"{1 + place / 10:.4f}", "val accuracy": "0.5000"}
        settings = {"method.lora.rank": rank, "method.lora.alpha": alpha}
        rows.append({"rank": str(place + 1), "job": str(5 - place), "state": "finished", **figures, **settings})
    failed = {
        **rows[0],
        "rank": "7",
        "job": "6",
        "state": f"failed: {SCRIPT}",
        "val option nll": "",
        "val accuracy": "",
    }
    links = {str(job): f"{job}/report.html" for job in range(6)}
    swept = ["method.lora.rank", "method.lora.alpha"]
    return Sweep("sweep", [*rows, failed], swept, "val option nll", links, "python -m cyberlm train -m ...")


def a_study() -> Study:
    """Of a base and one method, two seeds, of which the second has not finished."""

    def figure(value: float) -> Figure:
        return Figure(value, value - 0.04, value + 0.04, (value,))

    cost = StudyCost(1000, 100_000, 2**30, "host", 211.0, 260.0, 812.0, 640.0, 2**20)
    outcomes = {"likelihood": 0.4, "generation": 0.28, "option_named": 0.9}
    base = {name: figure(value - 0.16) for name, value in outcomes.items()}
    tuned = {name: figure(value) for name, value in outcomes.items()}
    interval = (0.16, 0.06, 0.26, 0.05, 0.27)
    pair = StudyComparison("base", "lora", "generation", "against base", *interval, 0.003, 0.009, "", (0.004,))
    claims = (
        Claim("above base", "lora", "base", 0.003, 0.009, 0.05, True, "lora is above base."),
        Claim("non-inferior", "lora", "sft", None, None, 0.05, False, f"An earlier claim: {SCRIPT}."),
    )
    done = StudyJob(
        *("lora_seed1", "confirm", "lora", 1, 2e-4, "finished", "", "lora_seed1"), outcomes, 200, 260, 2**30
    )
    failed = replace(done, name="lora_seed2", seed=2, state="failed", reason=SCRIPT, figures={}, seconds=None)
    return Study(
        schema_version=1,
        name="paper",
        state="unfinished",
        command="python train.py -m study=paper",
        model="smollm2_135m",
        data=f"sample {SCRIPT}",
        prompt="text",
        outcome="generation",
        margin=0.02,
        reference="sft",
        seeds=(1, 2),
        questions={"train": 480, "validation": 64, "test": 400},
        clusters=396,
        split="5a",
        tuning=(TunedRate("lora", 1e-4, 1.31, 0.4, True, "tune/lora_0.0001"),),
        rows=(
            StudyRow("base", "base", "none", None, 1, base),
            StudyRow("lora", "method", "none", 2e-4, 2, tuned, cost, 0.84),
        ),
        comparisons=(pair,),
        claims=claims,
        supported_margin=0.03,
        findings=("lora: 28.0% right.",),
        power=("400 questions show 3 points.",),
        floors={"majority letter": 0.26},
        notes=("lora_seed2 has not finished.",),
        jobs=(done, replace(failed, train_seconds=None, peak_bytes=None)),
        curves=(Curve("lora", 1, (10, 20), (1.4, 1.3), (0.3, 0.4)),),
        provenance={"weights": "0f"},
    )
