"""Keys and numbers of a model file that change what it computes.

Absent ones, zeros, and results that are not finite."""
from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_models as hf
from command import error_in, error_of, run, text_of
from gguf_files import BOOL, U32, Tensor, smallest
from test_parity import check, decode, encode

GGUF_TOOLS = Path(sys.executable).parent
GEMMA2 = dict(head_dim=20, num_hidden_layers=4, sliding_window=7, query_pre_attn_scalar=20,
              hidden_activation="gelu_pytorch_tanh")
GEMMA3 = dict(head_dim=20, num_hidden_layers=7, sliding_window=7, query_pre_attn_scalar=20,
              rope_parameters={
                  "full_attention": hf.rp(theta=1e6), "sliding_attention": hf.rp(theta=10000.0)})
# architecture: class, config without the values that are defaults, what norm weights are stored
# without
MODELS = {
    "gemma2": ("Gemma2ForCausalLM", GEMMA2, 1.0),
    "gemma3": ("Gemma3ForCausalLM", GEMMA3, 1.0),
    "granite": ("GraniteForCausalLM",
                dict(embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0,
                     attention_multiplier=12 ** -0.5), 0.0),
    "llama": ("LlamaForCausalLM", dict(num_key_value_heads=4, rope_parameters=hf.rp()), 0.0),
    "gptneox": ("GPTNeoXForCausalLM", dict(rotary_pct=0.5), 0.0),
    "minicpm": ("GraniteForCausalLM",  # the numbers of MiniCPM 2B, logits by 256 / dim
                dict(embedding_multiplier=12.0, residual_multiplier=1.4 * 3 ** -0.5,
                     logits_scaling=48 / 256, attention_multiplier=12 ** -0.5,
                     rope_parameters=hf.rp(theta=500.0)), 0.0),
}
# Every key that may be absent and whose absence means a number other than "off", and keys whose 0
# means "off" (llama.cpp: load_arch_hparams() of each architecture, load_hparams() and
# llama-hparams.h).
ABSENT = [("gemma2", "attn_logit_softcapping"), ("gemma2", "final_logit_softcapping"),
          ("gemma2", "rope.freq_base"),
          ("gemma3", "rope.freq_base_swa"), ("granite", "residual_scale"),
          ("granite", "embedding_scale"),
          ("granite", "attention.scale"), ("llama", "attention.head_count_kv"),
          ("llama", "attention.key_length"), ("llama", "attention.value_length"),
          ("llama", "rope.freq_base"),
          ("llama", "rope.dimension_count"), ("gptneox", "use_parallel_residual"),
          ("minicpm", "embedding_scale"), ("minicpm", "residual_scale"), ("minicpm", "logit_scale")]
ZERO = [("granite", "residual_scale"), ("granite", "embedding_scale"),
        ("granite", "attention.scale"), ("granite", "logit_scale")]


def exported(arch: str, tok: dict, tmp_path: Path,
             spread: float = 1.0) -> tuple[Path, torch.nn.Module]:
    """The file and transformers' model.

    `spread` multiplies what makes scores and logits, so that caps show."""
    cls, config, offset = MODELS[arch]
    case = hf.Case(arch, cls, hf.base(**config), arch, offset=offset,
                   rewrite=hf.as_minicpm if arch == "minicpm" else None)
    model = case.build()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if spread != 1 and ("q_proj" in name or name == "model.norm.weight"):
                p.copy_((p + offset * ("norm" in name)) * spread - offset * ("norm" in name))
    return hf.exported(model, tok, tmp_path / "full.bin"), model


def compare(run_bin: Path, path: Path, model: torch.nn.Module, tok: dict, tmp_path: Path) -> None:
    def reference(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids]), use_cache=False).logits[0]

    check(run_bin, path, hf.PROMPT, lambda t: encode(tok, t), lambda i: decode(tok, i), reference,
          tmp_path)


