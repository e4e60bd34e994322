"""Exports: what is written loads without cyberlm and answers as the run's own model does, or is not written at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support import config_of, train_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config
from typed import type_line

from cyberlm.config.commands import ExportConfig, ExportForm, GgufType
from cyberlm.config.saved import config_of as config_of_run
from cyberlm.evaluation.agreement import compare_answers
from cyberlm.evaluation.results import read_predictions
from cyberlm.evaluation.scoring import eval_mode
from cyberlm.export import gguf as gguf_export
from cyberlm.export.gguf import CONVERTER, PRE_TOKENIZERS, check_tokens, load_gguf, write_gguf, write_llama
from cyberlm.models.methods.method import saved_folder
from cyberlm.models.tiny import tiny_model, tiny_tokenizer
from cyberlm.runs.export import export
from cyberlm.runs.open_run import load_tuned
from cyberlm.runtime.errors import ModelError, RunError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
IDS = torch.arange(5, 45)[None]
RUNS = {
    **{name: (f"method={name}",) for name in ("sft", "lora", "qlora")},
    "dora": ("method=lora", "method.lora.use_dora=true", "method.lora.target_modules=[q_proj,down_proj]"),
}
QUICK = ("evaluation=default", "evaluation.base=false", "evaluation.generate=false")


@pytest.fixture(autouse=True)
def _no_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)


@pytest.fixture
def run(request: pytest.FixtureRequest, finished_run: Callable[..., Path]) -> Path:
    return finished_run(*RUNS[request.param])


def exported(run: Path, out: Path, to: str = "merged", **values) -> Path:
    return export(ExportConfig(run=str(run), to=ExportForm(to), out=str(out), accelerator="cpu", **values))


def tuned_logits(run: Path) -> torch.Tensor:
    """Of the run's own model: the adapter on its base, plain or in 4 bits."""
    config = config_of_run(run)
    loaded = load_tuned(config, run, CPU)
    with eval_mode(loaded.model):
        return loaded.model(input_ids=IDS).logits


