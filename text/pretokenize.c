/* pretokenize.c - the rules of the pre-tokenisers by name.
 *
 * The patterns themselves are compiled and run by pattern.c.
 */
#include "text/pretokenize.h"

/* The patterns are those of the models' tokenizer.json files (kimi-k2: of tokenization_kimi.py), or
 * where these are not at hand llama.cpp's reading of them (src/llama-vocab.cpp, llm_tokenizer_bpe).
 * NFC is set where the models' tokenizer.json has it. Of llama.cpp's names "whitespace" alone is
 * not here: its words are neither bytes nor marked, and encoders alone have it. */
#define ENGLISH "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define BEFORE "[^\\r\\n\\p{L}\\p{N}]?" // a word
#define WORD BEFORE "\\p{L}+"
#define UPPER(but) "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}" but "]"
#define LOWER(but) "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}" but "]"
#define CASED(but, suffix)                                                                         \
    BEFORE UPPER(but) "*" LOWER(but) "+" suffix "|" BEFORE UPPER(but) "+" LOWER(but) "*" suffix
#define SYMBOLS " ?[^\\s\\p{L}\\p{N}]+"
#define SPACES "\\s+(?!\\S)|\\s+"
#define LINES "\\s*[\\r\\n]+|" SPACES
#define ASCII_PUNCT "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" SYMBOLS "|" SPACES
#define LLAMA3 ENGLISH "|" WORD "|\\p{N}{1,3}|" SYMBOLS "[\\r\\n]*|" LINES
#define QWEN2 ENGLISH "|" WORD "|\\p{N}|" SYMBOLS "[\\r\\n]*|" LINES
#define GPT4O CASED("", ENGLISH "?") "|\\p{N}{1,3}|" SYMBOLS "[\\r\\n/]*|" LINES
#define BLOOM " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
#define DEEPSEEK3(symbols_end, lines)                                                              \
    ASCII_PUNCT                                                                                    \
    "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+" symbols_end          \
    "|" lines SPACES
#define CJK "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
#define CASED_LETTERS                                                                              \
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"         \
    "\u02af\u0370-\u0373"                                                                          \
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"    \
    "\u0481\u048a-"                                                                                \
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-"  \
    "\u1d2b\u1d6b-"                                                                                \
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"               \
    "\u1f57\u1f59\u1f5b\u1f5d"                                                                     \
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-"  \
    "\u1fdb\u1fe0-"                                                                                \
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-"                       \
    "\u211d\u2124\u2126\u2128\u212a-"                                                              \
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-"    \
    "\u2ce4\u2ceb-"                                                                                \
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-"   \
    "\uabbf\ufb00-"                                                                                \
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-"                \
    "\U000104d3\U000104d8-"                                                                        \
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-"         \
    "\U0001e943"
#define EVERY_LINE "[^\\n]+|[\\n]+"

