"""Every supported architecture answers and learns in batches as it does alone, by a plain pass of transformers."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from support import RUN, config_of, evaluation_of, sample_questions
from transformers import PreTrainedModel

from cyberlm.config.commands import ExportConfig, ExportForm
from cyberlm.data.batches import AnswerCollator, collate_scoring
from cyberlm.evaluation.results import read_predictions
from cyberlm.evaluation.scoring import eval_mode, generate, next_logits, option_log_probs
from cyberlm.models.loaded import LoadedModel
from cyberlm.models.loading import load_base, load_tokenizer
from cyberlm.models.methods.lora import Lora
from cyberlm.models.methods.method import attach, method_of
from cyberlm.models.tiny import tiny_tokenizer
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.export import export
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ModelError
from cyberlm.tasks.prompts import EncodedQuestion, Prompt
from cyberlm.tasks.task import Example
from cyberlm.training.fit import shares_prefix
from cyberlm.training.losses import answer_nll_sum

CPU = torch.device("cpu")
NEW = 6


VOCABULARY = len(tiny_tokenizer())
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}


def _shape(**more: object) -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.125,
        "tie_word_embeddings": False,
        "bos_token_id": VOCABULARY - 6,
        "eos_token_id": VOCABULARY - 5,
        "pad_token_id": VOCABULARY - 1,
        **more,
    }


def _of(name: str, **more: object) -> Callable[[], PreTrainedModel]:
    """A model by the name of its class in transformers, for example Qwen3 or Gemma3Text."""

    def make() -> PreTrainedModel:
        config = getattr(transformers, f"{name}Config")(**_shape(**more))
        model: PreTrainedModel = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)
        return model

    return make


def _gpt2() -> PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=2048,
        initializer_range=0.125,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout"), 0.0),
    )
    return transformers.GPT2LMHeadModel(config)


PLAIN = {
    "llama": _of("Llama"),
    "qwen2": _of("Qwen2"),
    "qwen3": _of("Qwen3", head_dim=16),
    "phi3": _of("Phi3"),
    "olmo2": _of("Olmo2"),
    "mixtral": _of("Mixtral", num_local_experts=2, sliding_window=None),
    "gpt2": _gpt2,
}
"""The cache is the keys and values of all tokens."""
WINDOWED = {
    "mistral_16": _of("Mistral", sliding_window=16),
    "mistral_64": _of("Mistral", sliding_window=64),
    "gemma3": _of("Gemma3Text", head_dim=16, sliding_window=32, layer_types=["sliding_attention", "full_attention"]),
    "llama4": _of(
        "Llama4Text",
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=32,
    ),
}
"""The cache is that up to a window, or a chunk of attention."""
RECURRENT = {
    "lfm2": _of("Lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "qwen3_next": _of("Qwen3Next", num_experts=0, mlp_only_layers=[0, 1], **LINEAR),
    "qwen3_5": _of("Qwen3_5Text", **LINEAR),
    "granite_hybrid": _of(
        "GraniteMoeHybrid",
        layer_types=["mamba", "attention"],
        num_local_experts=0,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_expand=2,
        mamba_n_groups=1,
        mamba_d_state=16,
        shared_intermediate_size=128,
    ),
    "mamba": _of("Mamba", state_size=8),
}
"""The cache holds other states."""
FAMILIES = {**PLAIN, **WINDOWED, **RECURRENT}


def save_family(name: str, folder: Path) -> Path:
    """Writes a model with random weights, and its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        FAMILIES[name]().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


PRESETS = ("qwen3", "gemma3", "mistral_64", "phi3", "olmo2")
"""Of those with a preset in conf/model/."""
QUICK = ("llama", "gpt2", "gemma3", "llama4", "lfm2")
"""A plain cache, an older layout, a window, experts, and states; the others are slow tests."""
PARAMS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module", params=PARAMS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_family(request.param, tmp_path_factory.mktemp("families") / request.param)


def opened(folder: Path, *overrides: str) -> tuple[LoadedModel, Prompt]:
    config = config_of("model=local", f"model.path={folder}", *overrides)
    return load_base(config.model, config.quant, CPU), Prompt(config.prompt, load_tokenizer(config.model))


