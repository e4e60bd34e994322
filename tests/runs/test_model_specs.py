"""Several models in one evaluation: what is found, how it is named, what is refused, and what comes out."""

import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import config_of, evaluation_of, questions_file, sample_questions
from typed import ROOT, type_line

from cyberlm.config.schema import EvaluateConfig
from cyberlm.data.splits import read_manifest
from cyberlm.evaluation.records import ModelSpec, Results
from cyberlm.evaluation.results import read_results
from cyberlm.models import loading
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import load_base, load_tokenizer
from cyberlm.models.methods.adapters import load_adapter
from cyberlm.models.tiny import tiny_tokenizer
from cyberlm.runs import evaluate as evaluating
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.model_specs import find_models
from cyberlm.runs.recompute import recompute
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ConfigError, RunError
from cyberlm.tasks.task import Example

SMALL = (
    *("data.max_train=16", "data.max_validation=8", "data.max_test=12", "evaluation.generate=false"),
    *("optim.learning_rate=1e-2", "trainer.max_steps=2"),
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # between libraries


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs of lora, sft and qlora, one with another prompt, one of another split, a merged model, a foreign adapter."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = config_of(*SMALL)
        train(small, Path(LOW))
        others = {"whole": "method=sft", "four_bit": "method=qlora", "text": "prompt=text", "elsewhere": "data.seed=1"}
        for name, setting in others.items():
            train(config_of(*SMALL, setting, "evaluation.base=false"), Path("outputs", name))
        merged = load_adapter(load_base(small.model, small.quant, torch.device("cpu")), Path(LOW, "adapter"))
        merged.model.merge_and_unload().save_pretrained("merged")  # type: ignore[operator]
        load_tokenizer(small.model).save_pretrained("merged")
        shutil.copytree(Path(LOW, "adapter"), "foreign", ignore=shutil.ignore_patterns("prompt.json"))
        Path("outputs", "unfinished").mkdir()
        for name in ("config.yaml", "split_manifest.json"):
            shutil.copy(Path(LOW, name), Path("outputs", "unfinished", name))
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


LOW = "outputs/2026-01-02_03-04-05_low"


def scoring(*runs: str, more: tuple[str, ...] = ()) -> EvaluateConfig:
    return evaluation_of("evaluation.generate=false", *more, f"runs=[{','.join(runs)}]")


def gold_nll(results: Results, model: str) -> float:
    return results.metrics[model]["gold_nll"].value


def names(config: EvaluateConfig) -> list[str]:
    return [contender.name for contender in find_models(config)]


def test_everything_that_can_be_scored_in_one_command(tmp_path: Path) -> None:
    """Through the real command line: two runs, their base, a merged folder; then all figures again from the rows."""
    line = ("evaluate", f"runs=[{LOW},outputs/whole,merged]", "report=full", "logger=none")
    more = ("evaluation.generate=false", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path / 'e'}")
    done = type_line(Path.cwd(), *line, *more)
    assert done.code == 0, done.err
    results = read_results(tmp_path / "e")
    assert list(results.metrics) == list(results.models) == ["base", "low", "whole", "merged"]
    assert [model.kind for model in results.models.values()] == ["base", "adapter", "weights", "weights"]
    assert results.models["low"].weights == results.models["base"].weights != results.models["merged"].weights
    assert results.models["low"].adapter is not None and results.models["base"].adapter is None
    assert (results.model, results.method) == ("tiny_random, merged", "lora, sft")

    one_by_one = {name: read_results(Path(run)).metrics for name, run in (("low", LOW), ("whole", "outputs/whole"))}
    for name, metrics in one_by_one.items():
        assert results.metrics[name]["accuracy"] == metrics["tuned"]["accuracy"]
        assert gold_nll(results, name) == pytest.approx(metrics["tuned"]["gold_nll"].value, abs=1e-6)
    assert results.metrics["base"] == one_by_one["low"]["base"]
    assert gold_nll(results, "merged") == pytest.approx(gold_nll(results, "low"), abs=1e-5)

    pairs = {(pair.first, pair.second): pair.family for pair in results.comparisons}
    assert len(pairs) == 6 and pairs["low", "merged"] == "tuned models among each other"
    bases = {"base": None, "low": "base", "whole": "base", "merged": None}  # of merged weights nobody says the base
    assert {name: model.tuned_from for name, model in results.models.items()} == bases
    against = {names for names, family in pairs.items() if family == "each tuned model against its base"}
    assert against == {("base", "low"), ("base", "whole")}
    assert recompute(tmp_path / "e") == []
    page = (tmp_path / "e" / "report.html").read_text("utf-8")
    assert "Evaluation<" in page and page.count("minus") >= 6  # every two models
    assert all(name in done.out and f">{name} " in page for name in results.metrics)
    assert "low minus base" in done.out and "each tuned model against its base (Holm over 2)" in done.out
    tables = done.out[done.out.index("Test questions") : done.out.index("Files:")]
    assert max(map(len, tables.splitlines())) <= 80


def test_a_base_is_scored_once_and_memory_holds_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    models: list[weakref.ref[torch.nn.Module]] = []

    def watched(*arguments: Any, **named: Any) -> LoadedModel:
        gc.collect()
        alive.append(sum(model() is not None for model in models))
        loaded = load_base(*arguments, **named)
        models.append(weakref.ref(loaded.causal))
        return loaded

    monkeypatch.setattr(loading, "load_base", watched)
    evaluate(scoring(LOW, "outputs/whole", "outputs/four_bit", "tiny_random"), tmp_path / "e")
    results = read_results(tmp_path / "e")
    assert list(results.metrics) == ["tiny_random", "low", "whole", "base", "four_bit"]
    assert [results.models[name].quant for name in ("tiny_random", "base", "four_bit")] == ["none", "nf4", "nf4"]
    assert alive == [0, 0, 0]  # a base is loaded once for itself and its first adapter


def test_equal_weights_under_two_configurations_are_scored_once(tmp_path: Path) -> None:
    """The base of the second run differs in a key that changes no weight."""
    shutil.copytree("outputs/whole", tmp_path / "twin")
    saved = (tmp_path / "twin" / "config.yaml").read_text()
    (tmp_path / "twin" / "config.yaml").write_text(saved.replace("licence: none (random weights)", "licence: another"))
    runs = scoring(LOW, str(tmp_path / "twin"))
    assert names(runs)[::2] == ["base_of_low", "base_of_twin"]
    evaluate(runs, tmp_path / "e")
    assert list(read_results(tmp_path / "e").metrics) == ["base_of_low", "low", "twin"]


def test_equal_weights_with_another_tokenizer_or_architecture_are_scored_apart(tmp_path: Path) -> None:
    config, questions = scoring(LOW), sample_questions(24)
    loader, bases = evaluating._ModelLoader(config), []
    for name, word, theta in (("a", "the", 1e4), ("b", "of", 1e4), ("c", "the", 1e4), ("d", "the", 5e5)):
        causal, tokenizer = load_base(config_of().model, config.quant, torch.device("cpu")).causal, tiny_tokenizer()
        causal.config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
        tokenizer.add_tokens([word])
        torch.manual_seed(0)
        causal.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        causal.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        model = config_of("model=local", f"model.path={tmp_path / name}").model
        spec = ModelSpec(name, "base", name=name, model=model, quant_config=config.quant)
        prompted = evaluating._prompted(spec, questions, config)
        bases.append(loader.identity(prompted))
    assert [base == bases[0] for base in bases] == [True, False, True, False]
    assert len({base[0] for base in bases}) == 1  # the weights


def test_names_are_short_and_unique() -> None:
    assert names(evaluation_of(f"run={LOW}")) == ["base", "tuned"]
    assert names(scoring(LOW)) == ["base", "low"]
    assert names(scoring(LOW, more=("evaluation.base=false",))) == ["low"]
    assert names(scoring("outputs/whole/model", f"{LOW}/adapter", "merged")) == ["whole_model", "low_adapter", "merged"]
    shutil.copytree("merged", "other/merged", dirs_exist_ok=True)
    shutil.copytree("merged", "tiny_random", dirs_exist_ok=True)
    last = Path.cwd().name
    assert names(scoring("merged", "other/merged")) == [f"{last}_merged", "other_merged"]
    assert names(scoring("./tiny_random")) == ["tiny_random"]  # a folder goes before an option
    assert find_models(scoring("tiny_random"))[0].kind == "weights"
    shutil.rmtree("tiny_random")
    assert names(scoring("tiny_random", "smollm2_135m")) == ["tiny_random", "smollm2_135m"]


@pytest.mark.parametrize(
    ("runs", "told"),
    [
        (("nowhere", LOW, f"{LOW}/adapter", "outputs/unfinished"), "nowhere: there is no such folder or model"),
        (("tiny_randm",), "Did you mean 'tiny_random'"),
        (("local",), "names no weights"),
        (("outputs",), "outputs holds no run, no adapter and no model"),
        (("outputs/unfinished",), "trainer.resume=outputs/unfinished"),
        ((str(ROOT / "tests/saved_runs/evaluation"),), "is not the folder of a training run"),
        ((LOW, "./" + LOW), "are the same model"),
        (("tiny_random", "tiny_random"), "are the same model"),
        (("foreign",), "is an adapter for tiny_random, and model=smollm2_135m is HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_what_cannot_be_scored_is_one_screen(runs: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        find_models(scoring(*runs))
    screen = raised.value.screen()
    assert told in screen
    assert "the folder of a PEFT adapter" in screen and "tiny_random" in screen  # what is allowed
    assert len(raised.value.problems) == (3 if len(runs) == 4 else 1)


def test_what_brings_no_model_or_quantisation_takes_the_configured_one(tmp_path: Path) -> None:
    more = ("model=tiny_random", "prompt=letter", "data.max_test=12")
    evaluate(scoring("foreign", "merged", more=more), tmp_path / "e")
    results = read_results(tmp_path / "e")
    assert list(results.metrics) == ["foreign", "merged"] and results.questions == {"test": 12}
    assert gold_nll(results, "foreign") == pytest.approx(gold_nll(results, "merged"), abs=1e-5)
    found = find_models(scoring(LOW, "merged", "tiny_random", more=("quant=nf4",)))
    quants = {spec.name: spec.quant for spec in found}
    assert quants == {"base": "none", "low": "none", "merged": "nf4", "tiny_random": "nf4"}


def test_runs_with_other_prompts_or_other_test_questions_are_refused(tmp_path: Path) -> None:
    for other, told in (
        ("text", (f"prompt.protocol: letter in {LOW}", "text in outputs/text")),
        ("elsewhere", ("different test questions", f"{LOW} was tested on 12 questions, outputs/elsewhere on 12")),
    ):
        with pytest.raises(RunError) as refused:
            evaluate(scoring(LOW, f"outputs/{other}"), tmp_path / "e")
        assert all(words in refused.value.screen() for words in told)


def test_a_question_that_any_run_trained_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second run has seen it."""
    low, elsewhere = (read_manifest(Path(run, "split_manifest.json"))["parts"] for run in (LOW, "outputs/elsewhere"))
    known = {row["hash"] for part in ("train", "validation") for row in low[part]}
    leaked = next(row["hash"] for row in elsewhere["train"] if row["hash"] not in known)
    question = next(question for question in sample_questions(1000) if question.hash == leaked)
    monkeypatch.setattr(evaluating, "_groups_given", lambda: {"data", "runs"})
    own = questions_file(tmp_path / "own.json", [Example("own:1", "What is new?", ("w", "x"), 0), question])
    asked = scoring(LOW, "outputs/elsewhere", more=("data=mcq", f"data.path={own}"))
    with pytest.raises(RunError, match=r"1 of 2 questions were trained on or validated on in outputs/elsewhere"):
        evaluate(asked, tmp_path / "e")
    questions_file(own, [Example("own:1", "What is new?", ("w", "x"), 0)])
    evaluate(asked, tmp_path / "e2")
    assert read_results(tmp_path / "e2").questions == {"test": 1}
    assert recompute(tmp_path / "e2") == []


@pytest.mark.parametrize(
    ("given", "runs", "refused"),
    [
        ({"prompt", "model", "quant"}, (LOW, "outputs/whole"), ["model=...", "prompt=...", "quant=..."]),
        ({"model", "quant"}, (LOW, "merged"), ["model=..."]),
    ],
)
def test_what_belongs_to_the_models_cannot_be_overridden(given, runs, refused, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluating, "_groups_given", lambda: given)
    with pytest.raises(ConfigError) as raised:
        evaluate(scoring(*runs), tmp_path / "e")
    assert [problem.what for problem in raised.value.problems] == refused