def plain_logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("run", RUNS, indirect=True)
def test_merged_folder_is_plain_transformers_and_answers_the_same(run: Path, tmp_path: Path):
    folder = exported(run, tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is LlamaForCausalLM
    torch.testing.assert_close(plain_logits(model), tuned_logits(run), atol=2e-5, rtol=0)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert all(file.suffix in (".json", ".safetensors", ".jinja", ".md") for file in folder.iterdir())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|end_of_text|>"])
    tuned = saved_folder(config_of_run(run).method, run)
    assert (folder / "prompt.json").read_text() == (tuned / "prompt.json").read_text()
    record = json.loads((folder / "export.json").read_text())
    assert record["agreement"][0]["flips"] == [] and record["agreement"][0]["questions"] == 16
    assert 0 <= record["agreement"][0]["largest_logit_difference"] < 1e-4
    card = (folder / "README.md").read_text()
    shown = ("library_name: transformers", "licence: none (random weights)", "(95% ", "optimizer steps", "## Cost")
    assert all(words in card for words in (*shown, "0 of 16 answers differ"))


def test_exported_adapter_is_plain_peft(lora_run: Path, sft_run: Path, tmp_path: Path):
    folder = exported(lora_run, tmp_path / "a", "adapter")
    name = "adapter_model.safetensors"
    assert (folder / name).read_bytes() == (lora_run / "adapter" / name).read_bytes()
    config = config_of_run(lora_run)
    model = PeftModel.from_pretrained(tiny_model(config.model.tiny, len(tiny_tokenizer())), str(folder))
    torch.testing.assert_close(plain_logits(model), tuned_logits(lora_run), atol=1e-5, rtol=0)
    assert "library_name: peft" in (folder / "README.md").read_text()
    with pytest.raises(RunError, match="without an adapter"):
        exported(sft_run, tmp_path / "b", "adapter")


@pytest.mark.parametrize(("kind", "atol"), [("f32", 1e-5), ("f16", 1e-2), ("bf16", 1e-1), ("q8_0", 3e-1)])
def test_gguf_file_reads_back_as_the_merged_model(kind: str, atol: float, qlora_run: Path, tmp_path: Path):
    folder = exported(qlora_run, tmp_path / "g", "gguf", gguf_type=GgufType(kind), max_flip_share=1.0)
    assert {file.name for file in folder.iterdir()} == {"model.gguf", "prompt.json", "export.json", "README.md"}
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    torch.testing.assert_close(plain_logits(model), tuned_logits(qlora_run), atol=atol, rtol=0)
    reader = gguf.GGUFReader(folder / "model.gguf")
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {kind.upper(), "F32"}
    if kind == "f32":
        merged = load_file(exported(qlora_run, tmp_path / "m") / "model.safetensors")
        assert all(torch.equal(value, merged[name]) for name, value in model.state_dict().items())
        check_metadata(reader, qlora_run.name)


def check_metadata(reader: gguf.GGUFReader, name: str) -> None:
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF")}
    tokenizer = tiny_tokenizer()
    assert said["general.architecture"] == "llama" and said["general.name"] == name
    assert (said["llama.attention.head_count"], said["llama.attention.head_count_kv"]) == (4, 2)
    assert said["llama.vocab_size"] == len(tokenizer) == len(said["tokenizer.ggml.tokens"])
    assert said["tokenizer.ggml.pre"] == "gpt-2" and said["tokenizer.chat_template"] == tokenizer.chat_template
    assert said["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert said["tokenizer.ggml.tokens"][tokenizer.eos_token_id] == "<|end_of_text|>"
    types = said["tokenizer.ggml.token_type"]
    assert types[tokenizer.eos_token_id] == gguf.TokenType.CONTROL and types[0] == gguf.TokenType.NORMAL
    assert said["tokenizer.ggml.merges"][0] == "Ġ A"


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_keeps_the_rotary_frequencies_of_llama_3_1(tied: bool, tmp_path: Path):
    """The factors are those of Meta's formula; without them, the file would answer otherwise."""
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer) + 3}  # rows that no token has
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**shape, **ends, rope_parameters=rope, tie_word_embeddings=tied, initializer_range=0.2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    saved(tmp_path / "m", model)
    file = tmp_path / "model.gguf"
    write_llama(tmp_path / "m", file, GgufType.f32, "m", "none")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert ("output.weight" in tensors) != tied
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    waves = 2 * np.pi / plain
    smooth = (64 / waves - 1) / 3
    factors = np.where(waves < 16, 1, np.where(waves > 64, 8, 1 / ((1 - smooth) / 8 + smooth)))
    np.testing.assert_allclose(tensors["rope_freqs.weight"].data, factors, rtol=1e-5)
    again = load_gguf(file, CPU, torch.float32, tmp_path / "m")
    torch.testing.assert_close(plain_logits(again.causal), plain_logits(model), atol=1e-5, rtol=0)
    check_tokens(file, tokenizer)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_gguf_names_how_text_is_cut_and_its_template(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps, ignores_merges = PRE_TOKENIZERS[name]
    steps = [{"trim_offsets": True, **step} if step["type"] == "ByteLevel" else step for step in steps]
    cut = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    model = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"] | {"ignore_merges": ignores_merges}
    folder, file = saved(tmp_path / "m", pre_tokenizer=cut, model=model), tmp_path / "x.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = tokenizer.chat_template
    tokenizer.chat_template = {"default": template, "tool_use": template.replace("user", "tool")}
    tokenizer.save_pretrained(folder)
    write_llama(folder, file, GgufType.f16, "x", "none")
    assert gguf.GGUFReader(file).get_field("tokenizer.ggml.pre").contents() == name
    assert gguf.GGUFReader(file).get_field("tokenizer.chat_template").contents() == template
    check_tokens(file, tokenizer)
    other = next(given for given in PRE_TOKENIZERS if given != name)
    monkeypatch.setattr(gguf_export, "pre_tokenizer", lambda described: other)
    with pytest.raises(ModelError, match=f"cut as by {name}"):
        check_tokens(file, tokenizer)


def saved(folder: Path, network=None, **changes) -> Path:
    """A model's folder whose tokenizer.json or config is changed."""
    tokenizer = tiny_tokenizer()
    (network or tiny_model(config_of().model.tiny, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(described | changes))
    return folder


def test_what_only_llama_cpp_can_write_names_its_converter(tmp_path: Path):
    qwen = AutoModelForCausalLM.from_config(
        Qwen2Config(vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    spaced = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    folders = {
        "model_type is qwen2": saved(tmp_path / "q", qwen),
        "cuts text in a way": saved(tmp_path / "t", pre_tokenizer=spaced),
        "a way that has no name": saved(tmp_path / "n", normalizer={"type": "NFC"}),
    }
    for words, folder in folders.items():
        with pytest.raises(ModelError, match=r"only by llama\.cpp's converter") as caught:
            write_gguf(folder, tmp_path / "x.gguf", GgufType.f16, "x", "none")
        assert words in caught.value.screen()
        assert "LLAMA_CPP_DIR=FOLDER" in caught.value.screen() and CONVERTER in caught.value.screen()
        assert not (tmp_path / "x.gguf").exists()


TORN = """
import json
stored = Path(folder) / "tokenizer.json"
described = json.loads(stored.read_text())
described["model"]["merges"] = described["model"]["merges"][13:]
stored.write_text(json.dumps(described))
(Path(folder) / "chat_template.jinja").write_text("{{ messages }}")
"""
"""A converter that loses half of the merges, and the chat template."""


@pytest.mark.slow
def test_an_installed_converter_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora_run: Path):
    script = tmp_path / CONVERTER
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(ModelError, match=f"holds no {CONVERTER}"):
        exported(lora_run, tmp_path / "g", "gguf")
    script.write_text("import sys; print('tokens of Klingon', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ModelError, match=r"failed \(exit code 3\):\n  - tokens of Klingon"):
        exported(lora_run, tmp_path / "g", "gguf")
    script.write_text(
        "import sys; from pathlib import Path; from cyberlm.config.commands import GgufType\n"
        "from cyberlm.export.gguf import write_llama\n"
        "folder, _, file, _, kind = sys.argv[1:]\n"
        "write_llama(Path(folder), Path(file), GgufType(kind), 'by the converter', 'none')\n"
    )
    right = script.read_text()
    script.write_text(right.replace("write_llama(", TORN + "write_llama("))
    with pytest.raises(ModelError, match="is not the run's own") as caught:
        exported(lora_run, tmp_path / "g", "gguf")
    assert "merges are others" in caught.value.screen() and "chat template" in caught.value.screen()
    assert not (tmp_path / "g").exists() and list(tmp_path.glob(".*-*")) == []
    script.write_text(right)
    folder = exported(lora_run, tmp_path / "g", "gguf", gguf_type=GgufType.q8_0)
    reader = gguf.GGUFReader(folder / "model.gguf")
    assert reader.get_field("general.name").contents() == "by the converter"
    assert "Q8_0" in {tensor.tensor_type.name for tensor in reader.tensors}


def test_flips_are_shown_and_too_many_leave_nothing(lora_run: Path, tmp_path: Path, capsys):
    """The run's record is changed, so that the adapter no longer answers what it says."""
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    rows = read_predictions(run / "predictions.jsonl")["tuned"]
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for line in [line for line in lines if line["model"] == "tuned"][:3]:
        line["choice"] = (line["choice"] + 1) % 4
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RunError, match="3 of 16 answers") as caught:
        exported(run, run / "export" / "a", "adapter")
    printed = capsys.readouterr().out
    assert all(f"{row.id}: " in caught.value.screen() and f"{row.id}: " in printed for row in rows[:3])
    assert "max_flip_share=0.188" in caught.value.screen()
    assert not (run / "export").exists()
    folder = exported(run, run / "export" / "a", "adapter", max_flip_share=0.2)
    assert len(json.loads((folder / "export.json").read_text())["agreement"][0]["flips"]) == 3


def test_agreement_counts_flips_and_differences(lora_run: Path):
    rows = read_predictions(lora_run / "predictions.jsonl")["tuned"]
    first, second = rows[0], replace(rows[1], choice=1, option_logprobs=(-1.0, -1.25, -3.0, -4.0))
    changed = replace(second, choice=0, option_logprobs=(-1.0, -1.5, -3.0, -4.0))
    found = compare_answers(("a", "b"), [first, second], [first, changed], 0.5)
    assert found.questions == 2 and found.largest_logprob_difference == 0.25
    (flip,) = found.flips
    assert (flip.before, flip.after, flip.margin) == ("B", "A", -0.25)
    assert found.sentence().startswith("b against a: 1 of 2 answers differ")


def test_what_is_not_finished_not_the_same_or_there_already_is_refused(lora_run: Path, tmp_path: Path):
    run = Path(shutil.copytree(lora_run, tmp_path / "run"))
    provenance = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(provenance | {"weights": "0" * 64}))
    with pytest.raises(RunError, match="base weights are not those"):
        exported(run, tmp_path / "m")
    (run / "results.json").unlink()
    with pytest.raises(RunError, match=r"no results\.json"):
        exported(run, tmp_path / "m")
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="there already"):
        exported(lora_run, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]


def test_the_command_exports_or_says_what_is_wrong_on_one_screen(lora_run: Path, tmp_path: Path):
    ended = type_line(tmp_path, "export", "run=nowhere", "questions=0", "max_flip_share=2", "out=.")
    assert (ended.code, ended.out) == (1, "")
    wrong = ("run=nowhere: there is no config.yaml", "questions=0", "max_flip_share=2", "out=. is there")
    assert all(words in ended.err for words in ("4 problems", *wrong))
    ended = type_line(tmp_path, "export", "-m", "run=a,b")
    assert ended.code == 1 and "leave -m out" in ended.err
    assert list(tmp_path.iterdir()) == []
    ended = type_line(tmp_path, "export", f"run={lora_run}", "questions=4", "out=m", "accelerator=cpu")
    assert ended.code == 0, ended.err
    assert "merged against adapter: 0 of 4 answers differ" in ended.out and "Files: m" in ended.out
    assert [item.name for item in tmp_path.iterdir()] == ["m"]


def test_a_run_whose_questions_are_gone_is_exported_all_the_same(tmp_path: Path, capsys):
    """Its question file and its list of doubtful items have been deleted since."""
    source, suspects = tmp_path / "mine.json", tmp_path / "suspects.json"
    source.write_text((ROOT / "cyberlm/data/sample.json").read_text().replace("What ", "Tell me what "))
    suspects.write_text('{"version": 1, "items": []}')
    named = ("data=mcq", f"data.path={source}", f"evaluation.suspects={suspects}")
    run = train_tiny(tmp_path / "run", "method=lora", *QUICK, *named)
    source.unlink()
    suspects.unlink()
    for to in ("merged", "adapter"):
        folder = exported(run, tmp_path / to, to)
        said = " ".join(capsys.readouterr().out.split())
        assert "mine.json" in said and "on the embedded sample questions instead of the run's own" in said
        (agreement, *_) = json.loads((folder / "export.json").read_text())["agreement"]
        assert agreement["questions"] == ExportConfig(run="").questions and agreement["flips"] == []
