"""Base models, methods and saved models: what trains, what is refused, and what scoring and saving must not change."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from support import config_of, evaluation_of, save, short_questions, tiny
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cyberlm.config.commands import ExportConfig, ExportForm
from cyberlm.config.schema import Dtype
from cyberlm.evaluation.results import read_results
from cyberlm.evaluation.scoring import eval_mode
from cyberlm.models import gguf_import, model_files
from cyberlm.models.loading import load_base, load_tokenizer, pick_device, weights_dtype
from cyberlm.models.methods.adapters import skip_input_casts
from cyberlm.models.methods.lora import Lora
from cyberlm.models.model_files import locate, sha256_of
from cyberlm.models.saving import read_prompt
from cyberlm.models.tiny import tiny_model, tiny_tokenizer
from cyberlm.runs import train as training
from cyberlm.runs.evaluate import evaluate
from cyberlm.runs.export import export
from cyberlm.runs.open_run import load_tuned
from cyberlm.runs.train import train
from cyberlm.runtime.errors import ModelError, RunError
from cyberlm.runtime.files import write_json

CPU = torch.device("cpu")
FEW = (
    *("data.max_train=8", "data.max_validation=4", "data.max_test=4", "trainer.max_steps=2"),
    *("evaluation.base=false", "evaluation.generate=false"),
)


def model_folder(folder: Path, model: PreTrainedModel | None = None) -> Path:
    """Writes a model with the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    (model or tiny_model(config_of().model.tiny, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def local(folder: Path) -> tuple[str, str]:
    return "model=local", f"model.path={folder}"


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("plain") / "m")


def test_a_converted_file_is_kept_for_the_version_that_converted_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path))
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF, but converted before")
    kept = tmp_path / "models" / f"a-{sha256_of([file])[:16]}-transformers-{transformers.__version__}"
    kept.mkdir(parents=True)
    config = config_of(*local(file)).model
    assert locate(config).path == str(kept)
    monkeypatch.setattr(gguf_import.transformers, "__version__", "0.0")
    with pytest.raises(ModelError, match=r"a\.gguf"):
        locate(config)


def test_a_local_folder_keeps_its_weights_which_are_hashed_once_until_they_change(
    plain_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(plain_folder, tmp_path / "m"))
    config, tokenizer = config_of(*local(folder)), tiny_tokenizer()
    first = locate(config.model).digest
    hashed = []
    monkeypatch.setattr(model_files, "sha256_of", lambda files: hashed.append(files) or "another")
    loaded = load_base(config.model, config.quant, CPU)
    assert loaded.weights_hash == locate(config.model).digest == first and len(first) == 64
    assert not hashed
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model = tiny_model(config_of().model.tiny, len(tokenizer))
    assert torch.equal(torch.rand(3), expected), "a tiny model has random numbers of its own"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.causal.parameters(), strict=True))
    assert load_tokenizer(config.model)("hello")["input_ids"] == tokenizer("hello")["input_ids"]
    os.utime(folder / "model.safetensors", (0, 0))
    assert locate(config.model).digest == "another"


def test_weights_are_float32_where_they_are_trained_and_on_cpu() -> None:
    config, gpu = config_of("method=sft"), torch.device("cuda")
    assert weights_dtype(config.model, gpu, trains_all_weights=False) == torch.bfloat16
    assert weights_dtype(config.model, gpu, trains_all_weights=True) == torch.float32
    assert load_base(config.model, config.quant, CPU).causal.dtype == torch.float32
    config.model.dtype = Dtype.bfloat16
    assert load_base(config.model, config.quant, CPU).causal.dtype == torch.bfloat16