@pytest.mark.parametrize("arch, key", ABSENT)
def test_absent(arch: str, key: str, run_bin: Path, tok: dict, tmp_path: Path) -> None:
    """Without the key the file runs as transformers runs the family's default."""
    path, model = exported(arch, tok, tmp_path, 8.0 if arch == "gemma2" else 1.0)
    if arch == "gemma2":  # the config says nothing, so these are transformers' own defaults
        assert (model.config.attn_logit_softcapping,
                model.config.final_logit_softcapping) == (50.0, 30.0)
        copy = model.config.__class__(**{**model.config.to_dict(), key: None}
                                      if "softcap" in key else model.config.to_dict())
        bare = type(model)(copy).eval()
        bare.load_state_dict(model.state_dict())
        ids = torch.tensor([encode(tok, hf.PROMPT)])
        with torch.no_grad():
            moved = (bare(ids).logits - model(ids).logits).abs().max().item()
        assert moved > 0.1 or "softcap" not in key, "the cap does not show"
    short = tmp_path / "short.bin"
    subprocess.run([GGUF_TOOLS / "gguf-new-metadata", "--force", "--remove-metadata",
                    f"{arch}.{key}", path, short], check=True, capture_output=True)
    assert (short.stat().st_size < path.stat().st_size
            or f"{arch}.{key}".encode() not in path.read_bytes())
    compare(run_bin, short, model, tok, tmp_path)


@pytest.mark.parametrize("arch, key", ZERO)
def test_zero_is_off(arch: str, key: str, run_bin: Path, tok: dict, tmp_path: Path) -> None:
    path, model = exported(arch, tok, tmp_path)
    subprocess.run([GGUF_TOOLS / "gguf-set-metadata", "--force", path, f"{arch}.{key}", "0"],
                   check=True, capture_output=True)
    compare(run_bin, path, model, tok, tmp_path)


def test_dynamic_rope(run_bin: Path, tok: dict, tmp_path: Path) -> None:
    """Within its context dynamic rope is plain; a longer text is refused with the reason."""
    case = next(c for c in hf.CASES if c.name == "llama-dynamic")
    path = hf.exported(case.build(), tok, tmp_path / "m.bin")
    text_of(run_bin, path, "-i", "a", "-n", "2", "-c", "256")
    assert "want at most 256: in longer texts this model's rope changes" in error_of(
        run_bin, path, "-i", "a", "-c", "257", code=2)
    assert "context's 256 (the model's, which has no more positions)" in error_of(
        run_bin, path, "-i", "a" * 400, code=2)


def test_needed(run_bin: Path, tok: dict, tmp_path: Path) -> None:
    """The absence of a key without a default is named.

    Granite's divisor of the logits has none (llama.cpp's granite.cpp wants it)."""
    path, _ = exported("granite", tok, tmp_path)
    subprocess.run([GGUF_TOOLS / "gguf-new-metadata", "--force", "--remove-metadata",
                    "granite.logit_scale", path, tmp_path / "m"], check=True, capture_output=True)
    assert "key granite.logit_scale: missing" in error_of(run_bin, tmp_path / "m", "-i", "a",
                                                          code=3)


