"""Several models in one evaluation: what is found, how it is named, what is refused, and what comes out."""

import gc
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import MULTIPLE_CHOICE, config_of, evaluation_of, sample_questions
from typed import ROOT, run_python

from cyberlm.config.schema import EvaluateConfig, OnBadRow, QuantName
from cyberlm.data.readers import read_questions
from cyberlm.evaluation.records import ModelSpec, Results
from cyberlm.evaluation.results import read_predictions, read_results
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
from cyberlm.runtime.errors import ConfigError, ModelError, RunError

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
        patch.setenv("CYBERLM_CACHE_DIR", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.chdir(folder)
        small = config_of(*SMALL)
        outputs = Path("outputs")
        train(small, outputs / "2026-01-02_03-04-05_low")
        train(config_of(*SMALL, "method=sft", "evaluation.base=false"), outputs / "whole")
        train(config_of(*SMALL, "method=qlora", "evaluation.base=false"), outputs / "four_bit")
        train(config_of(*SMALL, "prompt=text", "evaluation.base=false"), outputs / "text")
        train(config_of(*SMALL, "data.seed=1", "evaluation.base=false"), outputs / "elsewhere")
        low = outputs / "2026-01-02_03-04-05_low"
        merged = load_adapter(load_base(small.model, small.quant, torch.device("cpu")), low / "adapter")
        merged.model.merge_and_unload().save_pretrained("merged")  # type: ignore[operator]
        load_tokenizer(small.model).save_pretrained("merged")
        shutil.copytree(low / "adapter", "foreign")
        (Path("foreign") / "prompt.json").unlink()
        (Path("outputs") / "unfinished").mkdir()
        for name in ("config.yaml", "split_manifest.json"):
            shutil.copy(low / name, outputs / "unfinished" / name)
        yield folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(place / "cache"))
    monkeypatch.chdir(place)


LOW = "outputs/2026-01-02_03-04-05_low"


def scoring(*runs: str, more: tuple[str, ...] = ()) -> EvaluateConfig:
    return evaluation_of("evaluation.generate=false", *more, f"runs=[{','.join(runs)}]")


def gold_nll(results: Results, model: str) -> float:
    value = results.metrics[model]["gold_nll"].value
    assert value is not None
    return value


def names(config: EvaluateConfig) -> list[str]:
    return [contender.name for contender in find_models(config)]


def test_everything_that_can_be_scored_in_one_command(tmp_path: Path) -> None:
    """Through the real command line: two runs, their base, a merged folder; then all figures again from the rows."""
    line = ("-m", "cyberlm", "evaluate", f"runs=[{LOW},outputs/whole,merged]", "report=full", "logger=none")
    more = ("evaluation.generate=false", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path / 'e'}")
    done = run_python(Path.cwd(), *line, *more, COLUMNS="80")
    assert done.returncode == 0, done.stderr
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
    assert set(read_predictions(tmp_path / "e" / "predictions.jsonl")) == set(results.metrics)
    assert recompute(tmp_path / "e") == []
    page = (tmp_path / "e" / "report.html").read_text("utf-8")
    assert "Evaluation<" in page and page.count("minus") >= 6  # every two models
    for name in results.metrics:
        assert name in done.stdout and f">{name} " in page
    assert "low minus base" in done.stdout and "each tuned model against its base (Holm over 2)" in done.stdout
    tables = done.stdout[done.stdout.index("Test questions") : done.stdout.index("Files:")]
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
    saved = Path("outputs/whole/config.yaml")
    text = saved.read_text()
    saved.write_text(text.replace("licence: none (random weights)", "licence: another word"))
    try:
        assert names(scoring(LOW, "outputs/whole"))[::2] == ["base_of_low", "base_of_whole"]
        evaluate(scoring(LOW, "outputs/whole"), tmp_path / "e")
    finally:
        saved.write_text(text)
    assert list(read_results(tmp_path / "e").metrics) == ["base_of_low", "low", "whole"]


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
        (("nowhere",), "nowhere: there is no such folder or model"),
        (("tiny_randm",), "Did you mean 'tiny_random'"),
        (("local",), "names no weights"),
        (("outputs",), "outputs holds no run, no adapter and no model"),
        (("outputs/unfinished",), "trainer.resume=outputs/unfinished"),
        ((str(ROOT / "tests/saved_runs/evaluation"),), "is not the folder of a training run"),
        ((LOW, "./" + LOW), "are the same model"),
        ((LOW, f"{LOW}/adapter"), "are the same model"),
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


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        find_models(scoring("nowhere", LOW, f"{LOW}/adapter", "outputs/unfinished"))
    assert len(raised.value.problems) == 3