static const PreRule rules[] = {
    {"gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum jina-v1-en "
     "jina-v2-code roberta-bpe jais "
     "trillion granite-docling exaone4",
     0,
     {GPT2}},
    {"mpt olmo modern-bert", PRE_NFC, {GPT2}},
    {"llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
     PRE_BOS | PRE_IGNORE_MERGES,
     {LLAMA3}},
    {"dbrx smaug-bpe chatglm-bpe", 0, {LLAMA3}},
    {"glm4 glm5", PRE_IGNORE_MERGES, {LLAMA3}},
    {"qwen2 deepseek-r1-qwen f2llmv2 stablelm2 hunyuan", PRE_NFC, {QWEN2}},
    {"kormo megrez solar-open grok-2", 0, {QWEN2}},
    {"qwen35",
     PRE_NFC,
     {ENGLISH "|" BEFORE "[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINES}},
    {"ufakzeka", 0, {WORD "|\\p{N}|" SYMBOLS "[\\r\\n]*|" LINES}},
    {"laguna", 0, {"(?:\\r?\\n)+(?:[^\\r\\n]+|\\r(?!\\n))*", QWEN2}},
    {"seed-coder", 0, {ENGLISH "|" WORD "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" LINES}},
    {"bailingmoe bailingmoe2 llada-moe",
     0,
     {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++"
      "[\\r\\n]*|\\s*[\\r\\n]|" SPACES}},
    {"exaone-moe",
     0,
     {ENGLISH "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}|" SYMBOLS
              "[\\r\\n/]?|"
              "\\s*[\\r\\n]|" SPACES}},
    {"minicpm5",
     PRE_IGNORE_MERGES,
     {"\\p{N}{1,3}", ENGLISH "|" WORD "|\\p{N}+|" SYMBOLS "[\\r\\n]*|" LINES}},
    {"jais-2",
     0,
     {ENGLISH "|" WORD "|\\p{N}{1,3}|" SYMBOLS
              "[\\r\\n]*|\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|"
              "\\s{128}(?!\\S)|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!"
              "\\S)|\\s{1,2}(?!\\S)|\\s{1}"}},
    {"gpt-4o llama4 kanana2 talkie", 0, {GPT4O}},
    {"minimax-m2", PRE_NFC, {GPT4O}},
    {"kimi-k2",
     0,
     {"\\p{Han}+|" CASED("&&[^\\p{Han}]", ENGLISH "?") "|\\p{N}{1,3}|" SYMBOLS "[\\r\\n]*|" LINES}},
    {"granite-embed-multi-97m", PRE_IGNORE_MERGES, {GPT4O}},
    {"tekken", PRE_BOS | PRE_IGNORE_MERGES, {CASED("", "") "|\\p{N}|" SYMBOLS "[\\r\\n/]*|" LINES}},
    {"tiny_aya cohere2moe", PRE_NFC, {"\\d{1,3}(?=(?:\\d{3})*\\b)", GPT4O}},
    {"youtu",
     PRE_IGNORE_MERGES,
     {"[\uac00-\ud7a3\u3131-\u318e]+|["
      "\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|["
      "\u3105-\u312f]+|" CJK,
      CASED("", ENGLISH "?") "|\\p{N}|" SYMBOLS "[\\r\\n/]*|" LINES}},
    {"starcoder refact codeshell smollm exaone minerva-7b mellum2", 0, {"\\p{N}", GPT2}},
    {"command-r", PRE_NFC, {"\\p{N}", GPT2}},
    {"falcon", 0, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9]+", "[0-9][0-9][0-9]"}},
    {"default", 0, {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {"bloom poro-chat gpt3-finnish", 0, {BLOOM}},
    {"viking", 0, {BLOOM, "\\p{N}"}},
    {"deepseek-llm",
     0,
     {"[\\r\\n]", "\\s?[" CASED_LETTERS "]+",
      "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$",
      "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "\\p{N}"}},
    {"deepseek-coder",
     0,
     {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
      "\\p{N}"}},
    {"deepseek-v3 hunyuan-dense joyai-llm hy_v4",
     0,
     {"\\p{N}{1,3}", CJK, DEEPSEEK3("[\\r\\n]*", "\\s*[\\r\\n]+|")}},
    {"spark2_5", 0, {"\\p{N}{1,3}", CJK, DEEPSEEK3("", "[\\r\\n]|"), "\\p{N}"}},
    {"afmoe",
     0,
     {"\\p{Nd}+", "\\A\\p{Nd}{1,2}(?=(?:\\p{Nd}{3})+\\z)", "\\p{Nd}{3}",
      "[\u4e00-\u9fff\u3040-\u309f\u30a0-\u30ff\u3400-\u4dbf\uf900-\ufaff\uff65-\uff9f\u2f00-"
      "\u2fdf]+|[\u0e00-\u0e7f]+|[\u0e80-\u0eff]+|[\u1780-\u17ff]+|"
      "[\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff]+|[\uac00-\ud7af\u1100-\u11ff]+",
      DEEPSEEK3("[\\r\\n]*", "\\s*[\\r\\n]+|")}},
    {"superbpe", 0, {"\\p{N}+", "(?=(\\d{3})+(?!\\d))"}},
    {"chameleon",
     PRE_BOS,
     {"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", "\\p{N}",
      "[\\p{P}!-/:-@\\[-`{-~]", GPT2}},
    {"gemma4 granite-embed-multi-311m", PRE_ESCAPE | PRE_BOS, {EVERY_LINE}},
    {"sarvam-moe", PRE_ESCAPE, {EVERY_LINE}},
};

const PreRule *pre_rule(Str name)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (str_listed(name, rules[i].names))
            return &rules[i];
    return NULL;
}
