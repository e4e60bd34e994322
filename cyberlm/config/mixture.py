"""Mixtures: questions of several sources, each a YAML of the group `data`, in place of one (`data.mix`)."""

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cyberlm.config.bounds import bound_problems
from cyberlm.config.compose import compose_config, group_files
from cyberlm.config.question_rules import data_problems
from cyberlm.config.schema import DataConfig
from cyberlm.runtime.errors import ConfigError, Problem, did_you_mean
from cyberlm.runtime.validation import short_repr

SOURCE_KEYS = (
    *("name", "path", "address", "commit", "sha256", "size", "files", "dir", "answer_address", "answer_sha256"),
    *("reader", "subset", "split", "columns", "licence", "test_size", "test_path", "test_split", "on_bad_row"),
)
"""Keys of `data` that say what a source is and how it is read; the others hold for all sources."""


def with_sources(composed: DictConfig) -> DictConfig:
    """The configuration with the settings of each source of `data.mix` in `data.sources`, if it has a mixture.

    Raises:
        ConfigError: With the sources that do not exist or are of different tasks, and the settings that belong to one.
    """
    names = list(OmegaConf.select(composed, "data.mix") or ())
    if not names or set(names) == {name for name, source in composed.data.sources.items() if "name" in source}:
        return composed
    known = group_files("data")
    _refuse(Problem(f"data.mix: there is no data={name}", ", ".join(known)) for name in names if name not in known)
    own: Any = OmegaConf.to_container(composed.data, resolve=True, enum_to_str=True)
    used = [name for name in dict.fromkeys([*names, own["name"]]) if name in known]
    alone = {name: compose_config("train", [f"data={name}"]) for name in used}
    _refuse([*_task_problems(composed, {name: alone[name] for name in names}), *_misplaced(own, names, alone)])
    default: Any = OmegaConf.to_container(OmegaConf.structured(DataConfig), enum_to_str=True)
    sources: dict[str, Any] = {}
    for name in names:
        source: Any = OmegaConf.to_container(alone[name].data, resolve=True, enum_to_str=True)
        kept = {key: source[key] for key in SOURCE_KEYS if source[key] != default[key]}
        sources[name] = kept | own["sources"].get(name, {})
    licences = list(dict.fromkeys(source.get("licence", "unknown") for source in sources.values()))
    plain: Any = OmegaConf.to_container(composed, resolve=False)
    plain["data"] = {
        **{key: default[key] if key in SOURCE_KEYS else own[key] for key in own},
        "name": "+".join(names),
        "licence": licences[0] if len(licences) == 1 else f"several: {', '.join(licences)}",
        "sources": sources,
    }
    return OmegaConf.create(plain)


def source_configs(data: DataConfig) -> dict[str, DataConfig]:
    """The settings of each source of a mixture, by its name."""
    schema = OmegaConf.structured(DataConfig)
    typed = {name: OmegaConf.to_object(OmegaConf.merge(schema, source)) for name, source in data.sources.items()}
    return {name: source for name, source in typed.items() if isinstance(source, DataConfig)}


def mixture_problems(data: DataConfig) -> Iterator[Problem]:
    """Every rule of `data.mix`, `data.weights` and the sources that is broken."""
    if data.weights and len(data.weights) != len(data.mix):
        what = f"data.weights has {len(data.weights)} numbers, data.mix {len(data.mix)} sources"
        yield Problem(what, "a number for each source, such as data.mix=[cybermetric,cti_mcq] data.weights=[2,1]")
    if any(not 0 < weight < float("inf") for weight in data.weights):
        yield Problem(f"data.weights={data.weights}", "numbers above 0")
    if data.mix and len(set(data.mix)) != max(2, len(data.mix)):
        yield Problem(f"data.mix={data.mix}", "two sources or more, each once")
    try:
        sources = source_configs(data)
    except OmegaConfBaseException as error:
        yield Problem(f"data.sources: {str(error).splitlines()[0]}")
        return
    for name, source in sources.items():
        for problem in (*bound_problems(source, "data."), *data_problems(source)):
            what, allowed, fix = (
                text.replace("data.", f"data.sources.{name}.") for text in (problem.what, problem.allowed, problem.fix)
            )
            yield Problem(what, allowed, f"+{fix}" if fix.startswith("data.") else fix)


def _refuse(found: Any) -> None:
    problems = list(found)
    if problems:
        raise ConfigError("These sources cannot be mixed:", problems)


def _task_problems(composed: DictConfig, alone: Mapping[str, DictConfig]) -> Iterator[Problem]:
    """Sources of another task than the first, and a run of another task than its sources."""
    tasks: dict[str, Any] = {name: OmegaConf.to_container(source.task) for name, source in alone.items()}
    (first, expected), *others = tasks.items()
    for name, task in others:
        for key in ["_target_"] if task["_target_"] != expected["_target_"] else list(expected | task):
            if task.get(key) != expected.get(key):
                first_value, other = (short_repr(str(source.get(key))) for source in (expected, task))
                what = f"task.{key} is {first_value} with {first}, {other} with {name}"
                yield Problem(what, "sources of one task, asked in the same words")
    if expected["_target_"] != composed.task._target_:
        what = f"{first} is of task {expected['_target_']}, the run of {composed.task._target_}"
        yield Problem(what, f"the options that {first} chooses", f"data={first} 'data.mix=[{','.join(alone)}]'")


def _misplaced(own: dict[str, Any], names: list[str], alone: Mapping[str, DictConfig]) -> Iterator[Problem]:
    """Settings of `data` that would be lost: of a source that is not in the mixture, or that they do not name."""
    for name, typed in own["sources"].items():
        if name not in names:
            yield Problem(f"data.sources.{name}: it is not in data.mix", ", ".join(names))
        for key in set(typed or {}) - set(SOURCE_KEYS):
            yield Problem(f"there is no key data.sources.{name}.{key}. {did_you_mean(key, SOURCE_KEYS)}".rstrip())
    chosen = own["name"]
    if chosen not in (*names, "sample"):
        yield Problem(f"data={chosen} is not in data.mix", f"one of {', '.join(names)}, or data.mix alone")
    if chosen in alone:
        source: Any = OmegaConf.to_container(alone[chosen].data, resolve=True, enum_to_str=True)
        for key in SOURCE_KEYS:
            if own[key] != source[key]:
                fix = f"+data.sources.{names[0]}.{key}={own[key]}"
                yield Problem(f"data.{key}={own[key]} with data.mix", "a key of one of the sources", fix)