def test_scoring_a_4bit_base_leaves_its_weights_alone() -> None:
    """bitsandbytes repacks weights in eval mode on some CPUs, lossily: the base would change before it is trained."""
    loaded, prompt = tiny(config_of("method=qlora"))
    ids = torch.tensor([prompt.encode(short_questions(1))[0].prompt_ids])
    weights = [m.weight for m in loaded.causal.modules() if hasattr(getattr(m, "weight", None), "quant_state")]
    loaded.model.train()
    before = loaded.model(input_ids=ids).logits.detach()
    stored = [weight.detach().clone() for weight in weights]
    with eval_mode(loaded.model):
        scored = loaded.model(input_ids=ids).logits
    assert torch.equal(before, loaded.model(input_ids=ids).logits.detach())
    torch.testing.assert_close(before, scored, atol=1e-6, rtol=0)
    assert stored and all(torch.equal(old, new) for old, new in zip(stored, weights, strict=True))


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_files.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"the Hugging Face hub cannot be reached \(ConnectError\)"):
        load_tokenizer(config_of("model=llama3_8b").model)

    def gated() -> None:
        raise OSError("You are trying to access a gated repo.")  # as transformers raises it

    with pytest.raises(ModelError, match=r"gated repo(.|\n)*https://huggingface.co/meta-llama(.|\n)*hf auth login"):
        model_files.explain_errors(config_of("model=llama3_8b").model, gated)


def test_a_gpu_attends_without_plans_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert pick_device("auto").type == "cuda"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_tied_targets_are_refused() -> None:
    config = config_of("model.tiny.tie_word_embeddings=true", "model.tied_embeddings=null")
    config.method.lora.target_modules = ["lm_head", "q_proj"]
    with pytest.raises(ModelError, match="share"):
        Lora(config.method).attach(load_base(config.model, config.quant, CPU))


def test_tokens_without_an_embedding_or_a_place_are_refused_before_any_work(plain_folder: Path, tmp_path: Path) -> None:
    """Not a padding token, which never goes in."""
    folder = Path(shutil.copytree(plain_folder, tmp_path / "m"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    train(config_of(*local(folder), *FEW), tmp_path / "unused")
    assert (tmp_path / "unused" / "adapter").is_dir()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|eot_id|>", "[PAD]")
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'\[PAD\]' is number 288\n +allowed: below 288"):
        train(config_of(*local(folder), *FEW), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(ModelError, match="no embedding"):
        evaluate(evaluation_of("prompt=letter", "data=sample", "data.max_test=4", *local(folder)), tmp_path / "again")
    shape = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(ModelError, match="max_position_embeddings=64"):
        train(config_of(*local(model_folder(tmp_path / "short", GPT2LMHeadModel(shape))), *FEW), tmp_path / "run")


def test_adapters_take_narrow_inputs_as_they_are_and_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's own layers under autocast; the conversions to float32 that are left out changed no bit."""
    loaded, _ = tiny(config_of("method=lora", "model.dtype=bfloat16"))
    for module in loaded.model.modules():
        if isinstance(module, LoraLinear):
            module.__class__ = LoraLinear
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    loaded.model.train()
    converted: list[torch.dtype] = []
    cast = LoraLinear._cast_input_dtype
    monkeypatch.setattr(
        LoraLinear, "_cast_input_dtype", lambda *given: converted.append(cast(*given).dtype) or cast(*given)
    )
    outputs, gradients = [], []
    for _ in range(2):
        loaded.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(loaded.model(input_ids=torch.arange(24)[None]).logits)
        outputs[-1].float().square().mean().backward()
        gradients.append([p.grad for p in loaded.model.parameters() if p.requires_grad])
        skip_input_casts(loaded.model)
    half = len(converted) // 2
    assert set(converted[:half]) == {torch.float32} and set(converted[half:]) == {torch.bfloat16}
    assert torch.equal(*outputs)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_fully_tuned_run_opens_without_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base's file is hashed, not loaded; another one is refused. The tuned model answers as it did."""
    base, run = model_folder(tmp_path / "base"), tmp_path / "run"
    config = config_of("method=sft", *local(base))
    loaded, prompt = tiny(config)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.01)
    assert read_prompt(save(config, loaded, prompt, run)) == prompt.identity()
    write_json(run / "provenance.json", {"weights": loaded.weights_hash})
    opened: list[str] = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda path, **options: opened.append(path) or load(path, **options)
    )
    again, ids = load_tuned(config, run, CPU), torch.arange(8)[None]
    assert opened == [str(run / "model")]
    with eval_mode(loaded.model), eval_mode(again.model):
        torch.testing.assert_close(again.model(input_ids=ids).logits, loaded.model(input_ids=ids).logits)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match="base weights are not those"):
        load_tuned(config, run, CPU)


