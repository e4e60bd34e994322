"""GGUF files from outside: a real one passes; cut, changed and lying ones are refused at once, with our own error."""

import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from support import config_of

from cyberlm.models.gguf_validation import check_gguf
from cyberlm.models.loading import load_base, load_tokenizer, pick_device
from cyberlm.models.methods.lora import load_adapter
from cyberlm.models.tiny import SPECIAL, tiny_tokenizer
from cyberlm.runtime.errors import ModelError

HIDDEN, WIDE, BLOCKS = 32, 64, 2


def add_tokens(writer: gguf.GGUFWriter, pre: str, vocabulary: list[str]) -> None:
    """The tiny tokenizer, cutting text as llama.cpp does under the name `pre`."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in vocabulary])
    writer.add_token_merges([f"Ġ {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
    writer.add_bos_token_id(vocabulary.index(SPECIAL[0]))
    writer.add_eos_token_id(vocabulary.index(SPECIAL[1]))


def write_gguf(path: Path, **changed: int) -> Path:
    """A Llama of random weights as llama.cpp's converter lays it out."""
    numbers = np.random.default_rng(0)
    vocabulary = sorted(tiny_tokenizer().get_vocab(), key=tiny_tokenizer().get_vocab().get)
    writer = gguf.GGUFWriter(path, "llama")
    if "split" in changed:
        writer.add_key_value("split.no", 0, gguf.GGUFValueType.UINT16)
        writer.add_key_value("split.count", changed["split"], gguf.GGUFValueType.UINT16)
    writer.add_context_length(256)
    writer.add_embedding_length(changed.get("embedding", HIDDEN))
    writer.add_block_count(changed.get("blocks", BLOCKS))
    writer.add_feed_forward_length(changed.get("wide", WIDE))
    writer.add_head_count(changed.get("heads", 4))
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_vocab_size(changed.get("vocabulary", len(vocabulary)))
    add_tokens(writer, "llama-bpe", vocabulary)
    shapes = {"token_embd": (len(vocabulary), HIDDEN), "output": (len(vocabulary), HIDDEN), "output_norm": (HIDDEN,)}
    for k in range(BLOCKS):
        shapes |= {f"blk.{k}.{name}_norm": (HIDDEN,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{k}.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "output")}
        shapes |= {f"blk.{k}.attn_{name}": (HIDDEN // 2, HIDDEN) for name in ("k", "v")}
        shapes |= {f"blk.{k}.ffn_{name}": (WIDE, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"blk.{k}.ffn_down": (HIDDEN, WIDE)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


def test_a_real_file_loads(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "whole.gguf"
    path.write_bytes(whole)
    config = config_of("model=local", f"model.path={path}")
    assert load_tokenizer(config.model)("AB")["input_ids"]
    loaded = load_base(config.model, config.quant, pick_device("cpu"))
    assert (loaded.causal.config.hidden_size, loaded.causal.config.num_hidden_layers) == (HIDDEN, BLOCKS)


def test_the_embedded_file_passes_quickly() -> None:
    from cyberlm.models.loading import _embedded_gguf

    started = time.process_time()
    check_gguf(_embedded_gguf(config_of("model=smollm2_135m").model))
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"embedding": 1 << 20}, "llama.embedding_length is 1048576, its tensors say 32"),
        ({"blocks": 1 << 20}, "llama.block_count is 1048576, its tensors say 2"),
        ({"wide": 1 << 30}, "llama.feed_forward_length is 1073741824, its tensors say 64"),
        ({"vocabulary": 1 << 30}, "llama.vocab_size is 1073741824, its tensors say 288"),
        ({"heads": 0}, "llama.attention.head_count is 0"),
    ],
)
def test_a_lie_about_a_size_is_found(changed: dict[str, int], told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        check_gguf(write_gguf(tmp_path / "x.gguf", **changed))
    assert caught.value.problems[0].what == told


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (0, b"GGML", "it does not begin with GGUF"),
        (4, (9).to_bytes(4, "little"), "its version is 9"),
        (8, (1 << 60).to_bytes(8, "little"), "it claims 1,152,921,504,606,846,976 tensors"),
        (16, (1 << 62).to_bytes(8, "little"), "it claims 4,611,686,018,427,387,904 keys"),
        (24, (1 << 63).to_bytes(8, "little"), "claims 9,223,372,036,854,775,808 more bytes"),
    ],
)
def test_claims_of_the_head(whole: bytes, place: int, value: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(whole[:place] + value + whole[place + len(value) :])
    with pytest.raises(ModelError, match=told):
        check_gguf(path)


def test_every_cut_is_found(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    lengths = [0, 1, 3, 4, 8, 23, *range(24, len(whole), 397), len(whole) - 1]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            check_gguf(path)


def test_changed_bytes_never_hang_or_fill_the_memory(whole: bytes, tmp_path: Path) -> None:
    """A changed byte gives our error, or a file whose claims still hold (in a weight, a name of a token)."""
    path, choose = tmp_path / "x.gguf", random.Random(0)
    head = whole.index(b"output.weight") + 2000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    started = time.monotonic()
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(choose.choice((1, 1, 1, 4))):
            changed[choose.randrange(head)] = choose.choice((0, 0xFF, choose.randrange(256)))
        path.write_bytes(changed)
        try:
            check_gguf(path)
        except ModelError:
            refused += 1
    assert refused > 50
    assert time.monotonic() - started < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 200 * 1024  # KiB


LOADING = """
import random, resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support import config_of
from cyberlm.runtime.errors import ModelError
from cyberlm.models.loading import load_base, load_tokenizer, pick_device
whole, path = Path({whole!r}).read_bytes(), Path({folder!r}) / "x.gguf"
choose, ended = random.Random(1), []
limit = 16 << 30
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts what the parent held when it forked
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(12):
    changed = bytearray(whole)
    changed[choose.randrange({head})] = choose.choice((0, 0xFF, choose.randrange(256)))
    path.write_bytes(changed)
    config = config_of("model=local", f"model.path={{path}}")
    try:
        load_tokenizer(config.model)
        load_base(config.model, config.quant, pick_device("cpu"))
        ended.append("loaded")
    except ModelError:
        ended.append("refused")
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss <= max(before, 2 << 20), "KiB"
print(ended.count("loaded"), ended.count("refused"))
"""


def test_changed_files_load_or_are_refused_by_our_error(whole: bytes, tmp_path: Path) -> None:
    """The whole way through transformers, in a process whose memory is limited."""
    (tmp_path / "whole").write_bytes(whole)
    code = LOADING.format(
        tests=str(Path(__file__).parents[1]),
        whole=str(tmp_path / "whole"),
        folder=str(tmp_path),
        head=whole.index(b"output.weight") + 2000,
    )
    environment = {**os.environ, "CYBERLM_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-W", "ignore", "-c", code]
    root = Path(__file__).parents[2]
    done = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded, refused = map(int, done.stdout.split()[-2:])
    assert loaded + refused == 12 and refused
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.name.startswith(".")]


def test_what_git_lfs_has_not_fetched_is_named(whole: bytes, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "m.gguf").write_text(pointer)
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(pointer if name != "config.json" else "{}")
    for path, names in ((tmp_path / "m.gguf", ("m.gguf",)), (folder, ("model.safetensors", "tokenizer.json"))):
        config = config_of("model=local", f"model.path={path}")
        with pytest.raises(ModelError) as caught:
            load_base(config.model, config.quant, pick_device("cpu"))
        shown = caught.value.screen()
        assert all(f"{name} is a Git LFS pointer" in shown for name in names) and "git lfs pull" in shown
    adapter = tmp_path / "a"
    adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_text(pointer)
    config = config_of()
    with pytest.raises(ModelError, match="have not been fetched"):
        load_adapter(load_base(config.model, config.quant, pick_device("cpu")), adapter)


def test_one_part_of_a_split_file_names_how_to_join_the_parts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"part 1 of 3 of a split model.*llama-gguf-split --merge"):
        check_gguf(write_gguf(tmp_path / "m-00001-of-00003.gguf", split=3))


