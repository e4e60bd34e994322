"""No stage from a file of questions to batches takes more for a question where there are more of them."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cyberlm.models.loading import load_tokenizer
from cyberlm.tasks.prompts import Prompt
from cyberlm.tasks.task import make_task

BENCH = Path(__file__).parents[2] / "bench"
FEW, MANY = 500, 4000


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script that measures them up to a million."""
    monkeypatch.syspath_prepend(str(BENCH))
    import data_scale

    yield data_scale
    for name in ("data_scale", "cyberlm_side", "measure"):
        sys.modules.pop(name, None)


def test_seconds_per_question_do_not_grow(bench: Any, tmp_path: Path) -> None:
    from cyberlm_side import config_of

    seconds: dict[int, dict[str, float]] = {}
    tokenizer = None
    for size in (FEW, MANY):
        folder = tmp_path / f"{size}"
        folder.mkdir()
        bench.write_questions(size, folder / bench.QUESTIONS)
        config = config_of("data=mcq", f"data.path={folder / bench.QUESTIONS}", "model=tiny_random", "prompt=text")
        tokenizer = tokenizer or load_tokenizer(config.model)
        prompt = Prompt(config.prompt, tokenizer, make_task(config))
        made: dict[str, Any] = {"": None}
        seconds[size] = {}
        for name, (given, run) in bench.STAGES.items():
            begun = time.process_time()
            made[name] = run(config, prompt, folder, made[given])
            seconds[size][name] = (time.process_time() - begun) / size
    growth = {name: seconds[MANY][name] / seconds[FEW][name] for name in bench.STAGES}
    assert max(growth.values()) < 6, growth  # 8 where the work of a stage is quadratic
