"""Where byte-level tokenizers cut a text: the patterns of published tokenizer.json files, and
llama.cpp's names for them.

A file says the patterns themselves (tokenizer.attnc.pre_patterns), which ./run reads first; the
name is for other engines. Where llama.cpp has several names for one rule the table has the one that
most of its versions know, and two where they tell ignore_merges or NFC apart: gpt-2 is also phi-2,
exaone4 and granite-docling; smollm is starcoder, refact and exaone; llama-bpe is glm4, lfm2 and
pixtral; dbrx is smaug-bpe and chatglm-bpe; olmo is mpt; qwen2 is stablelm2; gpt-4o is llama4 and
minimax-m2; deepseek-v3 is hunyuan-dense."""
from __future__ import annotations

NO_SPLIT = r"[\s\S]+"  # the text as one piece
DIGIT = r"\p{N}"
ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s+(?!\S)|\s+"
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + SPACES
LLAMA3_SPLIT = (ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
                r"\s*[\r\n]+|" + SPACES)
QWEN2_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")
QWEN35_SPLIT = (ENGLISH + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
                r"\s*[\r\n]+|" + SPACES)
SEED_SPLIT = (ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|"
              + SPACES)
LING_SPLIT = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
              r"\s*[\r\n]|" + SPACES)
EXAONE_MOE_SPLIT = (ENGLISH + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| "
                    r"?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|" + SPACES)
JAIS2_SPLIT = LLAMA3_SPLIT.removesuffix("|" + SPACES) + "".join(
    rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"


def cased(suffix: str, digits: str, symbols: str, but: str = "") -> str:
    """A pattern that cuts before capitals; `but`: characters that words do not have."""
    upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}" + but + "]"
    lower = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}" + but + "]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (f"{before}{upper}*{lower}+{suffix}|{before}{upper}+{lower}*{suffix}|{digits}|"
            rf" ?[^\s\p{{L}}\p{{N}}]+{symbols}|\s*[\r\n]+|{SPACES}")


TEKKEN_SPLIT = cased("", DIGIT, r"[\r\n/]*")
GPT4O_SPLIT = cased(ENGLISH + "?", r"\p{N}{1,3}", r"[\r\n/]*")
KIMI_SPLIT = r"[\p{Han}]+|" + cased(ENGLISH + "?", r"\p{N}{1,3}", r"[\r\n]*", r"&&[^\p{Han}]")
BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"
UFAKZEKA_SPLIT = QWEN2_SPLIT.removeprefix(ENGLISH + "|")
YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")
CJK_SPLIT = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
DEEPSEEK3_SPLIT = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
                   r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|"
                   + SPACES)
SPARK_SPLIT = DEEPSEEK3_SPLIT.replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|")
DEEPSEEK_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
DEEPSEEK_LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f"
    "\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"
    "\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+")
DEEPSEEK_SYMBOLS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
PUNCTUATION = r"[\p{P}$+<=>^`|~]+"
LAGUNA_LINES = r"(?:\r?\n)+(?:[^\r\n]+|\r(?!\n))*"  # what MERGED_LINES, merged with the next, cuts
MERGED_LINES = r"(?:\r?\n)+(?!\r?\n)"

# These cover every text: removing what is between their matches drops nothing.
COVERING = {GPT2_SPLIT, LLAMA3_SPLIT, QWEN2_SPLIT, QWEN35_SPLIT, TEKKEN_SPLIT, GPT4O_SPLIT}
NFC, IGNORE_MERGES = 1, 2
PRE_NAMES: list[tuple[str, int, tuple[str, ...]]] = [
    ("gpt-2", 0, (GPT2_SPLIT,)), ("olmo", NFC, (GPT2_SPLIT,)),
    ("smollm", 0, (DIGIT, GPT2_SPLIT)), ("command-r", NFC, (DIGIT, GPT2_SPLIT)),
    ("llama-bpe", IGNORE_MERGES, (LLAMA3_SPLIT,)), ("dbrx", 0, (LLAMA3_SPLIT,)),
    ("qwen2", NFC, (QWEN2_SPLIT,)), ("qwen35", NFC, (QWEN35_SPLIT,)),
    ("tekken", IGNORE_MERGES, (TEKKEN_SPLIT,)), ("gpt-4o", 0, (GPT4O_SPLIT,)),
    ("deepseek-v3", 0, (r"\p{N}{1,3}", CJK_SPLIT, DEEPSEEK3_SPLIT)),
    ("deepseek-llm", 0, (r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_SYMBOLS, r"\s+$", DEEPSEEK_ASIAN,
                         DIGIT)),
    ("deepseek-coder", 0, (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_ASIAN, DIGIT)),
    ("kimi-k2", 0, (KIMI_SPLIT,)), ("seed-coder", 0, (SEED_SPLIT,)),
    ("bailingmoe", 0, (LING_SPLIT,)), ("exaone-moe", 0, (EXAONE_MOE_SPLIT,)),
    ("minicpm5", IGNORE_MERGES, (r"\p{N}{1,3}", LLAMA3_SPLIT.replace("{1,3}", "+"))),
    ("jais-2", 0, (JAIS2_SPLIT,)), ("tiny_aya", NFC, (r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O_SPLIT)),
    ("spark2_5", 0, (r"\p{N}{1,3}", CJK_SPLIT, SPARK_SPLIT, DIGIT)),
    ("ufakzeka", 0, (UFAKZEKA_SPLIT,)),
    ("youtu", IGNORE_MERGES, (YOUTU_SCRIPTS, cased(ENGLISH + "?", DIGIT, r"[\r\n/]*"))),
    ("laguna", 0, (LAGUNA_LINES, QWEN2_SPLIT)), ("bloom", 0, (BLOOM_SPLIT,)),
    ("viking", 0, (BLOOM_SPLIT, DIGIT)), ("superbpe", 0, (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    ("falcon", 0, (PUNCTUATION, GPT2_SPLIT, "[0-9]+", "[0-9][0-9][0-9]")),
]


def escaped(pattern: str) -> str:
    """A pattern with line breaks as escapes; some tokenizer.json files hold the characters."""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


def pre_name(patterns: tuple[str, ...], nfc: bool, ignore_merges: bool) -> str:
    """llama.cpp's name for these patterns, one with the same flags where there is a choice;
    "default" if it has none."""
    flags = nfc * NFC + ignore_merges * IGNORE_MERGES
    same = [(name, have) for name, have, cuts in PRE_NAMES if cuts == tuple(map(escaped, patterns))]
    best = max(same, key=lambda n: (n[1] & IGNORE_MERGES == flags & IGNORE_MERGES, n[1] == flags),
               default=("default", 0))
    return best[0]
