"""The weights of a checkpoint by their names: safetensors and PyTorch files, in shards or whole.

Shapes are known before a tensor is loaded, and tensors are loaded one at a time. Nothing that needs
code to unpickle is opened."""
from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Iterable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from exporting.config import ExportError, read_json, short


class Tensors:
    """A dict of tensors in memory or mapped; the base of the lazy reader below."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def names(self) -> Iterable[str]:
        return self.tensors

    def load(self, name: str) -> Tensor:
        return self.tensors[name]

    def meta(self, name: str) -> Tensor:
        """An empty tensor of the right shape and type, to try a Recipe on."""
        t = self.tensors[name]
        return torch.empty(t.shape, dtype=t.dtype, device="meta")


class Safetensors(Tensors):
    """Safetensors shards, mapped."""

    def __init__(self, paths: Iterable[Path]):
        self.handles: dict[Path, Any] = {}
        self.where: dict[str, tuple[Path, str]] = {}  # a tensor's file and its name there
        for path in paths:
            try:
                self.handles[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as e:
                raise ExportError(f"{path}: not a readable safetensors file: {e}") from e
            for plain, name in plain_names(self.handles[path].keys(), path).items():
                if plain in self.where:
                    other = self.where[plain][0].name
                    raise ExportError(f"{path}: tensor {short(name)} is also in {other}")
                self.where[plain] = path, name
        if not self.where:
            raise ExportError("no tensors in the safetensors files")

    def names(self) -> Iterable[str]:
        return self.where

    def load(self, name: str) -> Tensor:
        path, own = self.where[name]
        return self.handles[path].get_tensor(own)

    def meta(self, name: str) -> Tensor:
        path, own = self.where[name]
        part = self.handles[path].get_slice(own)
        kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
                 "F64": torch.float64}
        return torch.empty(part.get_shape(), dtype=kinds.get(part.get_dtype(), torch.int8),
                           device="meta")


def torch_file(path: Path) -> Any:
    """Contents of a torch.save file: zip files are mapped, legacy ones read.

    What needs code to unpickle is refused."""
    with open(path, "rb") as f:
        is_zip = f.read(4) == b"PK\x03\x04"
    try:
        return torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except pickle.UnpicklingError as e:
        found = re.search(r"(?:GLOBAL|Unsupported class|Unsupported operand|got) ?`?([\w.:]+)",
                          str(e))
        what = f" ({found[1]})" if found else ""
        raise ExportError(f"{path}: refused: not plain tensors and values, "
                          f"needs code to unpickle{what}") from e
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
            OSError) as e:
        what = (str(e).splitlines() or [type(e).__name__])[0][:100]
        raise ExportError(f"{path}: not a readable PyTorch file: {what}") from e


def state_dict(value: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(value, dict) or not value:
        raise ExportError(f"{path}: expected a dict of tensors, got {type(value).__name__}")
    for name, t in value.items():
        if not isinstance(name, str) or not isinstance(t, Tensor):
            raise ExportError(f"{path}: expected tensors by name, got {short(name)}: "
                              f"{type(t).__name__}")
    return {plain: value[name] for plain, name in plain_names(value, path).items()}


# What wrappers put into names: torch.compile, FSDP and activation checkpoints where a module was
# wrapped, DDP at the start
WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\.")


def plain_names(names: Iterable[str], path: Path) -> dict[str, str]:
    """{name without what wrappers added, in whatever order: name}."""
    out: dict[str, str] = {}
    for name in names:
        plain, before = name, ""
        while plain != before:
            plain, before = WRAPPERS.sub("", plain), plain
        if plain in out:
            raise ExportError(
                f"{path}: tensors {short(name)} and {short(out[plain])} mean the same")
        out[plain] = name
    return out


def index_files(index: Path) -> list[str]:
    """The files that an .index.json names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise ExportError(f"{index}: no weight_map")
    return sorted(set(weight_map.values()))


LAYOUTS = ("model.safetensors", "pytorch_model.bin")  # each whole or, with .index.json, in shards


def has_weights(folder: Path) -> bool:
    return any((folder / f"{whole}{suffix}").is_file() for whole in LAYOUTS
               for suffix in ("", ".index.json"))


def folder_tensors(folder: Path, notes: list[str]) -> Tensors:
    """The weights of a Hugging Face folder.

    A whole file and an index of others are refused, since nothing says which is the old one.
    PyTorch files beside safetensors are not read, as in transformers."""
    found: dict[str, list[str]] = {}
    for whole in LAYOUTS:
        index = folder / f"{whole}.index.json"
        shards = index_files(index) if index.is_file() and not found else []
        if (folder / whole).is_file():
            if shards not in ([], [whole]):
                raise ExportError(
                    f"{folder}: has {whole} and {index.name}, which names {short(shards[0])}: "
                    "want one of the two, delete what is out of date")
            found[whole] = [whole]
        elif index.is_file():
            for name in shards:
                if Path(name).name != name or not (folder / name).is_file():
                    raise ExportError(f"{index}: names a missing shard {short(name)}")
            found[index.name] = shards
    if not found:
        raise ExportError(
            f"{folder}: no model.safetensors or pytorch_model.bin (or their .index.json)")
    taken, *others = found
    notes += [f"weights taken from {taken}; {other} beside it was not read" for other in others]
    if "safetensors" in taken:
        return Safetensors(folder / name for name in found[taken])
    merged: dict[str, Tensor] = {}
    for name in found[taken]:
        part = state_dict(torch_file(folder / name), folder / name)
        if twice := merged.keys() & part.keys():
            raise ExportError(
                f"{folder / name}: tensor {short(min(twice))} is also in another file of {taken}")
        merged |= part
    return Tensors(merged)


def adapter(folder: Path) -> str | None:
    """What an adapter_config.json in the folder is, for a message; None without one."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    data = read_json(path)
    base = data.get("base_model_name_or_path")
    return f"a PEFT adapter ({short(data.get('peft_type'))}) for {short(base or 'a base model')}"


# names of tensors that hold no weights
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(masked_)?bias|"
                     r"attn\.embed_positions|embeddings\.position_ids|freqs_(cis|cos|sin))$")
