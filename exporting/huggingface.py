"""Hugging Face folders: config.json to a Spec and tensor names to Recipes, by the rows of
families.py.

vocab.py reads the tokenizer, weights.py the shards of weights."""
from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import gguf
import torch

from exporting.config import Config, ExportError, read_json, short
from exporting.encoders import sentence_pooling
from exporting.families import FAMILIES, Family
from exporting.spec import (SSM, XIELU, Model, Recipe, Spec, alternate, check_shapes, dims,
                            from_mxfp4, gpt_spec, gpt_tensors, half_rows, has_kv, latent_part,
                            product, split_blocks, split_groups, split_rows, tile_heads)
from exporting.vocab import read_vocab
from exporting.weights import BUFFERS, Tensors, adapter, folder_tensors, has_weights

# one of several tensors that are one of ours: a norm of each head, a matrix of each expert
NUMBERED = re.compile(r"(.*layernorm)\.norms\.(\d+)(\.weight)|(.*\.experts)\.(\d+)(\.\w+\.weight)")
# gate's rows, then up's, of all experts (transformers 5, Granite) or of the shared one
GATE_UP = re.compile(
    r".*\.layers\.(\d+)\.(?:(.*)\.)?(experts\.gate_up_proj(?:_bias)?|input_linear\.weight)")
NUMBERS = re.compile(r".*\.layers\.(\d+)\.mlp\.act_fn\.(\w+)")  # of Apertus's activation
# heads of encoders: of masked tokens, the next sentence, classes, spans
HEADS = re.compile(r"(^|\.)(cls|pooler|lm_head|predictions|vocab_\w+|head|decoder|classifier|"
                   r"pre_classifier|qa_outputs|discriminator_predictions|generator_predictions|"
                   r"generator_lm_head)(\.|$)")
OTHER_PARTS = re.compile(r"(^|\.)(vision_tower|multi_modal_projector|vision_model|audio_tower|"
                         r"embed_vision|embed_audio|visual|mtp|"
                         r"mtp_(block|emb_norm|hidden_norm|linear_proj))\.")  # mtp_: Ernie


def hf_model(folder: Path, tokenizer: Path | None) -> Model:
    notes: list[str] = []
    if what := adapter(folder):
        if not (folder / "config.json").is_file() or not has_weights(folder):
            raise ExportError(
                f"{folder}: is {what}, not a whole model: merge it into its base first "
                "(peft: merge_and_unload(), then save_pretrained())")
        notes.append(f"adapter_config.json is {what}: not applied to the folder's own weights")
    data = read_json(folder / "config.json")
    if isinstance(data.get("text_config"), dict):  # Gemma 3 with its image tower
        tied = not str(data.get("model_type")).startswith("qwen3_5")  # where nothing says it
        data = {"tie_word_embeddings": data.get("tie_word_embeddings", tied)} | \
            data["text_config"] | {"_outer": data.get("model_type")}
        data.setdefault("model_type", str(data["_outer"]) + "_text")
    kind = data.get("model_type")
    kind = {"RefinedWebModel": "falcon", "RefinedWeb": "falcon",
            "stablelm_epoch": "stablelm"}.get(str(kind), kind)
    if kind not in FAMILIES:
        raise ExportError(f"config.json: model_type {short(kind)} is not supported (known: "
                          f"{', '.join(FAMILIES)})")
    family, packed = FAMILIES[kind], data.get("quantization_config")
    if packed is not None and not (family.across and isinstance(packed, dict)
                                   and packed.get("quant_method") == "mxfp4"):
        raise ExportError("config.json: quantization_config: quantised "
                          "checkpoints are not supported")
    c = Config(data | {"model_type": kind, "_pooling": sentence_pooling(folder)}, family.defaults)
    try:
        spec = gpt_spec(**dims(c) | family.spec(c))
    except (TypeError, AttributeError, KeyError, ValueError, OverflowError, ZeroDivisionError) as e:
        raise ExportError(f"config.json: a field has an unexpected type or value ({e})") from e
    source = folder_tensors(folder, notes)
    if spec["ffn.activation"] == "xielu":
        read_xielu(spec, source)
    recipes, unused = hf_recipes(family, spec, source)
    check_shapes(spec, recipes, source)
    vocab = read_vocab(tokenizer or folder, folder, spec["vocab_size"], c)
    arch = family.arch
    if arch == "granitehybrid" and not spec["mamba.layers"]:  # Granite 4's without Mamba
        arch = "granitemoe" if spec["expert_count"] else "granite"
    return Model(spec, recipes, source, vocab, arch, str(folder.resolve().name), unused,
                 notes)