# ------------------------------------------------------------------------------------ what transformers does not read

HEAD = 24
"""Neither the default of Qwen3 (128) nor the hidden size over the heads."""


def write_qwen3(path: Path, architecture: str = "qwen3", without: str = "-") -> dict[str, np.ndarray]:
    """A Qwen3 of random weights; returns these by name."""
    numbers = np.random.default_rng(0)
    vocabulary = sorted(tiny_tokenizer().get_vocab(), key=tiny_tokenizer().get_vocab().get)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    add_tokens(writer, "qwen2", vocabulary)
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


def test_the_size_of_a_qwen3_head_is_read_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    written = write_qwen3(tmp_path / "qwen3.gguf")
    config = config_of("model=local", f"model.path={tmp_path / 'qwen3.gguf'}")
    assert load_tokenizer(config.model)("AB")["input_ids"]
    causal = load_base(config.model, config.quant, pick_device("cpu")).causal
    assert causal.config.model_type == "qwen3" and causal.config.head_dim == HEAD
    attention = causal.model.layers[1].self_attn
    for name, module in (("attn_q", attention.q_proj), ("attn_k_norm", attention.k_norm)):
        assert np.array_equal(module.weight.numpy(force=True), written[f"blk.1.{name}"])


@pytest.mark.parametrize(
    ("architecture", "without", "words"),
    [
        ("qwen3", "attn_q_norm", r"2 weights are missing: model\.layers\.0\.self_attn\.q_norm\.weight"),
        ("nonsense", "-", "architecture nonsense: "),
        ("gemma3", "-", "does not fit Gemma3ForCausalLM"),
    ],
)
def test_what_the_reader_lacks_is_named(
    architecture: str, without: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYBERLM_CACHE_DIR", str(tmp_path / "cache"))
    write_qwen3(tmp_path / "m.gguf", architecture, without)
    config = config_of("model=local", f"model.path={tmp_path / 'm.gguf'}")
    with pytest.raises(ModelError, match=words):
        load_base(config.model, config.quant, pick_device("cpu"))
    assert not list((tmp_path / "cache" / "models").iterdir())
