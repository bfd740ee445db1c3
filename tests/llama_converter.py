"""llama.cpp's own converter over Hugging Face folders, in a process of its own: it needs the gguf
package that belongs to it.

    llama_converter.py SOURCES FOLDER...    writes FOLDER.llama.gguf in f32 and
                                             FOLDER.llama-f16.gguf beside each"""
from __future__ import annotations

import logging
import sys
from pathlib import Path

SOURCES = Path(sys.argv[1])
sys.path[:0] = [str(SOURCES), str(SOURCES / "gguf-py")]

import gguf  # noqa: E402
import torch  # noqa: E402
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class  # noqa: E402
from conversion.base import TextModel  # noqa: E402

# It knows a tokenizer by a hash of what it makes of a text; ours are too small to be among them.
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
logging.disable(logging.CRITICAL)
for folder in map(Path, sys.argv[2:]):
    config = ModelBase.load_hparams(folder, False)
    ModelBase.no_mtp = "mtp_num_hidden_layers" not in config
    cls = get_model_class(get_model_architecture(config, ModelType.TEXT))
    cls.set_vocab = TextModel._set_vocab_gpt2
    for kind, suffix in ((gguf.LlamaFileType.ALL_F32, ".llama.gguf"),
                         (gguf.LlamaFileType.MOSTLY_F16, ".llama-f16.gguf")):
        with torch.inference_mode():
            cls(folder, kind, folder.with_suffix(suffix)).write()
