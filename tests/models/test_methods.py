"""Every adapter method, on whole weights and on nf4: trains, reloads to the last bit, merges, leaves the base alone."""

from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import torch
from support import config_of, evaluation_of, sample_questions, save, tiny
from torch import Tensor

from cyberlm.config.schema import TrainConfig
from cyberlm.data.batches import collate_scoring
from cyberlm.evaluation.results import read_predictions
from cyberlm.evaluation.scoring import eval_mode, generate, option_log_probs
from cyberlm.export.merge import load_exported_adapter
from cyberlm.models.loaded import LoadedModel, quiet, trainable_names
from cyberlm.models.loading import BaseModel, load_base
from cyberlm.models.methods.adapters import open_adapter
from cyberlm.models.methods.method import method_of
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.open_run import base_of, load_tuned
from cyberlm.runtime.errors import ConfigError, ModelError
from cyberlm.runtime.files import write_json
from cyberlm.training.optim import build_optimizer

CPU = torch.device("cpu")
IDS = torch.arange(5, 45)[None]

LORA = {
    "lora": "method=lora",
    "gaussian": "method.lora.init=gaussian",
    "pissa": "method.lora.init=pissa",
    "olora": "method.lora.init=olora",
    "rslora": "method.lora.use_rslora=true",
    "dora": "method.lora.use_dora=true",
    "loraplus": "optim.loraplus_lr_ratio=16",
}
OTHERS = {name: f"method={name}" for name in ("miss", "oft", "shira", "randlora", "ia3", "ln_tuning", "prompt_tuning")}
METHODS = LORA | OTHERS
CHANGE_BASE = ("pissa", "olora")
CASES = [(name, quant) for quant in ("none", "nf4") for name in METHODS if quant == "none" or name not in CHANGE_BASE]


def logits(model: torch.nn.Module) -> Tensor:
    """Logits (1, T, V) by a forward pass of PEFT's, or of a plain model; those of virtual tokens are left out."""
    with eval_mode(model):
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]


