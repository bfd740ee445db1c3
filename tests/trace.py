"""Every layer of ./run's engine against transformers': shows where a new family first goes wrong.

    python tests/trace.py MODEL [--text TEXT] [--all]

MODEL is a Hugging Face folder, or a case of hf_models.py by its name, random and tiny. It is
exported as f32, run by tests/trace_driver.c (make build/trace_driver first) and by transformers,
and for each point of each layer the largest difference is printed, as a part of the largest value.
The points are those of model.h's hooks. Where transformers keeps a point to itself (queries, keys
and values of Falcon, Bloom and MPT) it is left out. The status is 1 where something is wrong."""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import export  # noqa: E402
import hf_models as hf  # noqa: E402

# In the order of model.h's HookPoint; the logits come last.
POINTS = ("embedded", "queries", "keys", "values", "heads", "attention", "ffn", "layer", "logits")
# Both sides compute in f32: 1e-6 is usual, and 1e-5 where a family's values are large. A wrong
# bias, norm or angle is a thousand times that.
LIMIT = 1e-4
Trace = dict[tuple[int, str], np.ndarray]  # (layer, point) -> (T, width); layer -1: none


def ours(driver: Path, path: Path, ids: list[int]) -> Trace:
    """What the engine computes for these tokens with the model file."""
    done = subprocess.run([driver, path], input=" ".join(map(str, ids)).encode(),
                          stdout=subprocess.PIPE, check=True)
    found: Trace = {}
    at = 0
    while at < len(done.stdout):
        point, layer, first, n, width = np.frombuffer(done.stdout, np.int32, 5, at).tolist()
        rows = np.frombuffer(done.stdout, np.float32, n * width, at + 20).reshape(n, width)
        whole = found.setdefault((layer, POINTS[point]), np.zeros((len(ids), width), np.float32))
        whole[first:first + n] = rows
        at += 20 + rows.nbytes
    return found


# ---- transformers --------------------------------------------------------------------------------


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    n = model.config.get_text_config().num_hidden_layers
    return next(m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)
                and len(m) == n and name.rpartition(".")[2] in ("layers", "h", "blocks"))


def sublayers(layer: torch.nn.Module) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Attention, or a recurrence in its place, and FFN, by their names in the families."""
    names = dict(layer.named_children())
    attention = next(m for n, m in names.items() if n in ("self_attn", "attn", "attention",
                                                          "self_attention", "conv", "linear_attn",
                                                          "mamba"))
    return attention, next(m for n, m in names.items() if n in ("mlp", "ffn", "feed_forward",
                                                                "shared_mlp"))


def matrices(module: torch.nn.Module) -> list[torch.nn.Module]:
    """Whatever their class: Linear, GPT-2's Conv1D, Falcon's own."""
    return [m for m in module.modules() if hasattr(m, "weight") and m.weight.dim() == 2]


class Recorder:
    """Hooks on a transformers model that note what our hooks see.

    Of several that note the same point the last that runs counts. So the matrix that leads back to
    the residual stream need not be known by name: it is the last of its sublayer."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.found: Trace = {}
        self.layer_of: dict[torch.nn.Module, int] = {}
        layers = decoder_layers(model)
        layers[0].register_forward_pre_hook(self.embedded, with_kwargs=True)
        for i, layer in enumerate(layers):
            attention, ffn = sublayers(layer)
            for m in matrices(attention):
                m.register_forward_pre_hook(lambda m, x, i=i: self.note(i, "heads", x[0]))
                self.output(m, i, "attention")
            for m in matrices(ffn):
                self.output(m, i, "ffn")
            if hasattr(ffn, "experts"):  # their sum is the result of no matrix
                self.output(ffn, i, "ffn")
            # Gemma 2 and 3, OLMo 2: norms between a sublayer and the residual stream
            if hasattr(layer, "post_feedforward_layernorm"):
                self.output(layer.post_attention_layernorm, i, "attention")
                self.output(layer.post_feedforward_layernorm, i, "ffn")
            self.output(layer, i, "layer")
            for m in attention.modules():
                self.layer_of[m] = i
                if hasattr(m, "_attn"):  # GPT-J
                    m._attn = self.wrapped(m._attn, m)

    def note(self, layer: int, point: str, x: torch.Tensor) -> None:
        """x (1, T, width) or (1, heads, T, width of a head)"""
        x = x.transpose(1, 2).flatten(2) if x.dim() == 4 else x
        self.found[layer, point] = x[0].float().numpy().copy()

    def output(self, module: torch.nn.Module, layer: int, point: str) -> None:
        module.register_forward_hook(
            lambda m, args, out: self.note(layer, point, out[0] if isinstance(out, tuple) else out))

    def embedded(self, module: torch.nn.Module, args: tuple, more: dict) -> None:
        self.note(-1, "embedded", args[0] if args else more["hidden_states"])

    def wrapped(self, attend, owner=None):
        """An attention function, which gets rotated queries and keys, and values.

        It is a method of `owner`, or its first argument is the module."""
        def call(*args, **more):
            module, *qkv = args if owner is None else (owner, *args)
            for point, x in zip(POINTS[1:4], qkv):
                self.note(self.layer_of[module], point, x)
            return attend(*args, **more)
        return call


