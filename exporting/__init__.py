"""The parts of export.py: checkpoints and tokenizers, read and described in the words of GGUF."""