def test_an_adapter_from_elsewhere_stands_on_the_configured_model(tmp_path: Path) -> None:
    more = ("model=tiny_random", "prompt=letter", "data.max_test=12")
    evaluate(scoring("foreign", "merged", more=more), tmp_path / "e")
    results = read_results(tmp_path / "e")
    assert list(results.metrics) == ["foreign", "merged"] and results.questions == {"test": 12}
    assert gold_nll(results, "foreign") == pytest.approx(gold_nll(results, "merged"), abs=1e-5)
    config = scoring("foreign", more=("model=tiny_random", "model.tiny.hidden_size=32", "prompt=letter"))
    with pytest.raises(ModelError, match="does not fit"):
        evaluate(config, tmp_path / "e2")


def test_quantisation_applies_to_what_brings_none() -> None:
    found = find_models(scoring(LOW, "merged", "tiny_random", more=("quant=nf4",)))
    quants = {contender.name: QuantName[contender.quant] for contender in found}
    assert quants == {
        "base": QuantName.none,
        "low": QuantName.none,
        "merged": QuantName.nf4,
        "tiny_random": QuantName.nf4,
    }


def test_runs_with_other_prompts_or_other_test_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError) as prompts:
        evaluate(scoring(LOW, "outputs/text"), tmp_path / "e")
    assert "prompt.protocol: letter in " + LOW in prompts.value.screen()
    assert "text in outputs/text" in prompts.value.screen()
    with pytest.raises(RunError) as tests:
        evaluate(scoring(LOW, "outputs/elsewhere"), tmp_path / "e")
    assert "different test questions" in tests.value.screen() and "data=..." in tests.value.screen()
    assert f"{LOW} was tested on 12 questions, outputs/elsewhere on 12" in tests.value.screen()


def test_a_question_that_any_run_trained_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the second run has seen it."""
    parts = json.loads(Path("outputs/elsewhere/split_manifest.json").read_text())["parts"]
    low = json.loads(Path(LOW, "split_manifest.json").read_text())["parts"]
    known = {row["hash"] for part in ("train", "validation") for row in low[part]}
    leaked = next(row for row in parts["train"] if row["hash"] not in known)
    sample = read_questions(ROOT / "cyberlm/data/sample.json", "sample", OnBadRow.error, MULTIPLE_CHOICE).questions
    question = next(question for question in sample if question.hash == leaked["hash"])
    row: dict[str, Any] = {"question": question.question, "solution": question.letter}
    row["answers"] = dict(zip("ABCD", question.options, strict=True))
    fresh = {"question": "What is new?", "answers": {"A": "w", "B": "x", "C": "y", "D": "z"}, "solution": "A"}
    Path(tmp_path / "own.json").write_text(json.dumps({"questions": [fresh, row]}))
    monkeypatch.setattr(evaluating, "_groups_given", lambda: {"data", "runs"})
    more = ("data=mcq", f"data.path={tmp_path / 'own.json'}")
    with pytest.raises(RunError, match=r"1 of 2 questions were trained on or validated on in outputs/elsewhere"):
        evaluate(scoring(LOW, "outputs/elsewhere", more=more), tmp_path / "e")
    Path(tmp_path / "own.json").write_text(json.dumps({"questions": [fresh]}))
    evaluate(scoring(LOW, "outputs/elsewhere", more=more), tmp_path / "e2")
    assert read_results(tmp_path / "e2").questions == {"test": 1}
    assert recompute(tmp_path / "e2") == []


@pytest.mark.parametrize(
    ("given", "runs", "refused"),
    [
        ({"prompt"}, (LOW,), ["prompt=..."]),
        ({"prompt", "model", "quant"}, (LOW, "outputs/whole"), ["model=...", "prompt=...", "quant=..."]),
        ({"model", "quant"}, (LOW, "merged"), ["model=..."]),
    ],
)
def test_what_belongs_to_the_models_cannot_be_overridden(
    given: set[str], runs: tuple[str, ...], refused: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "_groups_given", lambda: given)
    with pytest.raises(ConfigError) as raised:
        evaluate(scoring(*runs), tmp_path / "e")
    assert [problem.what for problem in raised.value.problems] == refused
