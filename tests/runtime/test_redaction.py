"""Secrets come out of text, values, files and logs; ordinary words stay."""

import time
from pathlib import Path

import pytest
from typed import run_python

from cyberlm.runtime.errors import ConfigError
from cyberlm.runtime.redaction import is_secret_name, redact, redact_values, refuse_secrets

HOLD_SECRETS = (
    *("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_TRACKING_PASSWORD", "logger.x.password", "OPENAI_API_KEY", "api_key", "GITHUB_TOKEN", "SENTRY_DSN"),
    *("logger.mine.secret", "PGPASSWORD_TOKEN", "AZURE_CLIENT_SECRET", "SECRET_OF_PROD", "apikey"),
)
HOLD_NONE = (
    *("max_new_tokens", "data.max_batch_tokens", "eos_token_id", "nonpadding_tokens", "tokenizer", "seed"),
    *("learning_rate", "PATH", "evaluation.max_new_tokens", "label_tokens", "key", "keys", "author", "PWD"),
    "TOKENIZERS_PARALLELISM",
)  # fmt: skip


def test_names_of_secrets() -> None:
    assert [name for name in (*HOLD_SECRETS, *HOLD_NONE) if is_secret_name(name)] == list(HOLD_SECRETS)


def test_secrets_are_taken_out_of_text() -> None:
    texts = {
        "see http://user:pa55@host:5000/x": "see http://<redacted>@host:5000/x",
        "'postgresql://me@db/x?password=pa55&ssl=1'": "'postgresql://<redacted>@db/x?password=<redacted>&ssl=1'",
        "https://h/x?a=1&api_key=pa55": "https://h/x?a=1&api_key=<redacted>",
        "https://h/x?X-Amz-Signature=pa55&b=2": "https://h/x?X-Amz-Signature=<redacted>&b=2",
        "+logger.x.password=pa55 seed=1": "+logger.x.password=<redacted> seed=1",
        "logger={x:{api_key:pa55,project:p}}": "logger={x:{api_key:<redacted>,project:p}}",
        "    token: pa55\n    name: n": "    token: <redacted>\n    name: n",
        "{'secret': 'pa 55', 'b': 1}": "{'secret': <redacted>, 'b': 1}",
        "- +logger.x.token='pa 55'": "- +logger.x.token=<redacted>",
        "hf_abcdefghijklmnopqrst is a token": "<redacted> is a token",
        "Authorization: Bearer abcdefghijkl": "Authorization: <redacted> <redacted>",
        "AKIAABCDEFGHIJKLMNOP": "<redacted>",
    }
    assert {text: redact(text) for text in texts} == texts


def test_ordinary_text_stays() -> None:
    for text in (
        "evaluation.max_new_tokens=32 data.max_batch_tokens=4096",
        "Tokenising: 8/8 questions in 0:00, 973 questions/s, 176755 tokens/s",
        "token: null",
        "'logger.mine.password=${oc.env:NAME}' token: '${oc.env:NAME}'",
        "https://huggingface.co/meta-llama/Meta-Llama-3-8B",
        "sqlite:///outputs/mlflow.db",
        "What is a password? It is a secret, e.g. a token; the API key opens it.",
        "not exactly one beginning-of-sequence token: 12 examples",
        "me@example.org",
    ):
        assert redact(text) == text


@pytest.mark.parametrize("part", ["-", "_", "a-", "a_", "a.", ", ", "{"])
def test_long_lines_take_no_time(part: str) -> None:
    line = part * 2_000
    began = time.monotonic()
    assert redact(line) == line and redact(f"{line}api_key=pa55") == f"{line}api_key=<redacted>"
    assert time.monotonic() - began < 5


def test_values_of_the_environment_go_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "planted value")
    monkeypatch.setenv("OTHER_TOKEN", "abc")  # too short to be told from a word
    assert redact("x planted value abc") == "x <redacted> abc"
    assert redact_values({"a": ["planted value", 1, None], "password": "abc", "max_tokens": 3}) == {
        "a": ["<redacted>", 1, None],
        "password": "<redacted>",
        "max_tokens": 3,
    }


def test_typed_secrets_are_refused_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "planted value 1")
    for config in (
        {"logger": {"mine": {"password": "abc"}}},
        {"logger.mine.api_key": 12345},
        {"logger": {"x": {"uri": "postgresql://me:pa55@db/x"}}},
        {"logger": {"x": {"uri": ["https://h/x?token=pa55"]}}},
        {"model": {"path": "hf_abcdefghijklmnopqrst"}},
        {"logger": {"x": {"note": "planted value 1"}}},
    ):
        with pytest.raises(ConfigError) as caught:
            refuse_secrets(config)
        (problem,) = caught.value.problems
        assert problem.fix == f"'{problem.what}=${{oc.env:NAME}}'"
        assert "abc" not in str(caught.value) and "pa55" not in str(caught.value)


def test_words_and_references_are_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "cybersecurity")
    monkeypatch.setenv("OTHER_PASSWORD", "security.jsonl"[:8])
    references = {"password": "${oc.env:MY_SERVICE_TOKEN}", "secret": None, "token": "", "key": "<redacted>"}
    words = {"uri": "postgresql://me@db/x", "project": "cybersecurity", "save_token": True}
    refuse_secrets({"logger": {"mine": references, "x": words}, "evaluation": {"max_new_tokens": 8}})
    told = "The secret: it is security. api_key=none https://me:pa55@h hf_abcdefghijklmnopqrst"
    refuse_secrets({"prompt": {"system": told}, "data": {"path": "security.jsonl"}})


def test_logs_and_tracebacks(tmp_path: Path) -> None:
    code = (
        "import logging; from cyberlm.runtime.redaction import redact_output; logging.basicConfig(); redact_output()\n"
        "logging.warning('at %s', 'http://u:pa55@h')\n"
        "try: raise ValueError('http://u:pa55@h')\n"
        "except ValueError: logging.exception('failed')\n"
        "raise RuntimeError('http://u:pa55@h')"
    )
    done = run_python(tmp_path, "-c", code)
    assert done.returncode == 1
    assert "WARNING:root:at http://<redacted>@h" in done.stderr
    assert done.stderr.endswith("RuntimeError: http://<redacted>@h\n")
    assert "ValueError: http://<redacted>@h" in done.stderr
    assert "pa55@" not in done.stderr.replace("'http://u:pa55@h'", "")  # the code itself is not known to Python here
