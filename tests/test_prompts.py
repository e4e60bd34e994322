"""The whole rendered prompt, its tokens, and its fingerprint."""

import pytest
from support import config_of
from transformers import PreTrainedTokenizerFast

from cyberlm.data.module import encode_questions
from cyberlm.errors import ConfigError, DataError, ModelError
from cyberlm.models.tiny import tiny_tokenizer
from cyberlm.prompts import Prompt
from cyberlm.records import Question

QUESTION = Question("q:1", "Which port does SSH use?", ("21", "22", "23"), 1)

LETTER_CHAT = """<|begin_of_text|><|start_header_id|>system<|end_header_id|>

You are a cybersecurity expert. Answer the multiple-choice question with the letter of the right option.<|eot_id|>\
<|start_header_id|>user<|end_header_id|>

Which port does SSH use?

A) 21
B) 22
C) 23

Answer with one letter.<|eot_id|><|start_header_id|>assistant<|end_header_id|>

"""

TEXT_PLAIN = """You are a cybersecurity expert. Answer the question briefly.

Which port does SSH use?
Answer:"""


def make(*overrides: str, tokenizer: PreTrainedTokenizerFast | None = None) -> Prompt:
    return Prompt(config_of(*overrides).prompt, tokenizer or tiny_tokenizer())


def test_letter_prompt_in_the_chat_template() -> None:
    assert make("prompt=letter").render(QUESTION) == LETTER_CHAT


def test_text_prompt_without_a_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert make("prompt=text", tokenizer=tokenizer).render(QUESTION) == TEXT_PLAIN


def test_options_can_be_shown_in_a_text_prompt() -> None:
    prompt = make("prompt=text", "prompt.show_options=true", "prompt.question='{question} | {options}'")
    assert "Which port does SSH use? | A) 21\nB) 22\nC) 23" in prompt.render(QUESTION)


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("protocol", ["letter", "text"])
def test_tokens_are_the_text_with_one_bos_and_the_answer_behind_it(style: str, protocol: str) -> None:
    tokenizer = tiny_tokenizer()
    prompt = make(f"prompt={protocol}", f"prompt.style={style}", tokenizer=tokenizer)
    encoded = prompt.encode([QUESTION])[0]
    text = tokenizer.decode(encoded.prompt_ids + encoded.option_ids[1])
    answer = "B" if protocol == "letter" else "22"
    space = "" if style == "chat" else " "
    assert text.endswith(prompt.render(QUESTION) + space + answer)
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == (1 if style == "chat" else 0)  # the tiny one adds none


def test_a_plain_prompt_gets_the_bos_its_tokenizer_adds() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    encoded = make("prompt=text", "prompt.style=plain", tokenizer=tokenizer).encode([QUESTION])[0]
    assert encoded.prompt_ids[0] == tokenizer.bos_token_id
    assert encoded.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in encoded.option_ids[0]
    chat = make("prompt=text", tokenizer=tokenizer).encode([QUESTION])[0]
    assert chat.prompt_ids.count(tokenizer.bos_token_id) == 1


def test_the_end_of_turn_closes_an_answer() -> None:
    tokenizer = tiny_tokenizer()
    chat = make("prompt=letter", tokenizer=tokenizer)
    assert tokenizer.convert_ids_to_tokens(chat.end_ids) == ["<|eot_id|>"]
    assert set(chat.stop_ids) == {chat.end_ids[0], tokenizer.eos_token_id}
    plain = make("prompt=letter", "prompt.style=plain", tokenizer=tokenizer)
    assert plain.end_ids == (tokenizer.eos_token_id,)


def test_letters_are_found_where_they_stand() -> None:
    """'A' after a chat header and ' A' after 'Answer:' are different tokens."""
    tokenizer = tiny_tokenizer()
    chat = make("prompt=letter", tokenizer=tokenizer).encode([QUESTION])[0]
    plain = make("prompt=letter", "prompt.style=plain", tokenizer=tokenizer).encode([QUESTION])[0]
    assert [tokenizer.decode(ids) for ids in chat.option_ids] == ["A", "B", "C"]
    assert [tokenizer.decode(ids) for ids in plain.option_ids] == [" A", " B", " C"]
    assert chat.option_ids != plain.option_ids


def test_a_letter_of_two_tokens_is_refused() -> None:
    broken = make("prompt=letter")
    broken.answer_text = lambda question, option: "AB"[option % 2] * 2  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="one token each"):
        broken.encode([QUESTION])


def test_a_merged_boundary_is_refused() -> None:
    """A chat template that ends in a space, before a letter that this tokenizer joins with it."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(DataError, match="cannot be told from the prompt"):
        make("prompt=letter", tokenizer=tokenizer).encode([QUESTION])


def test_chat_style_without_a_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        make("prompt=letter", "prompt.style=chat", tokenizer=tokenizer)


def test_fingerprint_changes_with_what_the_model_sees_and_with_nothing_else() -> None:
    same = make("prompt=letter").fingerprint()
    assert make("prompt=letter", "prompt.name=other").fingerprint() == same
    assert make("prompt=letter", "prompt.system=Hello").fingerprint() != same
    assert make("prompt=letter", "prompt.option='{letter}. {text}'").fingerprint() != same
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "ipython")
    assert make("prompt=letter", tokenizer=tokenizer).fingerprint() != same


def test_tokens_come_back_from_the_cache_as_they_were(tmp_path) -> None:
    prompt = make("prompt=text")
    fresh = encode_questions([QUESTION], prompt, 512, tmp_path)
    assert len(list(tmp_path.glob("*.arrow"))) == 1
    assert encode_questions([QUESTION], prompt, 512, tmp_path) == fresh == prompt.encode([QUESTION])


def test_a_question_that_is_too_long_is_refused_and_named() -> None:
    with pytest.raises(DataError, match=r"q:1: \d+ tokens"):
        encode_questions([QUESTION], make("prompt=letter"), 64)


def test_kept_tokens_that_are_torn_are_made_again(tmp_path) -> None:
    prompt = make("prompt=text")
    fresh = encode_questions([QUESTION], prompt, 512, tmp_path)
    (file,) = tmp_path.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:99])
    assert encode_questions([QUESTION], prompt, 512, tmp_path) == fresh
    assert encode_questions([QUESTION], prompt, 512, tmp_path) == fresh
