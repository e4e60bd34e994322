"""The embedded pretrained Llama: it is the real thing, plain and in 4 bits."""

import pytest
import torch
from support import config_of, sample_questions

from cyberlm.evaluation.scoring import eval_mode, generate
from cyberlm.models.loading import load_base, load_tokenizer
from cyberlm.tasks.prompts import Prompt

CPU = torch.device("cpu")
EMBEDDED = ("model=smollm2_135m", "prompt=text")


@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_it_knows_a_capital(method: str) -> None:
    config = config_of(*EMBEDDED, f"method={method}")
    loaded = load_base(config.model, config.quant, CPU)
    tokenizer = load_tokenizer(config.model)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    with eval_mode(loaded.model):
        new = generate(loaded, [ids], [tokenizer.eos_token_id], 16)[0]
    assert "Paris" in tokenizer.decode(new)


def test_its_prompt_has_the_system_message_and_ends_its_turn() -> None:
    config = config_of(*EMBEDDED)
    tokenizer = load_tokenizer(config.model)
    prompt = Prompt(config.prompt, tokenizer)
    (question,) = sample_questions(1)
    assert prompt.render(question) == (
        "<|im_start|>system\nYou are a cybersecurity expert. Answer the question briefly.<|im_end|>\n"
        f"<|im_start|>user\n{question.question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_ids_to_tokens(prompt.end_ids) == ["<|im_end|>"]
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, prompt.end_ids[-1])