@pytest.mark.parametrize("rope", (True, False))
def test_granite_without_rope(rope: bool, run_bin: Path, tok: dict, tmp_path: Path) -> None:
    """rope.scaling.finetuned = false switches Granite's rope off.

    So it is in llama.cpp's granite.cpp; transformers has position_embedding_type "nope"."""
    import gguf
    path, model = exported("granite", tok, tmp_path)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "m.bin", "granite")
    from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata
    copy_with_new_metadata(
        reader, writer,
        {"granite.rope.scaling.finetuned": MetadataDetails(gguf.GGUFValueType.BOOL, rope)}, [])
    if not rope:
        class Still(torch.nn.Module):
            def forward(self, x: torch.Tensor,
                        position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                shape = (*position_ids.shape, 12)
                return torch.ones(shape), torch.zeros(shape)
        model.model.rotary_emb = Still()
    compare(run_bin, tmp_path / "m.bin", model, tok, tmp_path)


@pytest.mark.parametrize(
    "key, kind, v", [("pooling_type", U32, 4), ("rope.dimension_count_swa", U32, 3),
                     ("attention.key_length_swa", U32, 0), ("attention.shared_kv_layers", U32, 99),
                     ("expert_count", U32, 2**31), ("nextn_predict_layers", U32, 1)])
def test_refused(key: str, kind: int, v: object, run_bin: Path, tmp_path: Path) -> None:
    """What llama.cpp reads and this engine cannot do is named, not ignored."""
    path = tmp_path / "m"
    path.write_bytes(smallest().set(f"llama.{key}", kind, v).build())
    assert f"key llama.{key}: " in error_of(run_bin, path, "-i", "ab", "-n", "1", code=3)


# ---- dimensions ----------------------------------------------------------------------------------


def test_trailing_dimensions(any_run: Path, tmp_path: Path) -> None:
    """Outermost dimensions of 1 count for nothing: the same text, the same file of --quantize."""
    plain, padded = tmp_path / "plain", tmp_path / "padded"
    m = smallest()
    plain.write_bytes(m.build())
    for i, t in enumerate(m.tensors.values()):
        t.dims += [1] * (1 + i % (4 - len(t.dims)))
    padded.write_bytes(m.build())
    args = ["-i", "abab", "-n", "8", "--temp", "0", "--ignore-eos"]
    assert text_of(any_run, padded, *args) == text_of(any_run, plain, *args)
    for path in (plain, padded):
        text_of(any_run, path, "--quantize", "f16", "-o", path.with_suffix(".gguf"))
    assert plain.with_suffix(".gguf").read_bytes() == padded.with_suffix(".gguf").read_bytes()


def test_dimensions_that_do_count(run_bin: Path, tmp_path: Path) -> None:
    for dims in ([4, 4, 2], [4, 1, 4], [1, 4, 4]):
        m = smallest()
        m.tensors["blk.0.attn_q.weight"] = Tensor(dims, 0, bytes(4 * math.prod(dims)))
        (tmp_path / "m").write_bytes(m.build())
        assert "blk.0.attn_q.weight: got shape" in error_of(run_bin, tmp_path / "m", "-i", "ab",
                                                            code=3)


# ---- numbers -------------------------------------------------------------------------------------


def spoilt(tmp_path: Path, name: str, v: float, row: int | None = None) -> Path:
    """The smallest model with a tensor, or one row of it, of this value."""
    m = smallest(2)
    t = m.tensors[name]
    w = np.frombuffer(t.data, np.float32).reshape(t.dims[::-1]).copy()
    w[slice(None) if row is None else row] = v
    t.data = w.tobytes()
    path = tmp_path / "m"
    path.write_bytes(m.build())
    return path


COMMANDS = {
    "generate": ["-i", "abab", "-n", "4"],
    "logits": ["-i", "abab", "-n", "0", "--logits", "OUT.npy"],
    **{f"dump{e}": ["-i", "abab", "-n", "0", "--dump-attn", f"OUT{e}"]
       for e in (".npz", ".npy", ".jsonl", ".csv", ".svg", ".html")},
    "stats": ["-i", "abab", "-n", "0", "--attn-stats", "OUT.json"],
    "perplexity": ["--perplexity", "TEXT", "--json"],
    "bench": ["--bench", "--pp", "8", "--tg", "2", "--runs", "1", "--json"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("v", (math.nan, math.inf))
@pytest.mark.parametrize("tensor", ("blk.1.attn_q.weight", "blk.0.ffn_down.weight",
                                    "output_norm.weight", "token_embd.weight"))
def test_results_that_are_not_finite(name: str, v: float, tensor: str, any_run: Path,
                                     tmp_path: Path) -> None:
    """One line that names the first bad row, exit 1, nothing on standard output, no file left."""
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "text").write_text("ab" * 20)
    args = [a.replace("OUT", str(folder / "a")).replace("TEXT", str(tmp_path / "text"))
            for a in COMMANDS[name]]
    if tensor == "output_norm.weight" and any(w.startswith(("--dump", "--attn")) for w in args):
        args += ["-n", "1"]  # the output is not a part of a map: it is met when a token is chosen
    done = run(any_run, spoilt(tmp_path, tensor, v), *args)
    line = error_in(done, code=1)
    where = {"blk.1.attn_q.weight": "results of layer 1",
             "blk.0.ffn_down.weight": "results of layer 0", "output_norm.weight": "logits",
             "token_embd.weight": "embeddings"}[tensor]
    assert f"the {where} are not finite (NaN or infinity)" in line and line.startswith("position ")
    assert done.stdout == b"" and list(folder.iterdir()) == []


@pytest.mark.parametrize("args", (["-b", "1"], ["-b", "2"], [], ["--exact", "-t", "1"]),
                         ids=" ".join)
def test_the_first_bad_row_is_named(args: list[str], any_run: Path, tmp_path: Path) -> None:
    """The row that is named is the first whose numbers are not finite.

    One token's embedding is damaged, or its values overflow. Rows before its first occurrence
    attend to the same block of keys, where 0 times infinity is NaN."""
    m = smallest(2).tensor("output.weight", 7, 4)
    embeddings = np.random.default_rng(1).standard_normal((7, 4)).astype(np.float32)
    embeddings[:, 0] = 0
    embeddings[6, 0] = 1
    values = np.frombuffer(m.tensors["blk.0.attn_v.weight"].data, np.float32).reshape(2, 4).copy()
    for what, where in ((math.nan, "embeddings"), (math.inf, "embeddings"),
                        ("overflow", "results of layer 0")):
        e, v = embeddings.copy(), values.copy()
        if what == "overflow":
            v[:, 0] = 3e38
            e[6, 1:] = 0  # so that the norm makes 2 of the 1
        else:
            e[6, 2] = what
        m.tensors["token_embd.weight"].data = e.tobytes()
        m.tensors["blk.0.attn_v.weight"].data = v.tobytes()
        (tmp_path / "m").write_bytes(m.build())
        ids = json.loads(text_of(any_run, tmp_path / "m", "--tokenize", "--json", "-i",
                                   "a bab"))["ids"]
        want = ids.index(6)
        assert want > 2
        line = error_of(any_run, tmp_path / "m", "-i", "a bab", "-n", "0", *args, code=1)
        assert line.startswith(f"position {want} (token 6): the {where}"), line


def test_keys_that_f16_cannot_hold(any_run: Path, tmp_path: Path) -> None:
    """That values were cut off at 65504 is said once, with the flag that helps.

    --kv f32 says nothing, nor does --kv q8."""
    note = (b"run: keys or values beyond 65504 were cut off in the f16 "
            b"cache; --kv f32 keeps them whole\n")
    (tmp_path / "text").write_text("ab" * 20)
    for tensor in ("blk.1.attn_k.weight", "blk.0.attn_v.weight"):
        for v, cut in ((1e6, True), (1.0, False)):
            path = spoilt(tmp_path, tensor, v)
            for args in (["-i", "abab", "-n", "4"], ["--perplexity", tmp_path / "text"],
                         ["--bench", "--pp", "8", "--tg", "2"],
                         ["-i", "abab", "-n", "0", "--dump-attn", tmp_path / "a.npz"]):
                assert run(any_run, path, *args).stderr == (note if cut else b""), (tensor, v, args)
                assert run(any_run, path, *args, "--kv", "f32").stderr == b""
                assert run(any_run, path, *args, "--kv", "q8").stderr == b""


def test_the_border_of_f16(run_bin: Path, tmp_path: Path) -> None:
    """65504 is held and 65519.99 rounds to it.

    65520 is the first magnitude that is cut (round to nearest even)."""
    m = smallest()
    m.tensors["token_embd.weight"].data = np.ones((7, 4), np.float32).tobytes()
    m.tensors["blk.0.attn_norm.weight"].data = np.ones(4, np.float32).tobytes()
    m.tensors["blk.0.attn_q.weight"].data = bytes(64)
    for value, cut in ((65504.0, False), (65519.9, False), (65536.0, True), (-65504.0, False),
                       (-65536.0, True)):
        v = np.zeros((2, 4), np.float32)
        v[1, 0] = value * 1.000005  # the norm's epsilon makes ones a little smaller
        m.tensors["blk.0.attn_v.weight"].data = v.tobytes()
        (tmp_path / "m").write_bytes(m.build())
        done = run(run_bin, tmp_path / "m", "-i", "ab", "-n", "1", "--exact")
        assert (b"65504" in done.stderr) == cut, (value, done.stderr)
