/* pretokenize.c - the rules of the pre-tokenisers by name, and normal form C.
 *
 * The patterns themselves are compiled and run by pattern.c.
 */
#include "text/pretokenize.h"
#include "text/unicode_tables.h"

#include <stdlib.h>
#include <string.h>

/* ---- rules ---------------------------------------------------------------------------------------------------- */

/* The patterns are those of the models' tokenizer.json files, or where these are not at hand llama.cpp's reading of
 * them (src/llama-vocab.cpp, llm_tokenizer_bpe). NFC is set where the models' tokenizer.json has it. */
#define ENGLISH "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(suffix) "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" suffix "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*" suffix
#define SYMBOLS " ?[^\\s\\p{L}\\p{N}]+"
#define SPACES "\\s+(?!\\S)|\\s+"
#define LINES "\\s*[\\r\\n]+|" SPACES
#define ASCII_PUNCT "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|" SYMBOLS "|" SPACES
#define LLAMA3 ENGLISH "|" WORD "|\\p{N}{1,3}|" SYMBOLS "[\\r\\n]*|" LINES
#define QWEN2 ENGLISH "|" WORD "|\\p{N}|" SYMBOLS "[\\r\\n]*|" LINES
#define GPT4O CASED(ENGLISH "?") "|\\p{N}{1,3}|" SYMBOLS "[\\r\\n/]*|" LINES
#define BLOOM " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
#define DEEPSEEK3(symbols_end, lines) ASCII_PUNCT "[A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+" \
    symbols_end "|" lines SPACES
#define CJK "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
#define CASED_LETTERS \
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373" \
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-" \
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-" \
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d" \
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-" \
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-" \
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-" \
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-" \
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-" \
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
#define EVERY_LINE "[^\\n]+|[\\n]+"

