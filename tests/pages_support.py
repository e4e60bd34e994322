"""Pages read as a browser reads them, and questions that would run a script if they could."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser

from results_support import results
from study_support import made_up_study
from support import config_of

from cyberlm.evaluation.eval_set import EvalSet
from cyberlm.evaluation.pages.run_page import Origin, run_page
from cyberlm.evaluation.pages.sweep_page import Sweep
from cyberlm.evaluation.predictions import Prediction, Predictions
from cyberlm.evaluation.study import Claim, Study
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
    """`made_up_study` with scripts for texts, a claim that was not tested, and a job that has not finished."""
    study = made_up_study()
    unfinished = {"figures": {}, "train_seconds": None, "seconds": None, "peak_bytes": None}
    failed = replace(study.jobs[-1], state="failed", reason=SCRIPT, **unfinished)
    untested = Claim("non-inferior", "lora", "sft", None, None, 0.05, False, f"An earlier claim: {SCRIPT}.")
    return replace(
        study,
        data=f"sample {SCRIPT}",
        notes=(f"{failed.name} has not finished.",),
        claims=(*study.claims, untested),
        jobs=(*study.jobs[:-1], failed),
    )