def uneven_questions() -> list[Example]:
    """One system prompt, questions of different lengths, 2 to 4 options of 1 to 40 characters."""
    texts = ("a firewall", "some longer answer about key rotation", "TLS", "x")
    return [Example(f"u:{k}", "What is it? " * (1 + 5 * k % 7), texts[: 2 + k % 3], k % 2) for k in range(6)]


def plain_logits(causal: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Logits (T, V) of one row, without a cache."""
    return causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def plain_score(causal: PreTrainedModel, item: EncodedQuestion, option: tuple[int, ...]) -> float:
    log_probs = plain_logits(causal, [*item.prompt_ids, *option]).log_softmax(-1)
    start = len(item.prompt_ids) - 1
    return sum(float(log_probs[start + k, token]) for k, token in enumerate(option))


def batch_scores(loaded: LoadedModel, encoded: list[EncodedQuestion]) -> torch.Tensor:
    return option_log_probs(loaded, collate_scoring(encoded))


@pytest.mark.parametrize("protocol", ["letter", "text"])
def test_scores_in_a_batch_are_those_of_one_row_alone(family: tuple[str, Path], protocol: str) -> None:
    loaded, prompt = opened(family[1], f"prompt={protocol}")
    encoded = prompt.encode(uneven_questions())
    with eval_mode(loaded.model):
        together = batch_scores(loaded, encoded)
        logits = next_logits(loaded, [item.prompt_ids for item in encoded])
        for row, item in enumerate(encoded):
            expected = [plain_score(loaded.causal, item, option) for option in item.option_ids]
            assert together[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-3)
            assert torch.isinf(together[row, len(expected) :]).all()
            alone = batch_scores(loaded, [item])[0, : len(expected)]
            assert alone.tolist() == pytest.approx(expected, abs=1e-3)
            last = plain_logits(loaded.causal, list(item.prompt_ids))[-1]
            torch.testing.assert_close(logits[row], last, atol=1e-3, rtol=1e-3)


def test_completions_in_a_batch_are_those_of_one_row_alone(family: tuple[str, Path]) -> None:
    loaded, prompt = opened(family[1], "prompt=text")
    loaded.causal.generation_config.repetition_penalty = 1.5  # of the model's own settings none is used
    prompts = [item.prompt_ids for item in prompt.encode(uneven_questions())]
    prompts.append(prompts[0])
    with eval_mode(loaded.model):
        expected = []
        for ids in prompts:
            row = list(ids)
            for _ in range(NEW):
                row.append(int(plain_logits(loaded.causal, row)[-1].argmax()))
            expected.append(row[len(ids) :])
        stop = expected[2][NEW // 2]
        cut = [row[: row.index(stop)] if stop in row else row for row in expected]
        assert generate(loaded, prompts, [], NEW) == expected
        assert generate(loaded, prompts, [stop], NEW) == cut


@pytest.mark.parametrize(("protocol", "method"), [("letter", "sft"), ("text", "lora")])
def test_training_in_a_batch_gives_the_gradients_of_whole_rows(
    family: tuple[str, Path], protocol: str, method: str
) -> None:
    config = config_of("model=local", f"model.path={family[1]}", f"prompt={protocol}", f"method={method}")
    loaded, prompt = opened(family[1], f"prompt={protocol}")
    if config.method.lora is not None:
        if family[0] == "mamba":
            config.method.lora.target_modules = ["in_proj", "x_proj"]
        loaded = Lora(config.method).attach(loaded)
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    loaded.model.train()
    encoded = prompt.encode(sample_questions(5))
    share = shares_prefix(config, loaded.causal.config, encoded, len(prompt.end_ids), loaded.cacheable_tokens, CPU)
    assert share == (family[0] in PLAIN)
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]

    batch = AnswerCollator(prompt.end_ids, share_prefix=share)((encoded, 1))
    loss = answer_nll_sum(loaded, batch)
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)

    expected = torch.zeros(())
    for item in encoded:
        answer = [*item.option_ids[item.gold], *prompt.end_ids]
        log_probs = plain_logits(loaded.causal, [*item.prompt_ids, *answer])[-len(answer) - 1 : -1].log_softmax(-1)
        expected = expected - log_probs[range(len(answer)), answer].sum()
    references = torch.autograd.grad(expected, trained, allow_unused=True)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for gradient, reference in zip(gradients, references, strict=True):
        if reference is None:
            assert gradient is None
            continue
        scale = float(reference.abs().max())
        torch.testing.assert_close(gradient, reference, atol=2e-4 * scale + 1e-6, rtol=1e-3)


def test_a_model_with_dropout_of_its_own_shares_no_prefix(tmp_path: Path) -> None:
    loaded, prompt = opened(save_family("gpt2", tmp_path))
    given = (config_of(), loaded.causal.config, prompt.encode(sample_questions(2)), 1, sys.maxsize)
    assert shares_prefix(*given, CPU)
    assert not shares_prefix(*given, torch.device("cuda")), "so few tokens are not worth a pass on a GPU"
    loaded.causal.config.resid_pdrop = 0.1
    assert not shares_prefix(*given, CPU)


def test_modules_that_get_no_adapter(tmp_path: Path) -> None:
    """A router of experts; those that PEFT refuses are shown before any work."""
    loaded, _ = opened(save_family("llama4", tmp_path / "llama4"))
    adapted = Lora(config_of().method).attach(loaded)
    names = [name for name, _ in adapted.model.named_parameters() if "lora_" in name]
    assert any("shared_expert" in name for name in names) and not any("router" in name for name in names)
    loaded, _ = opened(save_family("mamba", tmp_path / "mamba"))
    with pytest.raises(ModelError, match="out_proj"):
        Lora(config_of().method).attach(loaded)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name != "qwen3" else name for name in PRESETS]
)
def test_a_family_with_a_preset_trains_is_evaluated_and_exported(name: str, tmp_path: Path) -> None:
    run, local = tmp_path / "run", ("model=local", f"model.path={save_family(name, tmp_path / 'm')}")
    train(config_of(*local, *RUN, "evaluation=default", "trainer.max_steps=4"), run)
    evaluate(evaluation_of(f"run={run}"), tmp_path / "again")
    first, again = (read_predictions(folder / "predictions.jsonl") for folder in (run, tmp_path / "again"))
    assert first["base"] != first["tuned"]
    for model in ("base", "tuned"):
        for one, other in zip(first[model], again[model], strict=True):
            assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-5)
    out = export(ExportConfig(run=str(run), to=ExportForm.merged, accelerator="cpu"))
    assert json.loads((out / "export.json").read_text())["agreement"][0]["flips"] == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_adapter_method_fits_a_family_with_a_preset(name: str, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path)
    ids = torch.arange(5, 45)[None]
    for method in ("lora", "miss", "oft", "shira", "randlora", "ia3", "ln_tuning"):
        config = config_of("model=local", f"model.path={folder}", f"method={method}", "quant=none")
        base = load_base(config.model, config.quant, CPU)
        with eval_mode(base.model):
            expected = base.model(input_ids=ids).logits
        loaded = attach(base, config)
        with eval_mode(loaded.model), method_of(config.method).base_view(loaded):
            assert torch.equal(loaded.model(input_ids=ids).logits, expected), method
        loss = loaded.head(loaded.backbone(input_ids=ids, use_cache=False).last_hidden_state).square().mean()
        loss.backward()
        trained = [p for p in loaded.model.parameters() if p.requires_grad]
        assert trained and any(p.grad is not None and p.grad.abs().max() > 0 for p in trained), method


def test_logits_that_are_more_than_the_heads_output_are_refused(tmp_path: Path) -> None:
    for make in (_of("Cohere", logit_scale=0.25), _of("Granite", logits_scaling=8.0)):
        make().save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="scales or caps its logits"):
            opened(tmp_path)


def test_the_reach_of_a_cache_is_found_when_a_model_is_loaded(family: tuple[str, Path]) -> None:
    loaded, _ = opened(family[1])
    windows = {"mistral_16": 16, "mistral_64": 64, "gemma3": 32, "llama4": 32}
    assert loaded.cacheable_tokens == windows.get(family[0], 0 if family[0] in RECURRENT else sys.maxsize)