@contextlib.contextmanager
def replaced(module, name: str, make) -> Iterator[None]:
    old = getattr(module, name, None)
    if old is not None:
        setattr(module, name, make(old))
    yield
    if old is not None:
        setattr(module, name, old)


def theirs(model: torch.nn.Module, ids: list[int]) -> Trace:
    """What transformers computes; the model keeps the hooks."""
    recorder = Recorder(model)
    source = sys.modules[type(model).__module__]
    with replaced(source, "eager_attention_forward", recorder.wrapped), torch.no_grad():
        out = model(torch.tensor([ids]), use_cache=False)
    recorder.found[-1, "logits"] = out.logits[0].float().numpy()
    return recorder.found


# ---- comparison ----------------------------------------------------------------------------------


def off(got: np.ndarray, want: np.ndarray) -> float:
    if got.shape != want.shape:
        return np.inf
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


def difference(point: str, got: np.ndarray, want: np.ndarray, head_dim: int) -> float:
    """The difference of a point; of queries and keys in the order that differs less.

    llama.cpp's convention for Llama puts value i of a head beside value i + head_dim / 2."""
    if point not in ("queries", "keys"):
        return off(got, want)
    pairs = want.reshape(len(want), -1, 2, head_dim // 2).swapaxes(2, 3).reshape(want.shape)
    return min(off(got, want), off(got, pairs))


def compare(got: Trace, want: Trace,
            model: torch.nn.Module) -> list[tuple[int, str, float, float]]:
    """(layer, point, difference, largest value), in the order of the computation."""
    c = model.config.get_text_config()
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    n = 1 + max(layer for layer, _ in got)
    if getattr(c, "kv_lora_rank", None):  # latents are attended to: other vectors, same results
        got = {at: x for at, x in got.items() if at[1] not in ("queries", "keys", "values")}
    order = [(-1, "embedded"), *((i, p) for i in range(n) for p in POINTS[1:8]), (-1, "logits")]
    return [(i, p, difference(p, got[i, p], want[i, p], head_dim), float(np.abs(want[i, p]).max()))
            for i, p in order if (i, p) in got and (i, p) in want]


def load(name: str, folder: Path) -> tuple[torch.nn.Module, Path]:
    """The model, and its Hugging Face folder: `name`, or one that is made for the case."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    case = next((c for c in hf.CASES if c.name == name), None)
    if case:
        model = case.build()
        return model, hf.save(model, hf.tokenizer_json(), folder / "hf")
    if not (Path(name) / "config.json").is_file():
        raise SystemExit(f"trace.py: {name}: neither a folder with a config.json nor one of "
                         f"{', '.join(c.name for c in hf.CASES)}")
    return transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=torch.float32, attn_implementation="eager").eval(), Path(name)


def exported(source: Path, folder: Path) -> Path:
    path = folder / "model.gguf"
    with contextlib.redirect_stdout(io.StringIO()):
        if export.main([str(source), "-o", str(path), "--dtype", "f32"]):
            raise SystemExit(1)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a Hugging Face folder, or a case of hf_models.py")
    parser.add_argument("--text", default=hf.PROMPT)
    parser.add_argument("--all", action="store_true", help="go on after the first wrong layer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        model, source = load(args.model, Path(temporary))
        path = exported(source, Path(temporary))
        said = subprocess.run([ROOT / "run", path, "--tokenize", "--json", "-i", args.text],
                              stdout=subprocess.PIPE, check=True).stdout
        ids = json.loads(said)["ids"]
        got, want = ours(ROOT / "build" / "trace_driver", path, ids), theirs(model, ids)
    print(f"{len(ids)} tokens; differences as parts of the largest value\n")
    print(f"{'layer':>5}  {'point':9}  {'difference':>10}  {'largest':>9}")
    wrong = None
    for layer, point, much, largest in compare(got, want, model):
        if wrong is not None and layer != wrong[0] and not args.all:
            break
        if much > LIMIT and wrong is None:
            wrong = (layer, point)
        print(f"{'' if layer < 0 else layer:>5}  {point:9}  {much:10.1e}  {largest:9.3g}"
              + (" <-- first wrong" if wrong == (layer, point) else ""))
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main())
