"""Rules of a study: what cannot be compared is refused before a job has run."""

from collections import Counter
from collections.abc import Iterator

from cyberlm.config.compose import group_files
from cyberlm.config.schema import TrainConfig
from cyberlm.config.study import MAX_SEED, StudyConfig, StudyOutcome
from cyberlm.runtime.errors import Problem, did_you_mean

MIN_COMPARED = 2
"""Methods, and seeds of each, that can be compared."""


def study_problems(config: TrainConfig) -> Iterator[Problem]:
    """Every rule that the configuration's study breaks; none where there is no study."""
    study = config.study
    if study is None:
        return
    yield from _method_problems(study)
    yield from _few_or_repeated("seeds", study.seeds, "study.seeds=[1,2,3]")
    for seed in study.seeds:
        if not 0 <= seed <= MAX_SEED:
            yield Problem(f"study.seeds holds {seed}", f"0 to {MAX_SEED}")
    if study.tune and study.tune_seed in study.seeds:
        what = f"study.tune_seed={study.tune_seed} is one of study.seeds: learning rates would be chosen on one of them"
        yield Problem(what, "another seed", f"study.tune_seed={max(study.seeds) + 1}")
    yield from _rate_problems(study)
    if study.outcome is StudyOutcome.generation and not (config.evaluation.generate and config.prompt.show_options):
        what = "study.outcome=generation needs completions, and options in the prompt that these can name"
        allowed = "evaluation.generate=true and prompt.show_options=true, or study.outcome=likelihood"
        yield Problem(what, allowed, "study.outcome=likelihood")


def _method_problems(study: StudyConfig) -> Iterator[Problem]:
    options = list(group_files("method"))
    for key, names in (
        ("methods", study.methods),
        ("learning_rates", study.learning_rates),
        ("overrides", study.overrides),
        ("published", study.published),
    ):
        for name in names:
            if name not in options:
                what = f"study.{key} names {name!r}, which is no method. {did_you_mean(name, options)}".rstrip()
                yield Problem(what, ", ".join(options))
    yield from _few_or_repeated("methods", study.methods, "study.methods=[sft,lora]")
    if study.reference not in study.methods:
        what = f"study.reference={study.reference} is none of study.methods"
        fix = f"study.reference={study.methods[0]}" if study.methods else ""
        yield Problem(what, ", ".join(study.methods), fix)


def _few_or_repeated(key: str, values: list[str] | list[int], example: str) -> Iterator[Problem]:
    typed = f"study.{key}=[{','.join(map(str, values))}]"
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    if repeated:
        yield Problem(f"{typed} names {', '.join(repeated)} twice", "each once")
    elif len(values) < MIN_COMPARED:
        yield Problem(f"{typed}: nothing could be compared", f"{MIN_COMPARED} or more", f"'{example}'")


def _rate_problems(study: StudyConfig) -> Iterator[Problem]:
    known = set(group_files("method"))
    for method in (method for method in study.methods if study.tune and method in known):
        rates = study.learning_rates.get(method, [])
        if not rates:
            fix = f"'+study.learning_rates.{method}=[1e-4,2e-4,5e-4]'"
            yield Problem(f"study.tune=true without study.learning_rates.{method}", "rates to try", fix)
        for rate in rates:
            if rate <= 0:
                yield Problem(f"study.learning_rates.{method} holds {rate:g}", "above 0")
        if len(set(rates)) < len(rates):
            yield Problem(f"study.learning_rates.{method} names a rate twice", "each once")