def test_a_base_that_lies_in_four_bits_is_tuned_with_qlora_and_exported(plain_folder: Path, tmp_path: Path) -> None:
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    stored = AutoModelForCausalLM.from_pretrained(
        plain_folder, quantization_config=four_bits, device_map={"": "cpu"}, dtype=torch.float32
    )
    folder = model_folder(tmp_path / "m", stored)
    for method in ("lora", "sft"):
        with pytest.raises(ModelError, match=r"quantised on the disk \(nf4\)"):
            train(config_of(*local(folder), *FEW, f"method={method}"), tmp_path / method)
    run = tmp_path / "run"
    train(config_of(*local(folder), *FEW, "method=qlora", "optim.learning_rate=1e-2"), run)
    export(ExportConfig(run=str(run), to=ExportForm.merged, accelerator="cpu", questions=8))
    assert "quantization_config" not in json.loads((run / "export" / "merged" / "config.json").read_text())


def test_generation_settings_that_cannot_be_saved_are_dropped_and_named(tmp_path: Path, capsys) -> None:
    folder = model_folder(tmp_path / "m")
    settings = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    given = (*local(folder), *FEW)
    train(config_of(*given, "method=sft"), tmp_path / "sft")
    assert " ".join(capsys.readouterr().out.split()).count("temperature=0.9, top_p=0.6") == 1
    kept = json.loads((tmp_path / "sft" / "model" / "generation_config.json").read_text())
    assert kept["repetition_penalty"] == 1.1 and "temperature" not in kept
    train(config_of(*given, "method=lora"), tmp_path / "lora")
    export(ExportConfig(run=str(tmp_path / "lora"), to=ExportForm.merged, accelerator="cpu", questions=8))
    assert (tmp_path / "lora" / "export" / "merged" / "generation_config.json").is_file()


def full_disk(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("method", "writer"), [("lora", PeftModel), ("sft", PreTrainedModel), ("lora", None)])
def test_saving_and_room_on_the_disk_are_tried_before_the_first_step(method, writer, tmp_path, monkeypatch) -> None:
    words = "No space left on device"
    if writer is None:
        free, words = shutil.disk_usage(tmp_path)._replace(free=1000), "1,000 bytes free"
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    else:
        monkeypatch.setattr(writer, "save_pretrained", full_disk)
    with pytest.raises(RunError, match=words):
        train(config_of(f"method={method}", *FEW), tmp_path)
    assert not [path for name in ("checkpoints", "*model*", "*adapter*") for path in tmp_path.glob(name)]


def test_what_was_trained_is_kept_when_saving_fails_and_saved_when_resumed(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(training, "save_tuned", full_disk)
        with pytest.raises(RunError, match=r"trainer\.resume=") as caught:
            train(config_of(*FEW), tmp_path)
    assert "No space left" in caught.value.screen() and list((tmp_path / "checkpoints").glob("step_*.ckpt"))
    assert not (tmp_path / "adapter").exists()
    killed = tmp_path / ".adapter-k1ll3d"
    killed.mkdir()
    typed = OmegaConf.create({"overrides": {"task": [f"trainer.resume={tmp_path}"]}})
    monkeypatch.setattr(HydraConfig, "get", lambda: typed)
    train(config_of(f"trainer.resume={tmp_path}"), tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and not killed.exists()
    assert read_results(tmp_path).steps == 1
