"""What three ways of merging an adapter into a 4-bit base leave of it.

python bench/merge_routes.py RUN [QUESTIONS]        RUN: a finished run with method=qlora

Each way is compared with the adapter on its 4-bit base, on the run's test questions. Only the first is exported.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel

from cyberlm.config.commands import ExportConfig
from cyberlm.config.saved import config_of
from cyberlm.config.schema import QuantConfig, QuantName, TrainConfig
from cyberlm.evaluation.agreement import compare_answers
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import load_base
from cyberlm.models.methods.adapters import load_adapter
from cyberlm.models.methods.method import method_of, saved_folder
from cyberlm.runs.export import ExportCheck, make_export_check
from cyberlm.runs.open_run import base_of, load_tuned

CPU = torch.device("cpu")


def expanded(trained: TrainConfig, run: Path) -> LoadedModel:
    return method_of(trained.method).merge(base_of(trained, run, CPU), saved_folder(trained.method, run))


def into_nf4(trained: TrainConfig, run: Path) -> LoadedModel:
    return _merged(load_tuned(trained, run, CPU))


def into_the_original(trained: TrainConfig, run: Path) -> LoadedModel:
    base = load_base(trained.model, QuantConfig(name=QuantName.none), CPU)
    return _merged(load_adapter(base, run / "adapter"))


def _merged(tuned: LoadedModel) -> LoadedModel:
    assert isinstance(tuned.model, PeftModel)
    causal = tuned.model.merge_and_unload()
    return LoadedModel(causal, causal, tuned.name, tuned.weights_hash)


ROUTES: dict[str, Callable[[TrainConfig, Path], LoadedModel]] = {
    "4 bits expanded, then merged (what is exported)": expanded,
    "merged and rounded to 4 bits again": into_nf4,
    "merged into the original weights": into_the_original,
}


def main(run: Path, count: int) -> None:
    trained = config_of(run)
    exam: ExportCheck = make_export_check(ExportConfig(run=str(run), questions=count), trained, run)
    base, base_logits = exam.answers(base_of(trained, run, CPU).loaded, "the base")
    tuned, logits = exam.answers(load_tuned(trained, run, CPU), "the adapter")
    effect = float((logits - base_logits).abs().mean())
    print(compare_answers(("base", "adapter"), base, tuned, float((logits - base_logits).abs().max())).sentence())
    for name, route in ROUTES.items():
        after, changed = exam.answers(route(trained, run), name)
        print(compare_answers(("adapter", name), tuned, after, float((logits - changed).abs().max())).sentence())
        share = float((logits - changed).abs().mean()) / effect
        print(f"  mean difference in a logit: {share:.3f} of the adapter's effect")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