def read_xielu(spec: Spec, source: Tensors) -> None:
    """The numbers of each layer's activation, which are tensors there."""
    found: dict[str, dict[int, float]] = {part: {} for part in XIELU}
    for name in source.names():
        m = NUMBERS.fullmatch(name)
        if m and m[2] in found and math.prod(source.meta(name).shape) == 1:
            found[m[2]][int(m[1])] = float(source.load(name).float().reshape(()))
    for part, values in found.items():
        if sorted(values) != list(range(spec["block_count"])):
            raise ExportError(f"tensors mlp.act_fn.{part}: want a number for each layer")
        spec[f"xielu.{part}"] = [values[i] for i in sorted(values)]


def tile_values(spec: Spec, found: dict[str, Recipe]) -> None:
    """Value heads of gated delta nets in llama.cpp's order, head i with key head i % keys."""
    _, heads, keys, width, _ = (spec[f"ssm.{part}"] for part in SSM)
    if heads == keys:
        return
    of_values = {"attn_qkv.weight": 2 * keys * width, "ssm_conv1d.weight": 2 * keys * width,
                 "attn_gate.weight": 0, "ssm_beta.weight": 0, "ssm_alpha.weight": 0,
                 "ssm_dt.bias": 0, "ssm_a": 0}
    for name in found:
        part = name.split(".", 2)[-1]
        if part in of_values:
            found[name] = found[name].then(partial(
                tile_heads, keys=keys, heads=heads, from_row=of_values[part]))
        if part == "ssm_out.weight":
            found[name] = found[name].then(partial(tile_heads, keys=keys, heads=heads, dim=1))


