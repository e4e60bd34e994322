"""The embedded pretrained Llama: it is the real thing, plain and in 4 bits, and its adapter opens with PEFT alone."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support import MULTIPLE_CHOICE, compose, save

from cyberlm.config.rules import build_config
from cyberlm.config.schema import TrainConfig
from cyberlm.data.sources import load_sources
from cyberlm.evaluation.scoring import eval_mode, generate
from cyberlm.models.loading import load_base, load_tokenizer
from cyberlm.models.methods.method import attach
from cyberlm.tasks.prompts import Prompt
from cyberlm.training.callbacks.meters import CostMeter
from cyberlm.training.fit import fit

CPU = torch.device("cpu")


def config_of(*overrides: str) -> TrainConfig:
    return build_config(compose("logger=none", "callbacks=none", *overrides), TrainConfig)


@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=pytest.mark.slow)])
def test_it_knows_a_capital(method: str) -> None:
    config = config_of(f"method={method}")
    loaded = load_base(config.model, config.quant, CPU)
    tokenizer = load_tokenizer(config.model)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    with eval_mode(loaded.model):
        new = generate(loaded, [ids], [tokenizer.eos_token_id], 16)[0]
    assert "Paris" in tokenizer.decode(new)


def test_its_prompt_has_the_system_message_and_ends_its_turn() -> None:
    config = config_of()
    tokenizer = load_tokenizer(config.model)
    prompt = Prompt(config.prompt, tokenizer)
    question = load_sources(config.data, MULTIPLE_CHOICE)[0].questions[0]
    assert prompt.render(question) == (
        "<|im_start|>system\nYou are a cybersecurity expert. Answer the question briefly.<|im_end|>\n"
        f"<|im_start|>user\n{question.question}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.convert_ids_to_tokens(prompt.end_ids) == ["<|im_end|>"]


def test_its_adapter_opens_with_peft_alone_and_answers_the_same(tmp_path: Path) -> None:
    config = config_of("data.micro_batch_size=2", "optim.learning_rate=1e-3", "method.lora.rank=4")
    questions = load_sources(config.data, MULTIPLE_CHOICE)[0].questions[:4]
    loaded = attach(load_base(config.model, config.quant, CPU), config)
    prompt = Prompt(config.prompt, load_tokenizer(config.model))
    encoded = prompt.encode(questions)
    fit(config, tmp_path, loaded, prompt, {"train": encoded, "validation": encoded[:2]}, [], CostMeter())
    folder = save(config, loaded, prompt, tmp_path)

    base = load_base(config.model, config.quant, CPU)
    ids = torch.tensor([encoded[0].prompt_ids])
    with eval_mode(base.model):
        untuned = base.model(input_ids=ids).logits
    outside = PeftModel.from_pretrained(base.causal, str(folder)).eval()
    with eval_mode(loaded.model), torch.inference_mode():
        ours = loaded.model(input_ids=ids).logits
        torch.testing.assert_close(ours, outside(input_ids=ids).logits, atol=1e-4, rtol=1e-5)
        assert not torch.allclose(ours, untuned, atol=1e-2)  # it did learn something