def learn(loaded: LoadedModel, config: TrainConfig, steps: int = 5) -> list[float]:
    """Losses of a few steps on one text, by the model's halves as training calls them."""
    optimizer = build_optimizer(loaded.model, config.optim, fused=False)
    loaded.model.train()
    losses = []
    for _ in range(steps):
        hidden = loaded.backbone(input_ids=IDS, use_cache=False).last_hidden_state
        loss = torch.nn.functional.cross_entropy(loaded.head(hidden)[0, :-1], IDS[0, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(("name", "quant"), CASES)
def test_an_adapter_trains_reloads_and_merges(name: str, quant: str, tmp_path: Path) -> None:
    config = config_of(METHODS[name], f"quant={quant}", "optim.learning_rate=5e-3")
    method = method_of(config.method)
    base = logits(load_base(config.model, config.quant, CPU).model)
    loaded, prompt = tiny(config)
    assert method.keeps_base == (name not in CHANGE_BASE)
    assert sum(p.numel() for p in loaded.model.parameters() if p.requires_grad) > 0
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters() if p.requires_grad)
    losses = learn(loaded, config)
    assert losses[-1] < losses[0] - 0.01

    tuned = logits(loaded.model)
    assert (tuned - base).abs().max() > 1e-3
    if method.keeps_base:
        with method.base_view(loaded):
            assert torch.equal(logits(loaded.causal), base)
        assert torch.equal(logits(loaded.model), tuned)

    folder = save(config, loaded, prompt, tmp_path)
    assert not any(str(Path.home()) in file.read_text() for file in folder.glob("*.json"))
    write_json(tmp_path / "provenance.json", {"weights": loaded.weights_hash})
    again = load_tuned(config, tmp_path, CPU)
    assert torch.equal(logits(again.model), tuned)
    plain = load_exported_adapter(load_base(config.model, config.quant, CPU), folder).model
    torch.testing.assert_close(logits(plain), tuned, atol=1e-5, rtol=0)
    if not method.can_merge:
        return
    merged = method.merge(base_of(config, tmp_path, CPU), folder)
    assert not any("lora" in name or "base_layer" in name for name, _ in merged.model.named_parameters())
    torch.testing.assert_close(logits(merged.model), tuned, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overrides", ["method.lora.init=pissa", "method=prompt_tuning"])
def test_a_run_scores_the_base_exactly_and_opens_again(overrides: str, finished_run, lora_run, tmp_path: Path) -> None:
    run = finished_run(overrides)
    first, plain = (read_predictions(folder / "predictions.jsonl") for folder in (run, lora_run))
    assert first["base"] == plain["base"] and first["tuned"] != first["base"]
    evaluate(evaluation_of("evaluation.max_new_tokens=4", f"run={run}"), tmp_path / "again")
    again = {row.hash: row for row in read_predictions(tmp_path / "again" / "predictions.jsonl")["tuned"]}
    for row in first["tuned"]:
        assert again[row.hash].option_logprobs == pytest.approx(row.option_logprobs, abs=1e-6)
        assert again[row.hash].generated == row.generated


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("method=qlora method.lora.init=pissa", "would be rounded to 4 bits"),
        ("method=qlora method.lora.init=olora", "allowed: default or gaussian; or quant=none"),
        ("method=ia3 optim.loraplus_lr_ratio=16", "which has no A and B"),
        ("method=miss trainer.strategy=fsdp2", "fsdp2 with method=miss"),
        (
            "method=miss +method.settings.target_module=[q_proj]",
            r"no setting method\.settings\.target_module\. Did",
        ),
        ("method=miss method.settings.peft_type=LOHA", r"peft_type=LOHA\n +allowed: IA3"),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_any_work(overrides: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        method_of(config_of(*overrides.split()).method)


def test_lora_plus_gives_b_its_own_rate() -> None:
    loaded, _ = tiny(config := config_of("optim.loraplus_lr_ratio=4", "optim.learning_rate=1e-3"))
    optimizer = build_optimizer(loaded.model, config.optim, fused=False)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert set(named) == set(trainable_names(loaded.model))
    assert all(rate == (4e-3 if "lora_B" in name else 1e-3) for name, rate in named.items())


Q_V = {"target_modules": ["q_proj", "v_proj"]}
FOREIGN = {
    "lora": peft.LoraConfig(r=2, modules_to_save=["embed_tokens", "lm_head"], **Q_V),
    "lora_biases": peft.LoraConfig(r=2, bias="all", rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 32}, **Q_V),
    "lora_embeddings": peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "lora_expression": peft.LoraConfig(r=2, use_dora=True, use_rslora=True, target_modules=r".*\.0\..*(q|down)_proj"),
    "lora_tokens": peft.LoraConfig(r=2, trainable_token_indices=[5, 6], **Q_V),
    "loha": peft.LoHaConfig(r=2, **Q_V),
    "lokr": peft.LoKrConfig(r=2, **Q_V),
    "boft": peft.BOFTConfig(boft_block_size=4, **Q_V),
    "hra": peft.HRAConfig(r=2, **Q_V),
    "vera": peft.VeraConfig(r=4, **Q_V),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **Q_V),
    "fourierft": peft.FourierFTConfig(n_frequency=10, **Q_V),
    "trainable_tokens": peft.TrainableTokensConfig(token_indices=[5, 6]),
    "ia3": peft.IA3Config(),
    "ln_tuning": peft.LNTuningConfig(),
    "prompt_tuning": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "p_tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}
OUTSIDE = {
    "prefix_tuning": peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "alora": peft.LoraConfig(r=2, alora_invocation_tokens=[7, 8], task_type="CAUSAL_LM", **Q_V),
}
"""Those that compute outside the layers."""


def foreign_adapter(config: peft.PeftConfig, folder: Path) -> Tensor:
    """Saves an adapter of which every number was changed, as PEFT alone makes it; returns its logits.

    Embeddings that it stands on are changed and saved, too.
    """
    torch.manual_seed(0)
    run = config_of()
    with quiet():
        model = peft.get_peft_model(load_base(run.model, run.quant, CPU).causal, config)
        with torch.no_grad():
            saved = "lm_head" in getattr(config, "target_modules", ())
            for name, parameter in model.named_parameters():
                if parameter.requires_grad or (saved and "embed_tokens" in name):
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(str(folder))
        return logits(model)


@pytest.mark.parametrize("name", [*FOREIGN, *OUTSIDE])
def test_an_adapter_that_peft_alone_has_made_is_opened_or_refused(name: str, tmp_path: Path) -> None:
    expected, config = foreign_adapter((FOREIGN | OUTSIDE)[name], tmp_path), config_of()
    base = BaseModel(config.model, config.quant, CPU, lambda _: None)
    if name in OUTSIDE:
        with pytest.raises(ModelError, match="This adapter cannot be scored here"):
            open_adapter(base, tmp_path)
        return
    opened = open_adapter(base, tmp_path)
    with eval_mode(opened.model):
        found = opened.head(opened.backbone(input_ids=IDS, use_cache=False).last_hidden_state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if name.startswith("lora"):
        merged = opened.model.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


def test_virtual_tokens_are_scored_and_generated_behind_as_peft_does() -> None:
    """Prompts of several lengths, a shared beginning, options behind a cache: all as one row alone, by PEFT's pass."""
    loaded, prompt = tiny(config_of("method=prompt_tuning", "prompt=text"))
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
    encoded = prompt.encode(sample_questions(3))

    def following(ids: Sequence[int]) -> Tensor:
        given = torch.tensor([ids])
        return loaded.model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0, -len(ids) :]

    with eval_mode(loaded.model):
        scores = option_log_probs(loaded, collate_scoring(encoded))
        completions = generate(loaded, [item.prompt_ids for item in encoded], [], 4)
        for row, item in enumerate(encoded):
            for k, option in enumerate(item.option_ids):
                found = following([*item.prompt_ids, *option])[-len(option) - 1 : -1].log_softmax(-1)
                assert float(scores[row, k]) == pytest.approx(float(found[range(len(option)), option].sum()), abs=1e-3)
            ids = list(item.prompt_ids)
            for _ in range(4):
                ids.append(int(following(ids)[-1].argmax()))
            assert completions[row] == ids[-4:]