static const PreRule rules[] = {
    {"gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum jina-v1-en jina-v2-code roberta-bpe jais "
     "trillion granite-docling exaone4", 0, {GPT2}},
    {"mpt olmo modern-bert", PRE_NFC, {GPT2}},
    {"llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", PRE_BOS | PRE_IGNORE_MERGES, {LLAMA3}},
    {"dbrx smaug-bpe chatglm-bpe", 0, {LLAMA3}},
    {"glm4 glm5", PRE_IGNORE_MERGES, {LLAMA3}},
    {"qwen2 deepseek-r1-qwen f2llmv2 stablelm2 hunyuan", PRE_NFC, {QWEN2}},
    {"kormo megrez solar-open grok-2", 0, {QWEN2}},
    {"qwen35", PRE_NFC, {ENGLISH "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINES}},
    {"ufakzeka", 0, {WORD "|\\p{N}|" SYMBOLS "[\\r\\n]*|" LINES}},
    {"laguna", 0, {EVERY_LINE, QWEN2}},
    {"seed-coder", 0, {ENGLISH "|" WORD "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" LINES}},
    {"bailingmoe bailingmoe2 llada-moe", 0, {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++"
     "[\\r\\n]*|\\s*[\\r\\n]|" SPACES}},
    {"exaone-moe", 0, {ENGLISH "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}|" SYMBOLS "[\\r\\n/]?|"
     "\\s*[\\r\\n]|" SPACES}},
    {"minicpm5", PRE_IGNORE_MERGES, {"\\p{N}{1,3}", ENGLISH "|" WORD "|\\p{N}+|" SYMBOLS "[\\r\\n]*|" LINES}},
    {"jais-2", 0, {ENGLISH "|" WORD "|\\p{N}{1,3}|" SYMBOLS "[\\r\\n]*|\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|"
     "\\s{128}(?!\\S)|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|\\s{1}"}},
    {"gpt-4o llama4 kanana2 talkie minimax-m2", 0, {GPT4O}},
    {"granite-embed-multi-97m", PRE_IGNORE_MERGES, {GPT4O}},
    {"tekken", PRE_BOS | PRE_IGNORE_MERGES, {CASED("") "|\\p{N}|" SYMBOLS "[\\r\\n/]*|" LINES}},
    {"tiny_aya cohere2moe", PRE_NFC, {"\\d{1,3}(?=(?:\\d{3})*\\b)", GPT4O}},
    {"youtu", PRE_IGNORE_MERGES, {"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" CJK, CASED(ENGLISH "?") "|\\p{N}|" SYMBOLS
     "[\\r\\n/]*|" LINES}},
    {"starcoder refact codeshell smollm exaone minerva-7b mellum2", 0, {"\\p{N}", GPT2}},
    {"command-r", PRE_NFC, {"\\p{N}", GPT2}},
    {"falcon", 0, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9]+", "[0-9][0-9][0-9]"}},
    {"default", 0, {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
    {"bloom poro-chat gpt3-finnish", 0, {BLOOM}},
    {"viking", 0, {BLOOM, "\\p{N}"}},
    {"deepseek-llm", 0, {"[\\r\\n]", "\\s?[" CASED_LETTERS "]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
     "\\p{N}+"}},
    {"deepseek-coder", 0, {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "\\p{N}"}},
    {"deepseek-v3 hunyuan-dense joyai-llm hy_v4", 0, {"\\p{N}{1,3}", CJK, DEEPSEEK3("[\\r\\n]*", "\\s*[\\r\\n]+|")}},
    {"spark2_5", 0, {"\\p{N}{1,3}", CJK, DEEPSEEK3("", "[\\r\\n]|"), "\\p{N}"}},
    {"afmoe", 0, {"\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))", "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
     DEEPSEEK3("[\\r\\n]*", "\\s*[\\r\\n]+|")}},
    {"superbpe", 0, {"\\p{N}+", "(?=(\\d{3})+(?!\\d))"}},
    {"chameleon", PRE_BOS, {"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", "\\p{N}",
     "[\\p{P}!-/:-@\\[-`{-~]", GPT2}},
    {"gemma4 granite-embed-multi-311m", PRE_ESCAPE | PRE_BOS, {EVERY_LINE}},
    {"sarvam-moe", PRE_ESCAPE, {EVERY_LINE}},
};

const PreRule *pre_rule(Str name)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        for (const char *p = rules[i].names, *end; *p; p = end + (*end != 0)) {
            end = strchr(p, ' ');
            end = end ? end : p + strlen(p);
            if ((size_t)(end - p) == name.len && memcmp(p, name.ptr, name.len) == 0)
                return &rules[i];
        }
    return NULL;
}

/* ---- normal form C -------------------------------------------------------------------------------------------- */

/* 0 for a starter that NFC leaves alone, 255 for one it may change or join to the one before, else the class. */
static unsigned ccc_or_attention(uint32_t cp)
{
    if (cp < 0x300 || cp > 0x10ffff)
        return 0;
    return unicode_ccc_data[unicode_ccc_index[cp / UNICODE_BLOCK] * UNICODE_BLOCK + cp % UNICODE_BLOCK];
}

static unsigned ccc(uint32_t cp)
{
    unsigned c = ccc_or_attention(cp);
    return c == 255 ? 0 : c;
}

enum { HANGUL = 0xac00, HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11a7, N_L = 19, N_V = 21, N_T = 28 };
enum { N_PAIRS = sizeof unicode_pairs / sizeof *unicode_pairs };

typedef struct {
    uint32_t *cp;
    size_t n, cap;
} Points;

static bool points_add(Points *p, uint32_t cp)
{
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 256;
        uint32_t *grown = mem_grow(p->cp, cap, sizeof *grown);
        if (!grown)
            return false;
        p->cp = grown;
        p->cap = cap;
    }
    p->cp[p->n++] = cp;
    return true;
}

static bool decompose(Points *out, uint32_t cp)
{
    uint32_t s = cp - HANGUL;
    if (cp >= HANGUL && s < N_L * N_V * N_T) {
        bool ok = points_add(out, HANGUL_L + s / (N_V * N_T)) && points_add(out, HANGUL_V + s / N_T % N_V);
        return ok && (s % N_T == 0 || points_add(out, HANGUL_T + s % N_T));
    }
    for (size_t lo = 0, hi = cp < 0xc0 ? 0 : N_PAIRS; lo < hi;) {
        size_t mid = (lo + hi) / 2;
        const uint32_t *p = unicode_pairs[mid];
        if (p[0] == cp) // the first part may decompose again
            return decompose(out, p[1]) && (p[2] == 0 || decompose(out, p[2]));
        if (p[0] < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return points_add(out, cp);
}

/* The character that `a` and `b` make together, or 0. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a - HANGUL_L < N_L && b - HANGUL_V < N_V)
        return HANGUL + ((a - HANGUL_L) * N_V + (b - HANGUL_V)) * N_T;
    if (a - HANGUL < N_L * N_V * N_T && (a - HANGUL) % N_T == 0 && b - HANGUL_T - 1 < N_T - 1)
        return a + (b - HANGUL_T);
    for (size_t lo = 0, hi = N_PAIRS; lo < hi;) {
        size_t mid = (lo + hi) / 2;
        const uint32_t *p = unicode_pairs[unicode_pairs_by_parts[mid]];
        if (p[1] == a && p[2] == b)
            return p[3] ? p[0] : 0;
        if (p[1] < a || (p[1] == a && p[2] < b))
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

/* Stable sort by class of every run of characters with a class: insertion, but merging halves where a run is long
 * (a text may be one run of marks). */
static void sort_marks(uint32_t *cp, size_t n, uint32_t *scratch)
{
    if (n < 16) {
        for (size_t i = 1; i < n; i++)
            for (size_t j = i; j > 0 && ccc(cp[j - 1]) > ccc(cp[j]); j--) {
                uint32_t t = cp[j];
                cp[j] = cp[j - 1];
                cp[j - 1] = t;
            }
        return;
    }
    size_t half = n / 2, i = 0, j = half, k = 0;
    sort_marks(cp, half, scratch);
    sort_marks(cp + half, n - half, scratch);
    while (i < half && j < n)
        scratch[k++] = ccc(cp[j]) < ccc(cp[i]) ? cp[j++] : cp[i++];
    while (i < half)
        scratch[k++] = cp[i++];
    memcpy(cp, scratch, k * sizeof *cp); // what is left of the second half is in place
}

/* Compose in place (Unicode Standard, D117): a character joins the last starter unless one between them has the same
 * class or a higher one, or is a starter. */
static void compose_all(Points *p)
{
    size_t starter = SIZE_MAX, n = 0;
    unsigned last = 0; // class of the last character kept after the starter
    for (size_t i = 0; i < p->n; i++) {
        uint32_t cp = p->cp[i];
        unsigned class = ccc(cp);
        bool blocked = n > 0 && starter != SIZE_MAX && n - 1 != starter && (last == 0 || last >= class);
        uint32_t joined = starter != SIZE_MAX && !blocked ? compose(p->cp[starter], cp) : 0;
        if (joined) {
            p->cp[starter] = joined;
            continue;
        }
        if (class == 0)
            starter = n;
        last = class;
        p->cp[n++] = cp;
    }
    p->n = n;
}

/* Bring one stretch of a text to normal form C. */
static bool add_stretch(const char *text, size_t len, Points *points, Points *scratch, Buf *out)
{
    const char *end = text + len;
    uint32_t cp;
    points->n = scratch->n = 0;
    for (const char *p = text; p < end;) {
        p += utf8_decode(p, end, &cp);
        if (!(cp & UTF8_INVALID ? points_add(points, cp) : decompose(points, cp)))
            return false;
    }
    while (scratch->n < points->n)
        if (!points_add(scratch, 0))
            return false;
    for (size_t i = 0, j; i < points->n; i = j + (j == i)) {
        for (j = i; j < points->n && ccc(points->cp[j]);)
            j++;
        sort_marks(points->cp + i, j - i, scratch->cp);
    }
    compose_all(points);
    for (size_t i = 0; i < points->n; i++) {
        char c[4] = {(char)(points->cp[i] & 0xff)};
        buf_add(out, c, points->cp[i] & UTF8_INVALID ? 1 : utf8_encode(points->cp[i], c));
    }
    return !out->failed;
}

/* A starter that NFC leaves alone joins nothing before it, and neither does what it decomposes to;
 * so each such starter begins a stretch of its own, and only those with other characters behind it
 * are touched. */
int nfc(const char *text, size_t len, Buf *out, Err *e)
{
    const char *end = text + len, *from = text, *starter = text; // what is before `from` is in *out
    Points points = {0}, scratch = {0};
    bool changed = false, ok = true;
    for (const char *p = text; p < end && ok;) {
        uint32_t cp = (unsigned char)*p;
        size_t n = cp < 0x80 ? 1 : utf8_decode(p, end, &cp);
        if (!ccc_or_attention(cp)) {
            starter = p;
            p += n;
            continue;
        }
        do {
            p += n;
            n = p < end ? utf8_decode(p, end, &cp) : 0;
        } while (n && ccc_or_attention(cp));
        buf_add(out, from, (size_t)(starter - from));
        ok = add_stretch(starter, (size_t)(p - starter), &points, &scratch, out);
        from = starter = p;
        changed = true;
    }
    if (changed && ok)
        buf_add(out, from, (size_t)(end - from));
    ok = ok && !out->failed;
    free(points.cp);
    free(scratch.cp);
    return !ok ? err_set(e, EXIT_MEMORY, "out of memory while normalising the text") : changed;
}
