"""GGUF files from outside: a real one is read whole; cut, changed and lying ones are refused with our own error."""

import random
import resource
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from support import config_of

from cyberlm.models.gguf_import import check_gguf, convert_gguf
from cyberlm.models.loading import load_base, load_tokenizer, pick_device
from cyberlm.models.methods.adapters import load_adapter
from cyberlm.models.tiny import SPECIAL, tiny_tokenizer
from cyberlm.runtime.errors import ModelError

HIDDEN, WIDE, BLOCKS = 32, 64, 2
HEAD = 24
"""Size of a head; neither the default of Qwen3 (128) nor the hidden size over the heads."""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))


def write_gguf(path: Path, architecture: str = "qwen3", without: str = "-", **claimed: int) -> dict[str, np.ndarray]:
    """Writes a model of random weights as llama.cpp's converter lays it out; returns these by name."""
    numbers = np.random.default_rng(0)
    vocabulary = sorted(tiny_tokenizer().get_vocab(), key=tiny_tokenizer().get_vocab().get)
    writer = gguf.GGUFWriter(path, architecture)
    if "split" in claimed:
        writer.add_key_value("split.no", 0, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.count", claimed["split"], gguf.GGUFValueType.UINT16)
    writer.add_context_length(256)
    writer.add_embedding_length(claimed.get("embedding", HIDDEN))
    writer.add_block_count(claimed.get("blocks", BLOCKS))
    writer.add_feed_forward_length(claimed.get("wide", WIDE))
    writer.add_head_count(claimed.get("heads", 4))
    writer.add_head_count_kv(2)
    writer.add_key_length(claimed.get("head", HEAD))
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary])
    writer.add_token_merges([f"Ġ {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    writer.add_bos_token_id(vocabulary.index(SPECIAL[0]))
    writer.add_eos_token_id(vocabulary.index(SPECIAL[1]))
    shapes = {"token_embd": (len(vocabulary), HIDDEN), "output": (len(vocabulary), HIDDEN), "output_norm": (HIDDEN,)}
    for k in range(BLOCKS):
        shapes |= {f"blk.{k}.{name}_norm": (HIDDEN,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{k}.attn_{name}_norm": (HEAD,) for name in "qk"}
        shapes |= {f"blk.{k}.attn_q": (4 * HEAD, HIDDEN), f"blk.{k}.attn_output": (HIDDEN, 4 * HEAD)}
        shapes |= {f"blk.{k}.attn_{name}": (2 * HEAD, HIDDEN) for name in "kv"}
        shapes |= {f"blk.{k}.ffn_{name}": (WIDE, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"blk.{k}.ffn_down": (HIDDEN, WIDE)}
    written = {
        name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items() if without not in name
    }
    for name, values in written.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    write_gguf(path)
    return path.read_bytes()


def test_a_real_file_is_read_whole_with_the_size_of_its_heads(tmp_path: Path) -> None:
    written = write_gguf(tmp_path / "m.gguf")
    config = config_of("model=local", f"model.path={tmp_path / 'm.gguf'}")
    assert load_tokenizer(config.model)("AB")["input_ids"]
    causal = load_base(config.model, config.quant, pick_device("cpu")).causal
    found = causal.config
    assert (found.model_type, found.head_dim, found.num_hidden_layers) == ("qwen3", HEAD, BLOCKS)
    attention = causal.model.layers[1].self_attn
    for name, module in (("attn_q", attention.q_proj), ("attn_k_norm", attention.k_norm)):
        assert np.array_equal(module.weight.numpy(force=True), written[f"blk.1.{name}"])


@pytest.mark.parametrize(
    ("claimed", "words"),
    [
        ({"embedding": 1 << 20}, "its metadata claims"),
        ({"blocks": 1 << 20}, "qwen3.block_count is 1,048,576"),
        ({"wide": 1 << 30}, "its metadata claims"),
        ({"heads": 0}, "m.gguf"),
        ({"head": 1 << 20}, "its metadata claims"),
        ({"split": 3}, r"part 1 of 3 of a split model.*llama-gguf-split --merge"),
        ({"without": "attn_q_norm"}, r"2 weights are missing: model\.layers\.0\.self_attn\.q_norm\.weight"),
        ({"architecture": "nonsense"}, "nonsense"),
        ({"architecture": "gemma3"}, "does not fit Gemma3ForCausalLM"),
    ],
    ids=str,
)
def test_metadata_that_does_not_fit_the_tensors_is_refused(claimed: dict, words: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", **claimed)
    with pytest.raises(ModelError, match=words):
        convert_gguf(tmp_path / "m.gguf", "0" * 64)
    assert not (tmp_path / "cache" / "models").exists()


def test_torn_files_are_refused(whole: bytes, tmp_path: Path) -> None:
    """Every cut, and counts in the head of the file that it has no room for."""
    path = tmp_path / "x.gguf"
    heads = {0: b"GGML", 4: (9).to_bytes(4, "little")}
    heads |= {place: (1 << 62).to_bytes(8, "little") for place in (8, 16, 24)}  # tensors, keys, bytes of the first key
    torn = [whole[:place] + value + whole[place + len(value) :] for place, value in heads.items()]
    torn += [whole[:length] for length in (0, 1, 8, 23, *range(24, len(whole), 1997), len(whole) - 1)]
    for data in torn:
        path.write_bytes(data)
        with pytest.raises(ModelError):
            check_gguf(path)


@pytest.mark.parametrize("count", [60, pytest.param(240, marks=pytest.mark.slow)])
def test_changed_bytes_never_hang_or_fill_the_memory(count: int, whole: bytes, tmp_path: Path) -> None:
    """A changed byte gives our error, or a file whose claims still hold (in a weight, a name of a token)."""
    path, choose = tmp_path / "x.gguf", random.Random(count)
    head = whole.index(b"output.weight") + 2000
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    ended = []
    for number in range(count):
        changed = bytearray(whole)
        for _ in range(choose.choice((1, 1, 1, 4))):
            changed[choose.randrange(head)] = choose.choice((0, 0xFF, choose.randrange(256)))
        path.write_bytes(changed)
        try:
            convert_gguf(path, f"{number:016}")
            ended.append("read")
        except ModelError:
            ended.append("refused")
    assert ended.count("refused") > 5 and ended.count("read") > 5
    assert time.monotonic() - started < 120
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB
    assert not list((tmp_path / "cache" / "models").glob(".*"))


def test_what_git_lfs_has_not_fetched_is_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "m.gguf").write_text(pointer)
    for folder in ("m", "a"):
        (tmp_path / folder).mkdir()
        for name in ("model.safetensors", "tokenizer.json", "adapter_model.safetensors", "adapter_config.json"):
            (tmp_path / folder / name).write_text(pointer)
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "adapter_config.json").unlink()
    for path, names in (("m.gguf", ("m.gguf",)), ("m", ("model.safetensors", "tokenizer.json"))):
        config = config_of("model=local", f"model.path={tmp_path / path}")
        with pytest.raises(ModelError) as caught:
            load_base(config.model, config.quant, pick_device("cpu"))
        shown = caught.value.screen()
        assert all(f"{name} is a Git LFS pointer" in shown for name in names) and "git lfs pull" in shown
    config = config_of()
    with pytest.raises(ModelError, match="have not been fetched"):
        load_adapter(load_base(config.model, config.quant, pick_device("cpu")), tmp_path / "a")
