"""The first questions as a model would be asked them (`data.preview=true`): neither a model nor torch is needed."""

from collections import Counter

from cyberlm.config.schema import RootConfig
from cyberlm.data.readers import QuestionSet
from cyberlm.data.sources import load_sources
from cyberlm.runtime.progress import say
from cyberlm.tasks.task import Task, make_task

SHOWN = 5
MAX_ANSWERS = 8


def show_preview(config: RootConfig) -> None:
    """Prints what was read of each file, and its first questions with the right answers."""
    task = make_task(config)
    for source in load_sources(config.data, task):
        _show_source(source, task)
        for example in source.questions[:SHOWN]:
            say(f"\n--- {example.id}{f' ({example.topic})' if example.topic else ''}")
            turns = example.turns or (("user", task.prompt(example)),)
            if config.prompt.system and turns[0][0] != "system":
                turns = (("system", config.prompt.system), *turns)
            for role, text in (*turns, ("assistant", task.target(example))):
                say(f"{role + ':':10} {text}")
            others = [text for text in task.candidates(example) or () if text != task.target(example)]
            if others:
                say(f"  compared with: {' | '.join(others)}")
    say("\nNothing was trained, scored or written. Leave data.preview=true out to start the run.")


def _show_source(source: QuestionSet, task: Task) -> None:
    say(f"\n{source.source}: questions: {len(source.questions):,}; bad rows skipped: {len(source.skipped):,}")
    for row in source.skipped[:SHOWN]:
        say(f"  {row}")
    if len(source.skipped) > SHOWN:
        say(f"  and {len(source.skipped) - SHOWN:,} more")
    own_options = len({tuple(task.candidates(example) or ()) for example in source.questions}) > 1
    answers = Counter(example.letter if own_options else task.target(example) for example in source.questions)
    if len(answers) == len(source.questions):  # texts, no labels
        return
    counts = [f"{answer} {count:,}" for answer, count in answers.most_common(MAX_ANSWERS)]
    apart = "; " if any("," in answer for answer in answers) else ", "
    say(f"Right answers: {apart.join(counts)}{' and others' if len(answers) > MAX_ANSWERS else ''}")