def hf_recipes(family: Family, spec: Spec, source: Tensors) -> tuple[dict[str, Recipe], list[str]]:
    """Match the checkpoint's tensor names with those that `spec` needs.

    Returns recipes and the names not used."""
    known = family.table or family.arch
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == known)
    table = gguf.get_tensor_name_map(arch, spec["block_count"])
    for theirs, ours in (("lm_head", "output"), *family.names):
        for i in range(spec["block_count"]):
            table.mapping[theirs.format(i)] = (gguf.MODEL_TENSOR.ATTN_NORM, ours.format(i))
    needed, found, unused = gpt_tensors(spec), {}, []
    scales = {name for name in source.names() if family.across and name.endswith("_scales")}
    numbered: dict[str, dict[int, str]] = {}

    def ours(name: str) -> str | None:
        if name.endswith(("experts.down_proj", ".sinks", ".layer_scalar")):  # transformers 5
            name += ".weight"
        name = re.sub(r"experts\.down_proj_bias$", "experts.down_proj.bias", name)
        name = re.sub(r"(gate\.)?moe_statics\.e_score_correction_bias$",  # Ernie
                      "moe_statics.e_score_correction.bias", name)
        name = re.sub(r"e_score_correction_bias$", "e_score_correction.bias", name)  # DeepSeek
        name = re.sub(r"router\.scale$", "router.proj.scale", name)  # Gemma 4
        name = re.sub(r"router\.per_expert_scale$", "experts.down_proj.scale", name)
        name = re.sub(r"\.expert_bias$", ".expert_bias.bias", name)  # LFM2
        name = re.sub(r"\.dt_bias$", ".dt_proj.bias", name)  # of gated delta nets and Mamba
        bare = re.search(r"\.(A_log|D)$", name) is not None
        stem, _, suffix = (f"{name}." if bare else name).rpartition(".")
        stem = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.",
                      stem).replace("model.lm_head", "lm_head")
        bases = ("model.", "transformer.", "gpt_neox.")
        for spelling in (stem, stem.removeprefix("transformer."), *(base + stem for base in bases)):
            hit = table.get_name(spelling)
            if hit and (bare or suffix in ("weight", "bias", "scale")):
                return hit if bare else f"{hit}.{suffix}"
        return None

    for name in source.names():
        if name in scales or (spec["xielu.eps"] and NUMBERS.fullmatch(name)):
            continue
        plain = name.removesuffix("_blocks")
        whole = Recipe((name,))
        if f"{plain}_scales" in scales:
            whole, name = Recipe((name, f"{plain}_scales"), from_mxfp4, packed=True), plain
        beyond = re.match(r"model\.layers\.(\d+)\.", name) if family.extra_layers else None
        head = spec["attention.causal"] is False and HEADS.search(name)
        if BUFFERS.search(name) or OTHER_PARTS.search(name) or head or (
                beyond and int(beyond[1]) >= spec["block_count"]):
            unused.append(name)
        elif m := NUMBERED.fullmatch(name):
            stem, number, rest = (part for part in m.groups() if part is not None)
            numbered.setdefault(stem + rest, {})[int(number)] = name
        elif m := GATE_UP.fullmatch(name):
            kind = "shexp" if str(m[2]).endswith("shared_mlp") else "exps"
            suffix = "bias" if m[3].endswith("bias") else "weight"
            half = alternate if family.across else half_rows
            for which, part in enumerate(("gate", "up")):
                found[f"blk.{m[1]}.ffn_{part}_{kind}.{suffix}"] = whole.then(
                    partial(half, which=which))
        elif (target := ours(name)) is None:
            raise ExportError(f"tensor {short(name)}: its meaning is not known")
        elif target in found:
            raise ExportError(f"tensors {short(name)} and "
                              f"{short(found[target].sources[0])} mean the same")
        else:
            found[target] = whole
    for name, parts in numbered.items():
        if sorted(parts) != list(range(len(parts))) or (target := ours(name)) is None:
            what = "experts" if ".experts." in name else "norms of some heads"
            raise ExportError(f"tensor {short(name)}: {what} are missing")
        if target in found:
            raise ExportError(f"tensors {short(parts[0])} and {short(found[target].sources[0])} "
                              "mean the same")
        found[target] = Recipe(tuple(parts[i] for i in range(len(parts))),
                               lambda *ts: torch.stack(ts))

    if family.across:
        for name, recipe in found.items():
            if name.endswith("_exps.weight"):
                found[name] = recipe.then(lambda t: t.mT)
    for name, recipe in found.items():  # vectors that are matrices of one row there
        if re.search(r"exp_probs_b\.bias$|ffn_gate_inp_shexp\.weight$", name):
            found[name] = recipe.then(lambda t: t.squeeze(0))
        if name.endswith(("shortconv.conv.weight", "ssm_conv1d.weight")):  # one input channel each
            found[name] = recipe.then(lambda t: t.squeeze(1))
        if name.endswith(".ssm_a"):
            found[name] = recipe.then(lambda t: -t.float().exp())
    if spec["delta_net.layers"]:
        tile_values(spec, found)
    if spec["mamba.layers"]:
        for name, shape in needed.items():  # the same numbers in a matrix
            if name in found and name.endswith((".ssm_a", ".ssm_d", ".ssm_norm.weight")):
                found[name] = found[name].then(partial(torch.reshape, shape=shape))
    if family.arch == "granitehybrid" and not spec["expert_count"]:
        found = {n.replace("_shexp.", "."): r for n, r in found.items()}
    if family.conv1d:
        for name, recipe in found.items():
            if re.search(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$", name):
                found[name] = recipe.then(lambda t: t.T)
    if spec["position"] == "learned" and (embd := found.get("position_embd.weight")):
        rows = spec["context_length"] + spec["position.offset"]
        extra_rows = source.meta(embd.sources[0]).shape[0] - rows
        if spec["attention.causal"] is False and extra_rows > 0:  # RoBERTa
            found["position_embd.weight"] = embd.then(lambda t: t[extra_rows:])
    if family.norm_offset:
        for name, recipe in found.items():
            if name.endswith("norm.weight") and "ssm_norm" not in name:
                found[name] = recipe.then(lambda t: t.float() + family.norm_offset)
    if spec["norm.residual"]:  # the same norms in other places
        found = {n.replace("attn_norm", "post_attention_norm").replace("ffn_norm", "post_ffw_norm"):
                 r for n, r in found.items()}
    if "project_in.weight" in found:  # OPT 350M: embeddings of another width
        embd = found.pop("token_embd.weight")
        head = found.pop("output.weight", embd)
        found["token_embd.weight"] = product(embd, found.pop("project_in.weight"), True)
        found["output.weight"] = product(head, found.pop("project_out.weight"), False)
    # there attn_norm feeds the FFN
    if family.arch == "falcon" and any("attn_norm_2" in name for name in found):
        found = {re.sub(r"attn_norm\b", "ffn_norm", n).replace("attn_norm_2", "attn_norm"): r
                 for n, r in found.items()}
    without = [n for n in found if (m := re.match(r"blk\.(\d+)\.attn_[kv](_norm)?\.", n))
               and not has_kv(spec, int(m[1]))]  # which some checkpoints have all the same
    unused += [source for n in without for source in found.pop(n).sources]
    h, kv, ff = (spec["attention.head_count"], spec["attention.head_count_kv"],
                 spec["feed_forward_length"])
    kd, vd = spec["attention.key_length"], spec["attention.value_length"]
    for name in list(found):
        if family.qkv and ".attn_qkv." in name:
            recipe = found.pop(name)
            for which, part in enumerate("qkv"):
                op = {"rows": partial(split_rows, sizes=[h * kd, kv * kd, kv * vd], which=which),
                      "groups": partial(split_groups, kv=kv, per_kv=h // kv, dim=kd, which=which),
                      "blocks": partial(split_blocks, which=which)}[family.qkv]
                found[name.replace("attn_qkv", f"attn_{part}")] = recipe.then(op)
        if name.endswith("attn_kv_b.weight"):
            recipe = found.pop(name)
            key = spec["attention.key_length_mla"] - kd + spec["attention.kv_lora_rank"]
            for which, part in enumerate("kv"):
                found[name.replace("kv_b", f"{part}_b")] = recipe.then(
                    partial(latent_part, heads=h, key=key, which=which))
        if family.gate_up and name.endswith("ffn_up.weight"):
            recipe = found.pop(name)
            for which, part in enumerate(("ffn_gate", "ffn_up")):
                found[name.replace("ffn_up", part)] = recipe.then(
                    partial(split_rows, sizes=[ff, ff], which=which))
    if spec["tied"] and "output.weight" in found:
        head, embd = found.pop("output.weight").sources[0], found["token_embd.weight"].sources[0]
        if (source.meta(head).shape != source.meta(embd).shape
                or not torch.equal(source.load(head), source.load(embd))):
            raise ExportError(f"tensor {short(head)} differs from the embedding, but "
                              "tie_word_embeddings is true")
        unused.append(head)
    found |= {name: Recipe((), partial(torch.tensor, v))
              for name, v in spec["rope_factors"].items()}
    if missing := [name for name in needed if name not in found]:
        raise ExportError(f"{len(missing)} tensors are missing, first {missing[0]}")
    if extra := [name for name in found if name not in needed]:
        raise ExportError(f"{len(extra)} tensors have no place in this configuration, first "
                          f"{short(found[extra[0]].sources[0])} ({extra[0]})")
    return found, unused
