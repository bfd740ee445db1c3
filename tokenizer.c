/* tokenizer.c - see tokenizer.h.
 *
 * One merging loop serves both kinds of BPE: the best pair of neighbours first, the leftmost among
 * equals. What differs is how the first symbols are made (bytes, or UTF-8 characters) and what a
 * pair is worth: its rank in the merge list, or the score of the piece it makes. Long texts are cut
 * where no piece could lie across the cut, and a stretch that cannot be cut takes some 8 bytes a
 * symbol. Pieces stay where they are in the file; loading builds one hash table of (tag, id) and,
 * for merge lists, one of pairs of ids, and allocates nothing per token.
 */
#include "tokenizer.h"
#include "base/utf8.h"
#include "text/nfc.h"
#include "text/pretokenize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SPACE_MARK "\xe2\x96\x81" // U+2581, SentencePiece's space

typedef struct {
    uint32_t left, right; // token ids
    uint32_t rank;
    uint32_t id1; // id of the joined token + 1; 0 for an empty slot
} Merge;

/* Tokens that are matched in the text itself. */
typedef struct {
    Str text;
    int id;
} Literal;

typedef struct {
    Literal *items; // sorted by text, then id
    size_t n;
    bool first[256]; // whether one starts with this byte
    size_t longest;
} Literals;

/* Those of one pass: the raw text is searched first, and what is left of it later, in the form that
 * Marking says. */
typedef struct {
    Literals user, special; // USER_DEFINED; CONTROL and UNKNOWN
} Pass;

/* What encoding needs and decoding does not. */
typedef struct {
    bool ready;
    uint64_t *slots; // hash table of pieces: tag << 32 | id + 1
    size_t n_slots;  // a power of two, as n_merge_slots
    uint64_t seed;   // of the hashes: whoever made the file cannot know it and make keys collide
    size_t max_len;  // of a piece
    Merge *merges;
    size_t n_merge_slots;
    int bytes[256]; // token of a single byte, -1 if there is none
    int ascii[128]; // piece of a single character that text may become, -1 if there is none
    Pass raw, later;
    Buf texts; // of later ones with the space marked
} Tables;

/* How spaces become SPACE_MARKs where pieces are not byte-level, and where one more is put in
 * front: tokenizer.h. */
typedef enum {
    MARK_SENTENCEPIECE,
    MARK_PREPEND,
    MARK_REPLACE, // before the later pass
    MARK_FIRST,
    MARK_ALWAYS,
    MARK_NEVER // after it
} Marking;
static const char *const marking_names[] = {"", "prepend", "replace", "first", "always", "never"};
enum { N_MARKINGS = sizeof marking_names / sizeof *marking_names };

struct Tokenizer {
    int n;
    Str *pieces;                            // n views into the file
    const GgufKey *types, *scores, *merges; // NULL if absent
    bool byte_level;                        // else pieces are UTF-8 with SPACE_MARK for the space
    bool by_score;                          // else by merge list
    bool nfc, ignore_merges, space_prefix, remove_extra_spaces, adds_bos, adds_eos;
    Marking marking;
    int bos, eos, unknown; // -1 if there is none
    uint8_t *is_end;       // n
    uint8_t *later;        // n: tokenizer.attnc.normalized_tokens; NULL if absent
    Pretok *pretok;        // NULL: no cutting
    Tables *tables;
};

/* ---- lists ----------------------------------------------------------------------------------- */

int tokens_add(TokenList *list, int id, Err *e)
{
    if (!mem_room(&list->ids, list->n + 1, &list->cap, sizeof *list->ids))
        return err_set(e, EXIT_MEMORY, "out of memory for the tokens of the text");
    list->ids[list->n++] = id;
    return 0;
}

void tokens_free(TokenList *list)
{
    free(list->ids);
    *list = (TokenList){0};
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/* The byte that a piece like <0x0A> stands for, or -1. */
static int named_byte(Str piece)
{
    int v = 0;
    if (piece.len != 6 || memcmp(piece.ptr, "<0x", 3) != 0 || piece.ptr[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = piece.ptr[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return -1;
        v = 16 * v + digit;
    }
    return v;
}

/* Byte-level BPE writes every byte as one visible character: itself where Latin-1 has a visible
 * one, else the next free one from U+0100 on (GPT-2, bytes_to_unicode). */
static uint32_t byte_to_char(int b)
{
    if (b < 33)
        return 256 + (uint32_t)b;
    if (b >= 127 && b <= 160)
        return 256 + 33 + (uint32_t)(b - 127);
    return b == 173 ? 256 + 67 : (uint32_t)b;
}

/* The inverse; -1 for a character that stands for no byte. */
static int char_to_byte(uint32_t cp)
{
    int b = cp < 256      ? (int)cp
          : cp < 256 + 33 ? (int)cp - 256
          : cp < 256 + 67 ? (int)cp - 256 - 33 + 127
                          : 173;
    return cp <= 256 + 67 && byte_to_char(b) == cp ? b : -1;
}

int tokenizer_vocab_size(const Tokenizer *t)
{
    return t->n;
}

int tokenizer_bos(const Tokenizer *t)
{
    return t->bos;
}

int tokenizer_eos(const Tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const Tokenizer *t)
{
    return t->adds_bos;
}

bool tokenizer_is_end(const Tokenizer *t, int id)
{
    return id >= 0 && id < t->n && t->is_end[id];
}

Str tokenizer_piece(const Tokenizer *t, int id)
{
    return id >= 0 && id < t->n ? t->pieces[id] : (Str){"", 0};
}

TokenType tokenizer_type(const Tokenizer *t, int id)
{
    int32_t type;
    if (id < 0 || id >= t->n)
        return TOKEN_UNDEFINED;
    if (t->types) {
        memcpy(&type, t->types->data + 4 * (size_t)id, 4);
        return type >= TOKEN_UNDEFINED && type <= TOKEN_BYTE ? (TokenType)type : TOKEN_UNDEFINED;
    }
    if (id == t->bos || id == t->eos)
        return TOKEN_CONTROL;
    if (id == t->unknown)
        return TOKEN_UNKNOWN;
    return !t->byte_level && named_byte(t->pieces[id]) >= 0 ? TOKEN_BYTE : TOKEN_NORMAL;
}

static void free_literals(Tables *x)
{
    free(x->raw.user.items);
    free(x->raw.special.items);
    free(x->later.user.items);
    free(x->later.special.items);
    buf_free(&x->texts);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* An array of `type` with at least `n` items; 1 and *out, 0 if absent, -1 on failure. */
static int array_key(const Gguf *g, const char *name, GgufType type, const char *want, uint64_t n,
                     const GgufKey **out, Err *e)
{
    const GgufKey *k = gguf_key(g, name);
    *out = k;
    if (!k)
        return 0;
    bool ok = k->is_array && (k->type == type || (type == GGUF_I32 && k->type == GGUF_U32));
    if (!ok)
        return err_set(e, EXIT_MODEL, "key %s: got another kind of value, want an array of %s",
                       name, want);
    if (k->n < n)
        return err_set(e, EXIT_MODEL, "key %s: got %llu items, want %llu", name,
                       (unsigned long long)k->n, (unsigned long long)n);
    return 1;
}

/* The id in an optional key, checked; *id stays as it is when the key is absent. */
static int id_key(const Tokenizer *t, const Gguf *g, const char *name, int *id, Err *e)
{
    uint32_t v;
    int rc = gguf_u32(g, name, &v, e);
    if (rc <= 0)
        return rc;
    if (v >= (uint32_t)t->n)
        return err_set(e, EXIT_MODEL, "key %s: got %u, want less than the %d tokens", name, v,
                       t->n);
    *id = (int)v;
    return 0;
}

/* Set *out (n, made where NULL) for the ids in an optional array. */
static int mark_ids(const Tokenizer *t, const Gguf *g, const char *name, uint8_t **out, Err *e)
{
    const GgufKey *ids;
    int rc = array_key(g, name, GGUF_I32, "32-bit integers", 0, &ids, e);
    if (rc <= 0)
        return rc;
    if (!*out && !(*out = mem_zalloc((size_t)t->n, 1)))
        return err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    for (uint64_t i = 0; i < ids->n; i++) {
        double v = gguf_number(ids, i);
        if (v < 0 || v >= t->n)
            return err_set(e, EXIT_MODEL, "key %s: got %.0f, want less than the %d tokens", name, v,
                           t->n);
        (*out)[(int)v] = 1;
    }
    return 0;
}

/* Names that end a text where they are CONTROL tokens: of turns and texts, and the file separators
 * that models of code put between files (the list is llama.cpp's). */
static const char *const end_names[] = {"<|eot_id|>",
                                        "<|im_end|>",
                                        "<|end|>",
                                        "<|return|>",
                                        "<|call|>",
                                        "<|calls|>",
                                        "<|flush|>",
                                        "<end_of_turn>",
                                        "<|endoftext|>",
                                        "</s>",
                                        "<|eom_id|>",
                                        "<EOT>",
                                        "_<EOT>",
                                        "[EOT]",
                                        "[EOS]",
                                        "<|end_of_text|>",
                                        "<end_of_utterance>",
                                        "<eos>",
                                        "<turn|>",
                                        "<|tool_response>",
                                        "<｜end▁of▁sentence｜>",
                                        "[e~[",
                                        "<|fim_pad|>",
                                        "<fim-pad>",
                                        "<fim_pad>",
                                        "<|fim_repo|>",
                                        "<|repo_name|>",
                                        "<fim-repo>",
                                        "<REPO>",
                                        "<reponame>",
                                        "<|file_sep|>"};
enum { N_END_NAMES = sizeof end_names / sizeof *end_names };

static int find_end_tokens(Tokenizer *t, const Gguf *g, Err *e)
{
    static const char *const keys[] = {"eot", "eom", "fim_pad", "fim_rep", "fim_sep"};
    t->is_end = mem_zalloc((size_t)t->n, 1);
    if (!t->is_end)
        return err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");

    /* By name. In the harmony and solar formats <|end|> only ends a message, others end the turn.
     */
    int end = -1, call = -1, turn = -1;
    bool starts[256] = {false};
    for (int k = 0; k < N_END_NAMES; k++)
        starts[(unsigned char)end_names[k][0]] = true;
    for (int id = 0; id < t->n; id++) {
        Str s = t->pieces[id];
        if (s.len == 0 || !starts[(unsigned char)*s.ptr]
            || (t->types && tokenizer_type(t, id) != TOKEN_CONTROL))
            continue;
        for (int k = 0; k < N_END_NAMES; k++)
            if (str_eq(s, end_names[k])) {
                t->is_end[id] = 1;
                end = k == 2 ? id : end;
                call = k == 4 || k == 5 ? id : call;
                turn = k == 3 || k == 6 ? id : turn;
            }
    }
    if (end >= 0 && call >= 0 && turn >= 0)
        t->is_end[end] = 0;

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char name[64];
        int id = -1;
        snprintf(name, sizeof name, "tokenizer.ggml.%s_token_id", keys[i]);
        if (id_key(t, g, name, &id, e))
            return -1;
        if (id >= 0)
            t->is_end[id] = 1;
    }
    if (t->eos >= 0)
        t->is_end[t->eos] = 1;
    return mark_ids(t, g, "tokenizer.ggml.eos_token_ids", &t->is_end, e);
}

/* How spaces are marked: our own keys, else SentencePiece's way with or without a prefix. */
static int open_marking(Tokenizer *t, const Gguf *g, Err *e)
{
    Str name = {0};
    char shown[80];
    int has_name = t->byte_level ? 0 : gguf_str(g, "tokenizer.attnc.space_prefix", &name, e);
    if (has_name <= 0)
        return has_name;
    if (mark_ids(t, g, "tokenizer.attnc.normalized_tokens", &t->later, e))
        return -1;
    for (int i = 1; i < N_MARKINGS; i++)
        if (str_eq(name, marking_names[i]))
            t->marking = (Marking)i;
    t->space_prefix = t->marking != MARK_REPLACE && t->marking != MARK_NEVER;
    return t->marking != MARK_SENTENCEPIECE
             ? 0
             : err_set(e, EXIT_MODEL,
                       "key tokenizer.attnc.space_prefix: got \"%s\", want first, "
                       "always, never, prepend or replace",
                       str_escape(name, shown, sizeof shown));
}

/* Where byte-level BPE cuts the text: our own keys, the rule named by the file, or the
 * architecture's. */
static int open_pretokenizer(Tokenizer *t, const Gguf *g, unsigned *flags, Err *e)
{
    Str name = {0}, arch = {0}, normalizer = {0};
    const GgufKey *own;
    char shown[80];
    int has_name = gguf_str(g, "tokenizer.ggml.pre", &name, e);
    int has_own = array_key(g, "tokenizer.attnc.pre_patterns", GGUF_STRING, "strings", 0, &own, e);
    int has_normalizer = gguf_str(g, "tokenizer.attnc.normalizer", &normalizer, e);
    if (has_name < 0 || has_own < 0 || has_normalizer < 0
        || gguf_str(g, "general.architecture", &arch, e) < 0)
        return -1;
    if (!has_name && str_eq(arch, "gpt2"))
        name = (Str){"gpt-2", 5};
    if (!has_name && str_eq(arch, "gptneox"))
        name = (Str){"olmo", 4}; // GPT-2's pattern after NFC, as in Pythia's tokenizer.json
    const PreRule *rule = name.len ? pre_rule(name) : NULL;
    if (rule)
        *flags = rule->flags;
    else if (!has_own && !has_name)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.pre: missing, want it for byte-level BPE (architecture "
                       "\"%s\" has no "
                       "default)",
                       str_escape(arch, shown, sizeof shown));
    else if (!has_own)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.pre: got \"%s\", want a pre-tokenizer that we know, "
                       "such as gpt-2, "
                       "llama-bpe, qwen2, smollm or tekken",
                       str_escape(name, shown, sizeof shown));
    if (has_normalizer && !str_eq(normalizer, "nfc") && !str_eq(normalizer, "none"))
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.attnc.normalizer: got \"%s\", want \"none\" or \"nfc\"",
                       str_escape(normalizer, shown, sizeof shown));
    if (has_normalizer || has_own)
        *flags = (*flags & ~(unsigned)PRE_NFC) | (str_eq(normalizer, "nfc") ? PRE_NFC : 0);

    Str known[PRE_MAX_PATTERNS], *patterns = has_own ? gguf_strings(own) : known;
    size_t n = has_own ? (size_t)own->n : 0;
    if (!patterns)
        return err_set(e, EXIT_MEMORY, "out of memory for the pre-tokenizer");
    for (; !has_own && n < PRE_MAX_PATTERNS && rule->patterns[n]; n++)
        known[n] = (Str){rule->patterns[n], strlen(rule->patterns[n])};
    t->pretok = pretok_compile(patterns, n, e);
    if (has_own)
        free(patterns);
    return t->pretok ? 0 : -1;
}

static int open_model(Tokenizer *t, const Gguf *g, unsigned *flags, Err *e)
{
    static const struct {
        const char *model, *what;
    } refused[] = {
        {"t5", "Unigram"},           {"bert", "WordPiece"},    {"rwkv", "RWKV"},
        {"plamo2", "PLaMo 2"},       {"none", "no tokenizer"}, {"no_vocab", "no tokenizer"},
        {"hybriddna", "DNA k-mers"}, {"whitespace", "words"}};
    Str model = {0};
    int rc = gguf_str(g, "tokenizer.ggml.model", &model, e);
    char shown[80];
    if (rc == 0)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.model: missing, want gpt2, llama or gemma4");
    if (rc < 0)
        return -1;
    t->by_score = str_eq(model, "llama");
    if (str_eq(model, "gpt2")) {
        if (open_pretokenizer(t, g, flags, e))
            return -1;
        t->byte_level = !(*flags & PRE_ESCAPE);
        return 0;
    }
    if (str_eq(model, "gemma4"))
        *flags = PRE_ESCAPE | PRE_BOS;
    if (str_eq(model, "gemma4") || t->by_score)
        return 0;
    const char *what = "unknown to us";
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (str_eq(model, refused[i].model))
            what = refused[i].what;
    return err_set(e, EXIT_MODEL,
                   "key tokenizer.ggml.model: got \"%s\" (%s), want gpt2, llama or gemma4",
                   str_escape(model, shown, sizeof shown), what);
}

static int open_keys(Tokenizer *t, const Gguf *g, Err *e)
{
    const GgufKey *tokens, *map;
    unsigned flags = 0;
    int rc = array_key(g, "tokenizer.ggml.tokens", GGUF_STRING, "strings", 1, &tokens, e);
    if (rc <= 0)
        return rc < 0 ? -1
                      : err_set(e, EXIT_MODEL,
                                "key tokenizer.ggml.tokens: missing, want the vocabulary");
    if (tokens->n > INT32_MAX / 2)
        return err_set(e, EXIT_MODEL, "key tokenizer.ggml.tokens: got %llu items, want at most %d",
                       (unsigned long long)tokens->n, INT32_MAX / 2);
    t->n = (int)tokens->n;
    t->pieces = gguf_strings(tokens);
    if (!t->pieces)
        return err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    if (open_model(t, g, &flags, e)
        || array_key(g, "tokenizer.ggml.token_type", GGUF_I32, "32-bit integers", tokens->n,
                     &t->types, e)
               < 0
        || array_key(g, "tokenizer.ggml.scores", GGUF_F32, "32-bit floats",
                     t->by_score ? tokens->n : 0, &t->scores, e)
               < 0
        || array_key(g, "tokenizer.ggml.merges", GGUF_STRING, "strings", 0, &t->merges, e) < 0
        || array_key(g, "tokenizer.ggml.precompiled_charsmap", GGUF_U8, "bytes", 0, &map, e) < 0)
        return -1;
    if (t->by_score && !t->scores)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.scores: missing, want one for each of the %d tokens",
                       t->n);
    if (!t->by_score && !t->merges)
        return err_set(e, EXIT_MODEL, "key tokenizer.ggml.merges: missing, want the merge list");
    if (map && map->n > 0)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.precompiled_charsmap: got a text normalisation, want "
                       "none");

    t->nfc = flags & PRE_NFC;
    t->ignore_merges = flags & PRE_IGNORE_MERGES;
    t->adds_bos = t->by_score || flags & PRE_BOS;
    t->space_prefix = t->by_score;
    // SentencePiece's own defaults, unless the types say that these are plain tokens
    t->bos = t->by_score && t->n > 2 && (!t->types || tokenizer_type(t, 1) == TOKEN_CONTROL) ? 1
                                                                                             : -1;
    t->eos = t->by_score && t->n > 2 && (!t->types || tokenizer_type(t, 2) == TOKEN_CONTROL) ? 2
                                                                                             : -1;
    t->unknown = t->by_score && (!t->types || tokenizer_type(t, 0) == TOKEN_UNKNOWN) ? 0 : -1;
    if (id_key(t, g, "tokenizer.ggml.bos_token_id", &t->bos, e)
        || id_key(t, g, "tokenizer.ggml.eos_token_id", &t->eos, e)
        || id_key(t, g, "tokenizer.ggml.unknown_token_id", &t->unknown, e)
        || gguf_bool(g, "tokenizer.ggml.add_bos_token", &t->adds_bos, e) < 0
        || gguf_bool(g, "tokenizer.ggml.add_eos_token", &t->adds_eos, e) < 0
        || gguf_bool(g, "tokenizer.ggml.add_space_prefix", &t->space_prefix, e) < 0
        || gguf_bool(g, "tokenizer.ggml.remove_extra_whitespaces", &t->remove_extra_spaces, e) < 0
        || gguf_bool(g, "tokenizer.attnc.ignore_merges", &t->ignore_merges, e) < 0
        || open_marking(t, g, e))
        return -1;
    Str arch = {0};
    if (gguf_str(g, "general.architecture", &arch, e) < 0)
        return -1;
    bool gemma4 = arch.len >= 6
               && memcmp(arch.ptr, "gemma4", 6) == 0; // whose files say false and mean true
    t->adds_bos = (t->adds_bos || gemma4) && t->bos >= 0;
    t->adds_eos = t->adds_eos && t->eos >= 0;
    return find_end_tokens(t, g, e);
}

Tokenizer *tokenizer_open(const Gguf *g, Err *e)
{
    Tokenizer *t = mem_zalloc(1, sizeof *t);
    if (t)
        t->tables = mem_zalloc(1, sizeof *t->tables);
    if (!t || !t->tables)
        err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    else if (open_keys(t, g, e) == 0)
        return t;
    tokenizer_close(t);
    return NULL;
}

void tokenizer_close(Tokenizer *t)
{
    if (!t)
        return;
    if (t->tables) {
        free(t->tables->slots);
        free(t->tables->merges);
        free_literals(t->tables);
        free(t->tables);
    }
    free(t->pieces);
    free(t->is_end);
    free(t->later);
    pretok_free(t->pretok);
    free(t);
}

/* ---- tables for encoding --------------------------------------------------------------------- */

static uint64_t load(const char *p, size_t n)
{
    uint64_t v = 0;
    memcpy(&v, p, n);
    return v;
}

#define MIX 0x9e3779b97f4a7c15u

/* A quick hash of a few bytes; both halves of the result are well mixed. */
static uint64_t hash_bytes(const char *p, size_t len, uint64_t seed)
{
    const uint64_t k = MIX;
    uint64_t h = len * k ^ seed, v;
    if (len >= 8) {
        for (size_t i = 0; i + 8 < len; i += 8)
            h = ((h ^ load(p + i, 8)) * k) ^ (h >> 29);
        v = load(p + len - 8, 8);
    } else if (len >= 4)
        v = load(p, 4) | load(p + len - 4, 4) << 32;
    else
        v = len ? (uint64_t)(unsigned char)p[0] | (uint64_t)(unsigned char)p[len / 2] << 8
                      | (uint64_t)(unsigned char)p[len - 1] << 16
                : 0;
    h = (h ^ v) * k;
    h = (h ^ h >> 32) * k;
    return h ^ h >> 29;
}

/* The slot that holds `s`, or the empty one where it belongs. */
static uint64_t *find_slot(const Tokenizer *t, const char *s, size_t len, uint64_t hash)
{
    const Tables *x = t->tables;
    size_t i = hash & (x->n_slots - 1);
    for (; x->slots[i]; i = (i + 1) & (x->n_slots - 1)) {
        Str found = t->pieces[(uint32_t)x->slots[i] - 1];
        if (x->slots[i] >> 32 == hash >> 32 && found.len == len && memcmp(found.ptr, s, len) == 0)
            break;
    }
    return &x->slots[i];
}

static int find(const Tokenizer *t, const char *s, size_t len)
{
    const Tables *x = t->tables;
    if (len > x->max_len)
        return -1;
    return (int)(uint32_t)*find_slot(t, s, len, hash_bytes(s, len, x->seed)) - 1;
}

static float score(const Tokenizer *t, int id)
{
    float v;
    memcpy(&v, t->scores->data + 4 * (size_t)id, 4);
    return v;
}

/* Id of a piece that ordinary text may become, or -1. An added token that is none of the model's
 * pieces has the score -infinity in our exports: it is only found as a whole. */
static int find_text(const Tokenizer *t, const char *s, size_t len)
{
    int id = find(t, s, len);
    TokenType type = id >= 0 ? tokenizer_type(t, id) : TOKEN_CONTROL;
    if (type == TOKEN_USER_DEFINED && t->by_score && score(t, id) == -INFINITY)
        return -1;
    return type == TOKEN_NORMAL || type == TOKEN_UNDEFINED || type == TOKEN_USER_DEFINED ? id : -1;
}

static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < n + n / 2)
        size *= 2;
    return size;
}

/* All pieces by text; of equal ones the last counts, as in a JSON vocabulary. */
static int build_pieces(const Tokenizer *t, Err *e)
{
    Tables *x = t->tables;
    x->n_slots = table_size((size_t)t->n);
    x->slots = mem_zalloc(x->n_slots, sizeof *x->slots);
    if (!x->slots)
        return err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    enum { AHEAD = 16 }; // the slots of so many pieces are fetched while others are stored
    uint64_t hashes[AHEAD];
    for (int id = 0; id < t->n + AHEAD; id++) {
        uint64_t *hash = &hashes[id % AHEAD];
        Str s = id < AHEAD ? (Str){"", 0} : t->pieces[id - AHEAD];
        if (s.len) {
            *find_slot(t, s.ptr, s.len, *hash) = *hash >> 32 << 32 | (uint32_t)(id - AHEAD + 1);
            x->max_len = s.len > x->max_len ? s.len : x->max_len;
        }
        if (id >= t->n)
            continue;
        *hash = hash_bytes(t->pieces[id].ptr, t->pieces[id].len, x->seed);
        __builtin_prefetch(&x->slots[*hash & (x->n_slots - 1)], 1);
    }
    return 0;
}

static Merge *find_merge(const Tables *x, uint32_t left, uint32_t right)
{
    uint64_t h = (((uint64_t)left << 32 | right) ^ x->seed) * MIX;
    h = (h ^ h >> 32) * MIX;
    size_t i = (h ^ h >> 32) & (x->n_merge_slots - 1);
    while (x->merges[i].id1 && (x->merges[i].left != left || x->merges[i].right != right))
        i = (i + 1) & (x->n_merge_slots - 1);
    return &x->merges[i];
}

/* The merge list "left right" as pairs of ids; of equal pairs the last counts, as in Hugging Face's
 * BPE. */
static int build_merges(const Tokenizer *t, Err *e)
{
    Tables *x = t->tables;
    Str *list = gguf_strings(t->merges);
    size_t n = (size_t)t->merges->n;
    x->n_merge_slots = table_size(n);
    x->merges = mem_zalloc(x->n_merge_slots, sizeof *x->merges);
    char *joined = mem_alloc(x->max_len, 1);
    int rc = list && x->merges && joined
               ? 0
               : err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
    for (size_t i = 0; i < n && !rc; i++) {
        Str s = list[i];
        const char *space = s.len > 2 ? memchr(s.ptr + 1, ' ', s.len - 2) : NULL;
        int left = -1, right = -1, id = -1;
        if (space && s.len - 1 <= x->max_len) {
            size_t n_left = (size_t)(space - s.ptr), n_right = s.len - n_left - 1;
            left = find(t, s.ptr, n_left);
            right = find(t, space + 1, n_right);
            memcpy(joined, s.ptr, n_left);
            memcpy(joined + n_left, space + 1, n_right);
            id = find(t, joined, n_left + n_right);
        }
        if (left < 0 || right < 0 || id < 0) {
            char shown[80];
            rc = err_set(e, EXIT_MODEL,
                         "key tokenizer.ggml.merges: got \"%s\" at %zu, want two tokens that join "
                         "to a third",
                         str_escape(s, shown, sizeof shown), i);
        } else
            *find_merge(x, (uint32_t)left, (uint32_t)right) = (Merge){
                (uint32_t)left, (uint32_t)right, (uint32_t)i, (uint32_t)id + 1};
    }
    free(joined);
    free(list);
    return rc;
}

/* Whether spaces are marked before the later pass, by a normalizer, or after it. */
static bool marks_early(const Tokenizer *t)
{
    return t->marking <= MARK_REPLACE;
}

static int compare_literals(const void *a, const void *b)
{
    const Literal *x = a, *y = b;
    int c = str_cmp(x->text, y->text);
    return c ? c : (x->id > y->id) - (x->id < y->id);
}

/* Which tokens are looked for in the raw text (0), later (1), or not in the text at all (-1). NULL
 * out of memory. */
static int8_t *assign_passes(const Tokenizer *t)
{
    int8_t *pass = mem_alloc((size_t)t->n, sizeof *pass);
    for (int id = 0; pass && id < t->n; id++) {
        TokenType type = t->pieces[id].len ? tokenizer_type(t, id) : TOKEN_NORMAL;
        bool parsed = type == TOKEN_USER_DEFINED || type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
        bool symbol = type == TOKEN_USER_DEFINED && !t->byte_level
                   && t->marking == MARK_SENTENCEPIECE;
        pass[id] = (int8_t)(!parsed ? -1 : symbol || (t->later && t->later[id]));
    }
    return pass;
}

/* A token's text as the later pass meets it. */
static Str later_text(const Tokenizer *t, Str s)
{
    Buf *texts = &t->tables->texts;
    size_t from = texts->len;
    if (!marks_early(t))
        return s;
    if (t->marking == MARK_PREPEND)
        buf_add(texts, SPACE_MARK, 3);
    for (size_t i = 0; i < s.len; i++)
        buf_add(texts, s.ptr[i] == ' ' ? SPACE_MARK : s.ptr + i, s.ptr[i] == ' ' ? 3 : 1);
    return (Str){texts->ptr + from, texts->len - from};
}

static int build_literals(const Tokenizer *t, Err *e)
{
    Tables *x = t->tables;
    Literals *lists[2][2] = {{&x->raw.special, &x->raw.user}, {&x->later.special, &x->later.user}};
    size_t counts[2][2] = {{0}}, bytes = 1;
    int8_t *pass = assign_passes(t);
    bool failed = !pass;
    for (int id = 0; !failed && id < t->n; id++)
        if (pass[id] >= 0) {
            counts[pass[id]][tokenizer_type(t, id) == TOKEN_USER_DEFINED]++;
            bytes += pass[id] ? 3 * (t->pieces[id].len + 1) : 0;
        }
    for (int i = 0; i < 4; i++) {
        Literals *list = lists[i / 2][i % 2];
        list->items = mem_alloc(counts[i / 2][i % 2], sizeof *list->items);
        failed |= !list->items;
    }
    x->texts.ptr = mem_alloc(bytes, 1); // whole, so that what the items point to stays where it is
    x->texts.cap = x->texts.ptr ? bytes : 0;
    failed |= !x->texts.ptr;
    for (int id = 0; !failed && id < t->n; id++) {
        if (pass[id] < 0)
            continue;
        Literals *list = lists[pass[id]][tokenizer_type(t, id) == TOKEN_USER_DEFINED];
        Str s = pass[id] ? later_text(t, t->pieces[id]) : t->pieces[id];
        list->first[(unsigned char)*s.ptr] = true;
        list->longest = s.len > list->longest ? s.len : list->longest;
        list->items[list->n++] = (Literal){s, id};
    }
    for (int i = 0; !failed && i < 4; i++) {
        Literals *list = lists[i / 2][i % 2];
        qsort(list->items, list->n, sizeof *list->items, compare_literals);
    }
    free(pass);
    return failed ? err_set(e, EXIT_MEMORY, "out of memory for the tokenizer") : 0;
}

static int build_tables(const Tokenizer *t, Err *e)
{
    Tables *x = t->tables;
    if (x->ready)
        return 0;
    free(x->slots); // an earlier attempt may have failed halfway
    free(x->merges);
    free_literals(x);
    memset(x, 0, sizeof *x);
    double now = clock_seconds();
    memcpy(&x->seed, &now, sizeof x->seed);
    x->seed = (x->seed ^ (uintptr_t)x) * MIX;
    if (build_pieces(t, e) || (!t->by_score && build_merges(t, e)) || build_literals(t, e))
        return -1;
    for (int b = 0; b < 256; b++) {
        char name[8];
        if (t->byte_level)
            x->bytes[b] = find(t, name, utf8_encode(byte_to_char(b), name));
        else {
            snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
            int id = find(t, name, 6);
            x->bytes[b] = id >= 0 && tokenizer_type(t, id) == TOKEN_BYTE ? id : -1;
        }
    }
    for (int b = 0; b < 128; b++)
        x->ascii[b] = find_text(t, &(char){(char)b}, 1);
    x->ready = true;
    return 0;
}

int tokenizer_find(const Tokenizer *t, Str piece, Err *e)
{
    return build_tables(t, e) ? -2 : find(t, piece.ptr, piece.len);
}

/* ---- encoding -------------------------------------------------------------------------------- */

/* A symbol is what stands at a place of the text: a token's id, or a character that is no token
 * (yet): LONE with its code point, or with LONE_BYTE and the byte where it is no UTF-8. */
#define LONE 0x80000000u
#define LONE_BYTE 0x40000000u
#define NO_RANK UINT32_MAX

/* What two neighbours make. */
typedef struct {
    uint32_t left1, right; // the left symbol + 1, 0 for an empty entry; the right symbol
    uint32_t rank, made;   // the smallest rank goes first; NO_RANK: nothing. The joined token
} Pair;

enum {
    FANOUT = 16,
    N_LEVELS = 9,   // of the tree of ranks; FANOUT^(N_LEVELS - 1) symbols
    N_PAIRS = 4096, // remembered ones, a power of two
    NEIGHBOUR_BITS = 21,
    LONG_TEXT = 100000 // bytes; from here on cuts are worth a pass over the vocabulary
};

/* Steps that looking for tokens in a text may take: of the order of a second for a short text. */
enum { SEARCH_STEPS = 100000000, SEARCH_STEPS_PER_BYTE = 1000 };

/* The parts of a text whose CONTROL tokens are parsed, read from front to back. */
typedef struct {
    const TextPart *parts;
    size_t n, next;  // the first part that was not read
    size_t from, to; // the last stretch of special parts that was
} Special;

typedef struct {
    const Tokenizer *t;
    TokenList *out;
    const char *text;
    size_t len;        // of the whole text
    uint32_t *symbols; // (n) of a stretch that is joined on its own
    size_t n, cap;
    uint32_t last_char; // of the stretch
    bool last_unknown;  // the last symbol of the piece became the unknown token
    /* ranks[0] (n): of each symbol with its right neighbour, NO_RANK where they make nothing;
     * ranks[k + 1]: the smallest of each FANOUT of ranks[k], up to a single one at `top`. Padded
     * with NO_RANK. */
    uint32_t *ranks[N_LEVELS];
    size_t cap_ranks;
    int top;
    uint64_t *alive; // (n / 64) bits: not joined to a symbol on its left
    size_t cap_alive;
    Pair *pairs;          // (N_PAIRS) by hash
    uint64_t *neighbours; // (2^NEIGHBOUR_BITS / 64) by hash; NULL until a long text comes
    char *joined;         // (max_len) the text of two symbols
    Buf mapped;           // a piece in byte-level characters
    Cutter *cutter;
    int64_t search_steps; // left
    Buf marked;           // a text with its spaces marked
    Special special[2];   // as the raw and the later pass read it
    size_t begin;         // of the text's own tokens in `out`
    bool begins_with_bos;
    Err *e;
} Encoder;

static int no_memory(Encoder *c)
{
    return err_set(c->e, EXIT_MEMORY, "out of memory while tokenizing the text");
}

static int64_t search_budget(size_t len)
{
    return SEARCH_STEPS + SEARCH_STEPS_PER_BYTE * (int64_t)len;
}

static int encoder_init(Encoder *c, const Tokenizer *t, size_t len, TokenList *out, Err *e)
{
    *c = (Encoder){.t = t, .out = out, .len = len, .e = e};
    c->search_steps = search_budget(len);
    c->pairs = mem_zalloc(N_PAIRS, sizeof *c->pairs);
    c->joined = mem_alloc(t->tables->max_len, 1);
    return c->pairs && c->joined ? 0 : no_memory(c);
}

static void encoder_free(Encoder *c)
{
    free(c->symbols);
    free(c->ranks[0]);
    free(c->alive);
    free(c->pairs);
    free(c->neighbours);
    free(c->joined);
    buf_free(&c->mapped);
    buf_free(&c->marked);
    cutter_close(c->cutter);
}

/* The error of a search for tokens that took too long. */
static int search_too_long(Encoder *c)
{
    return err_set(c->e, EXIT_MODEL,
                   "key tokenizer.ggml.tokens: user-defined or control tokens "
                   "take more than %lld steps to find in a text of %zu bytes; want shorter ones",
                   (long long)search_budget(c->len), c->len);
}

/* ---- what may join --------------------------------------------------------------------------- */

/* A number that sorts like the score, the highest first. */
static uint32_t score_rank(const Tokenizer *t, int id)
{
    float v = score(t, id) + 0.0f; // -0 is 0
    uint32_t u;
    memcpy(&u, &v, 4);
    u = ~(u >> 31 ? ~u : u | 0x80000000u);
    return u < NO_RANK ? u : NO_RANK - 1;
}

/* Text of a symbol; of one that is no token in `lone`. */
static Str symbol_text(const Tokenizer *t, uint32_t symbol, char lone[4])
{
    if (symbol < LONE)
        return t->pieces[symbol];
    if (!(symbol & LONE_BYTE))
        return (Str){lone, utf8_encode(symbol & ~LONE, lone)};
    *lone = (char)(symbol & 0xff);
    return (Str){lone, 1};
}

/* What two neighbours make; remembered, since the same ones come again and again. */
static const Pair *pair_of(Encoder *c, uint32_t left, uint32_t right)
{
    const Tokenizer *t = c->t;
    Pair *p = &c->pairs[((left * 0x9e3779b1u) ^ (right * 0x85ebca6bu)) >> 20 & (N_PAIRS - 1)];
    if (p->left1 == left + 1 && p->right == right)
        return p;
    *p = (Pair){.left1 = left + 1, .right = right, .rank = NO_RANK};
    if (t->by_score) {
        char lone[2][4];
        Str a = symbol_text(t, left, lone[0]), b = symbol_text(t, right, lone[1]);
        int id = -1;
        if (a.len + b.len <= t->tables->max_len) {
            memcpy(c->joined, a.ptr, a.len);
            memcpy(c->joined + a.len, b.ptr, b.len);
            id = find_text(t, c->joined, a.len + b.len);
        }
        if (id >= 0)
            *p = (Pair){left + 1, right, score_rank(t, id), (uint32_t)id};
    } else if (left < LONE && right < LONE) {
        const Merge *m = find_merge(t->tables, left, right);
        if (m->id1)
            *p = (Pair){left + 1, right, m->rank, m->id1 - 1};
    }
    return p;
}

static uint64_t neighbour_bit(uint32_t left, uint32_t right)
{
    return (((uint64_t)left << 32 | right) * MIX) >> (64 - NEIGHBOUR_BITS);
}

/* Which characters stand next to each other in a piece (and, where hashes agree, some others).
 * Whatever is joined lies in one piece, so a text may be cut between any other two: what is left of
 * the cut and what is right of it join as they would have without it, each best pair in its
 * turn. */
static int build_neighbours(Encoder *c)
{
    const Tokenizer *t = c->t;
    c->neighbours = mem_zalloc(((size_t)1 << NEIGHBOUR_BITS) / 64, sizeof *c->neighbours);
    if (!c->neighbours)
        return no_memory(c);
    for (int id = 0; id < t->n; id++) {
        Str s = t->pieces[id];
        uint32_t last = 0, cp;
        for (size_t i = 0, n; i < s.len; i += n, last = cp) {
            n = utf8_decode(s.ptr + i, s.ptr + s.len, &cp);
            uint64_t bit = neighbour_bit(last, cp);
            if (i)
                c->neighbours[bit / 64] |= (uint64_t)1 << (bit % 64);
        }
    }
    return 0;
}

static bool may_join(const Encoder *c, uint32_t left, uint32_t right)
{
    uint64_t bit = neighbour_bit(left, right);
    return c->neighbours[bit / 64] >> (bit % 64) & 1;
}

/* ---- joining --------------------------------------------------------------------------------- */

static size_t round_up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* Room for what is known of c->n symbols, all alive and without ranks. */
static int begin_join(Encoder *c)
{
    size_t need = 0, words = round_up(c->n, 64) / 64, offset[N_LEVELS];
    c->top = -1;
    for (size_t n = c->n;; n = round_up(n, FANOUT) / FANOUT) {
        offset[++c->top] = need;
        need += round_up(n, FANOUT);
        if (n == 1)
            break;
    }
    if (need > c->cap_ranks) {
        free(c->ranks[0]); // nothing in it is kept
        c->cap_ranks = 0;
        c->ranks[0] = mem_alloc(need, sizeof *c->ranks[0]);
        if (!c->ranks[0])
            return no_memory(c);
        c->cap_ranks = need;
    }
    if (!mem_room(&c->alive, words, &c->cap_alive, sizeof *c->alive))
        return no_memory(c);
    for (int k = 1; k <= c->top; k++)
        c->ranks[k] = c->ranks[0] + offset[k];
    memset(c->ranks[0], 0xff, need * sizeof *c->ranks[0]);
    memset(c->alive, 0xff, words * sizeof *c->alive);
    return 0;
}

/* The smallest of FANOUT ranks. */
static uint32_t smallest(const uint32_t *ranks)
{
    uint32_t best = ranks[0];
    for (int i = 1; i < FANOUT; i++)
        best = ranks[i] < best ? ranks[i] : best;
    return best;
}

/* ranks[0][i] or one beside it was changed. */
static void update_ranks(Encoder *c, size_t i)
{
    for (int k = 0; k < c->top; k++) {
        i /= FANOUT;
        uint32_t best = smallest(c->ranks[k] + i * FANOUT);
        if (c->ranks[k + 1][i] == best)
            return;
        c->ranks[k + 1][i] = best;
    }
}

/* The living symbol before i, SIZE_MAX if there is none. */
static size_t symbol_before(const Encoder *c, size_t i)
{
    size_t word = i / 64;
    uint64_t bits = c->alive[word] & (((uint64_t)1 << (i % 64)) - 1);
    while (!bits && word)
        bits = c->alive[--word];
    return bits ? word * 64 + 63 - (size_t)__builtin_clzll(bits) : SIZE_MAX;
}

/* The living symbol after i, c->n if there is none. */
static size_t symbol_after(const Encoder *c, size_t i)
{
    size_t word = ++i / 64, n_words = round_up(c->n, 64) / 64;
    uint64_t bits = i < c->n ? c->alive[word] >> (i % 64) << (i % 64) : 0;
    while (!bits && ++word < n_words)
        bits = c->alive[word];
    i = bits ? word * 64 + (size_t)__builtin_ctzll(bits) : c->n;
    return i < c->n ? i : c->n;
}

static uint32_t rank_of(Encoder *c, size_t left, size_t right)
{
    return pair_of(c, c->symbols[left], c->symbols[right])->rank;
}

/* Join the symbols as far as they go: the pair of the smallest rank first, the leftmost of
 * those. */
static int join_symbols(Encoder *c)
{
    if (begin_join(c))
        return -1;
    for (size_t i = 0; i + 1 < c->n; i++)
        c->ranks[0][i] = rank_of(c, i, i + 1);
    size_t count = c->n;
    for (int k = 0; k < c->top; k++) {
        count = round_up(count, FANOUT) / FANOUT;
        for (size_t i = 0; i < count; i++)
            c->ranks[k + 1][i] = smallest(c->ranks[k] + i * FANOUT);
    }
    for (uint32_t best; (best = *c->ranks[c->top]) != NO_RANK;) {
        size_t i = 0;
        for (int k = c->top; k-- > 0;)
            for (i *= FANOUT; c->ranks[k][i] != best; i++) {
            }
        size_t joined = symbol_after(c, i), right = symbol_after(c, joined);
        size_t left = symbol_before(c, i);
        c->symbols[i] = pair_of(c, c->symbols[i], c->symbols[joined])->made;
        c->alive[joined / 64] &= ~((uint64_t)1 << (joined % 64));
        c->ranks[0][joined] = NO_RANK;
        c->ranks[0][i] = right < c->n ? rank_of(c, i, right) : NO_RANK;
        if (left != SIZE_MAX)
            c->ranks[0][left] = rank_of(c, left, i);
        update_ranks(c, i);
        if (joined / FANOUT != i / FANOUT)
            update_ranks(c, joined);
        if (left != SIZE_MAX && left / FANOUT != i / FANOUT)
            update_ranks(c, left);
    }
    return 0;
}

/* Add a character that is no token: its bytes where the vocabulary has them, else the unknown
 * token, one for a run. */
static int add_lone(Encoder *c, uint32_t symbol)
{
    const Tokenizer *t = c->t;
    char lone[4];
    Str s = symbol_text(t, symbol, lone);
    bool bytes = true;
    for (size_t i = 0; i < s.len; i++)
        bytes = bytes && t->tables->bytes[(unsigned char)s.ptr[i]] >= 0;
    for (size_t i = 0; bytes && i < s.len; i++)
        if (tokens_add(c->out, t->tables->bytes[(unsigned char)s.ptr[i]], c->e))
            return -1;
    if (!bytes && t->unknown >= 0 && !c->last_unknown && tokens_add(c->out, t->unknown, c->e))
        return -1;
    c->last_unknown = !bytes;
    return 0;
}

static int add_symbol(Encoder *c, uint32_t symbol)
{
    if (symbol >= LONE)
        return add_lone(c, symbol);
    c->last_unknown = false;
    return tokens_add(c->out, (int)symbol, c->e);
}

/* Join the stretch, add its tokens, and begin another one. */
static int end_stretch(Encoder *c)
{
    size_t n = c->n;
    if (n > 1 && join_symbols(c))
        return -1;
    for (size_t i = 0; i < n; i = n > 1 ? symbol_after(c, i) : n)
        if (add_symbol(c, c->symbols[i]))
            return -1;
    c->n = 0;
    return 0;
}

/* Put a character behind the stretch, or begin another one with it. */
static int put(Encoder *c, uint32_t symbol, uint32_t character, bool cuts)
{
    if (cuts && c->n && !may_join(c, c->last_char, character) && end_stretch(c))
        return -1;
    if (!mem_room(&c->symbols, c->n + 1, &c->cap, sizeof *c->symbols))
        return no_memory(c);
    c->symbols[c->n++] = symbol;
    c->last_char = character;
    return 0;
}

/* The whole piece text[from, to) as one token, without joining: its id, -1 if it is none, -2 when
 * out of memory. */
static int find_whole(Encoder *c, size_t from, size_t to)
{
    c->mapped.len = 0;
    if (to - from > c->t->tables->max_len)
        return -1;
    for (size_t i = from; i < to; i++) {
        char utf8[4];
        buf_add(&c->mapped, utf8, utf8_encode(byte_to_char((unsigned char)c->text[i]), utf8));
    }
    if (c->mapped.failed)
        return no_memory(c) - 1;
    int id = find_text(c->t, c->mapped.ptr, c->mapped.len);
    return id >= 0 && tokenizer_type(c->t, id) != TOKEN_USER_DEFINED ? id : -1;
}

/* Put the piece's bytes, or its characters. */
static int put_all(Encoder *c, size_t from, size_t to, bool cuts)
{
    const Tokenizer *t = c->t;
    for (size_t i = from, n; i < to; i += n) {
        unsigned char byte = (unsigned char)c->text[i];
        uint32_t cp = byte;
        int id;
        n = byte < 0x80 || t->byte_level ? 1 : utf8_decode(c->text + i, c->text + to, &cp);
        if (t->byte_level)
            id = t->tables->bytes[byte];
        else
            id = byte < 0x80 ? t->tables->ascii[byte] : find_text(t, c->text + i, n);
        if (id < 0 && t->byte_level)
            continue; // a byte without a token is left out, as in Hugging Face's BPE
        uint32_t lone = cp & UTF8_INVALID ? LONE | LONE_BYTE | byte : LONE | cp;
        if (put(c, id < 0 ? lone : (uint32_t)id, t->byte_level ? byte_to_char(byte) : cp, cuts))
            return -1;
    }
    return 0;
}

/* Tokens of text[from, to), one pre-token or the whole text. */
static int encode_piece(Encoder *c, size_t from, size_t to)
{
    const Tokenizer *t = c->t;
    if (c->search_steps < 0)
        return search_too_long(c);
    if (t->ignore_merges && t->byte_level) {
        int id = find_whole(c, from, to);
        if (id != -1)
            return id < 0 ? -1 : tokens_add(c->out, id, c->e);
    }
    bool cuts = (t->byte_level ? to - from : c->len) >= LONG_TEXT; // pre-tokens are short as it is
    if (cuts && !c->neighbours && build_neighbours(c))
        return -1;
    c->last_unknown = false;
    return put_all(c, from, to, cuts) || end_stretch(c) ? -1 : 0;
}

/* The longest literal that (text, len) begins with; NULL if there is none, or no steps are left. */
static const Literal *match_literal(const Literals *list, const char *text, size_t len,
                                    int64_t *steps)
{
    const Literal *best = NULL;
    size_t lo = 0, hi = list->n; // those that agree with the first `depth` bytes
    if (len == 0 || !list->first[(unsigned char)*text])
        return NULL;
    for (size_t depth = 0; lo < hi && *steps >= 0; depth++) {
        for (; lo < hi && list->items[lo].text.len == depth; lo++)
            best = &list->items[lo];
        if (depth == len)
            break;
        unsigned char byte = (unsigned char)text[depth];
        size_t ends[2]; // first item whose next byte is >= byte, and > byte
        for (int k = 0; k < 2; k++) {
            size_t a = k ? ends[0] : lo, b = hi;
            while (a < b) {
                size_t mid = (a + b) / 2;
                --*steps;
                unsigned char x = (unsigned char)list->items[mid].text.ptr[depth];
                if (x < byte || (k && x == byte))
                    a = mid + 1;
                else
                    b = mid;
            }
            ends[k] = a;
        }
        lo = ends[0];
        hi = ends[1];
    }
    return best;
}

/* Where the stretch of special parts that holds byte `at` ends; `at` itself if it lies in none.
 * `at` never falls. */
static size_t special_end(Special *s, size_t at)
{
    while (s->to <= at && s->next < s->n) {
        while (s->next < s->n && !s->parts[s->next].special)
            s->next++;
        s->from = s->next ? s->parts[s->next - 1].end : 0;
        s->to = s->from;
        for (; s->next < s->n && s->parts[s->next].special; s->next++)
            s->to = s->parts[s->next].end;
    }
    return at >= s->from && at < s->to ? s->to : at;
}

/* A search for the tokens of one pass. It reads `text`, which is the whole text, or a stretch of
 * `source` with its spaces marked; then `raw` is the place in `source` that byte `at` was made of.
 * */
typedef struct {
    const Pass *pass;
    Special *special;
    const char *text;
    size_t at, len;
    const char *source; // NULL: `text` is the text itself, and `raw` is `at`
    size_t raw, front;  // bytes of a mark in front of the text, not passed yet
    bool squeeze;       // a run of spaces in `source` became one mark
    int64_t *steps;     // left for matching
} Search;

/* How many bytes became of the one at `raw` in the text. */
static size_t marked_width(const Search *s, size_t raw)
{
    if (!s->source || s->source[raw] != ' ')
        return 1;
    return s->squeeze && s->source[raw + 1] == ' ' ? 0 : 3;
}

static void search_step(Search *s)
{
    if (s->front) {
        s->at += s->front;
        s->front = 0;
        return;
    }
    s->at += marked_width(s, s->raw++);
}

/* How many bytes from s->at on lie in special parts, as far as the longest token needs to know. */
static size_t special_bytes(Search *s)
{
    size_t n = special_end(s->special, s->raw) - s->raw, bytes = n ? s->front : 0;
    for (size_t i = 0; i < n && bytes < s->pass->special.longest; i++)
        bytes += marked_width(s, s->raw + i);
    *s->steps -= (int64_t)(bytes / 8);
    return bytes < s->len - s->at ? bytes : s->len - s->at;
}

/* The token that stands at s->at, the longest one; NULL if there is none. */
static const Literal *parsed_at(Search *s)
{
    const char *p = s->text + s->at;
    const Literal *special = NULL;
    const Literal *user = match_literal(&s->pass->user, p, s->len - s->at, s->steps);
    if (s->pass->special.first[(unsigned char)*p])
        special = match_literal(&s->pass->special, p, special_bytes(s), s->steps);
    return !user || (special && special->text.len > user->text.len) ? special : user;
}

/* Where the next token stands; the search goes on behind it. s->len and *found = NULL if there is
 * none. */
static size_t search_next(Search *s, const Literal **found)
{
    if (!s->pass->user.n && !s->pass->special.n)
        s->at = s->len;
    for (; s->at < s->len; search_step(s))
        if ((*found = parsed_at(s))) {
            size_t begin = s->at, end = begin + (*found)->text.len;
            while (s->at < end)
                search_step(s);
            return begin;
        }
    *found = NULL;
    return s->len;
}

static int add_parsed(Encoder *c, int id)
{
    c->begins_with_bos |= id == c->t->bos && c->out->n == c->begin;
    return tokens_add(c->out, id, c->e);
}

/* Tokens of a normalised text, piece by piece. */
static int cut_and_encode(Encoder *c, const char *text, size_t len)
{
    size_t from = 0, to;
    int rc;
    if (len >= INT32_MAX)
        return err_set(c->e, EXIT_USAGE, "text: got %zu bytes in form C, want less than 2 GB", len);
    if (!c->cutter && !(c->cutter = cutter_open(c->t->pretok, c->len, c->e)))
        return -1;
    c->text = text;
    cutter_start(c->cutter, text, len);
    while ((rc = cutter_next(c->cutter, &to, c->e)) == 1 && !(rc = encode_piece(c, from, to)))
        from = to;
    return rc;
}

/* Text between parsed tokens, byte-level BPE. */
static int encode_bytes(Encoder *c, const char *text, size_t len)
{
    const Tokenizer *t = c->t;
    Buf prefixed = {0}, normal = {0};
    if (t->space_prefix && *text != ' ') {
        buf_add(&prefixed, " ", 1);
        buf_add(&prefixed, text, len);
        text = prefixed.ptr;
        len = prefixed.len;
    }
    int rc = prefixed.failed ? no_memory(c) : t->nfc ? nfc(text, len, &normal, c->e) : 0;
    if (rc == 1) {
        buf_free(&prefixed);
        text = normal.ptr;
        len = normal.len;
    }
    rc = rc < 0 ? rc : cut_and_encode(c, text, len);
    buf_free(&prefixed);
    buf_free(&normal);
    return rc;
}

/* c->marked: a text with its spaces marked; `prefix`: after one more mark. */
static int mark_spaces(Encoder *c, const char *text, size_t len, bool prefix)
{
    c->marked.len = 0;
    if (prefix)
        buf_add(&c->marked, SPACE_MARK, 3);
    for (size_t i = 0, plain; i < len; i += plain) {
        const char *space = memchr(text + i, ' ', len - i);
        plain = space ? (size_t)(space - text) - i : len - i;
        buf_add(&c->marked, text + i, plain);
        if (space) {
            buf_add(&c->marked, SPACE_MARK, 3);
            while (++plain < len - i && c->t->remove_extra_spaces && text[i + plain] == ' ') {
            }
        }
    }
    c->text = c->marked.ptr;
    return c->marked.failed ? no_memory(c)
         : c->marked.len < INT32_MAX
             ? 0
             : err_set(c->e, EXIT_USAGE, "text: got %zu bytes, want less than 700 MB", len);
}

/* The text from `from` to `to`, between parsed tokens, where a normalizer marks the spaces: later
 * tokens are looked for in what it made. */
static int encode_normalized(Encoder *c, const char *text, size_t from, size_t to)
{
    const Tokenizer *t = c->t;
    bool squeeze = t->remove_extra_spaces;
    while (squeeze && to > from && text[to - 1] == ' ')
        to--;
    while (squeeze && to > from && text[from] == ' ')
        from++;
    if (to == from)
        return 0;
    if (mark_spaces(c, text + from, to - from, t->space_prefix))
        return -1;
    Search s = {.pass = &t->tables->later,
                .special = &c->special[1],
                .text = c->marked.ptr,
                .len = c->marked.len,
                .source = text,
                .raw = from,
                .front = t->space_prefix ? 3 : 0,
                .squeeze = squeeze,
                .steps = &c->search_steps};
    for (size_t i = 0; i < s.len; i = s.at) {
        const Literal *found;
        size_t end = search_next(&s, &found);
        if ((end > i && encode_piece(c, i, end)) || (found && add_parsed(c, found->id)))
            return -1;
    }
    return 0;
}

/* The same where Hugging Face's Metaspace marks the spaces of what is left between all tokens. */
static int encode_metaspace(Encoder *c, const char *text, size_t from, size_t to)
{
    const Tokenizer *t = c->t;
    Search s = {.pass = &t->tables->later,
                .special = &c->special[1],
                .text = text,
                .at = from,
                .raw = from,
                .len = to,
                .steps = &c->search_steps};
    for (size_t i = from; i < to; i = s.at) {
        const Literal *found;
        size_t end = search_next(&s, &found);
        bool marked = text[i] == ' ' || (end - i >= 3 && memcmp(text + i, SPACE_MARK, 3) == 0);
        bool wanted = t->marking == MARK_ALWAYS || (t->marking == MARK_FIRST && i == 0);
        if (end > i && mark_spaces(c, text + i, end - i, wanted && !marked))
            return -1;
        if (end > i && encode_piece(c, 0, c->marked.len))
            return -1;
        if (found && add_parsed(c, found->id))
            return -1;
    }
    return 0;
}

/* Ids of a text without what goes in front and behind. */
static int encode_text(Encoder *c, const char *text, size_t len)
{
    const Tokenizer *t = c->t;
    Search s = {.pass = &t->tables->raw,
                .special = &c->special[0],
                .text = text,
                .len = len,
                .steps = &c->search_steps};
    for (size_t i = 0; i < len; i = s.at) {
        const Literal *found;
        size_t end = search_next(&s, &found);
        int rc = end == i ? 0
               : t->byte_level
                   ? encode_bytes(c, text + i, end - i)
                   : (marks_early(t) ? encode_normalized : encode_metaspace)(c, text, i, end);
        if (rc || (found && add_parsed(c, found->id)))
            return -1;
    }
    return 0;
}

int tokenizer_encode_parts(const Tokenizer *t, const char *text, size_t len, const TextPart *parts,
                           size_t n_parts, unsigned flags, TokenList *out, Err *e)
{
    Encoder c;
    size_t before = out->n;
    if (len >= INT32_MAX)
        return err_set(e, EXIT_USAGE, "text: got %zu bytes, want less than 2 GB", len);
    if (build_tables(t, e))
        return -1;
    bool adds_bos = flags & ENCODE_BOS && t->adds_bos;
    int rc = encoder_init(&c, t, len, out, e);
    c.special[0] = c.special[1] = (Special){.parts = parts, .n = n_parts};
    if (!rc && adds_bos)
        rc = tokens_add(out, t->bos, e);
    c.begin = out->n;
    rc = rc ? rc : encode_text(&c, text, len);
    if (!rc && c.search_steps < 0)
        rc = search_too_long(&c);
    if (!rc && adds_bos && c.begins_with_bos) // the text's own one is enough
        memmove(out->ids + before, out->ids + before + 1, (--out->n - before) * sizeof *out->ids);
    if (!rc && flags & ENCODE_EOS && t->adds_eos)
        rc = tokens_add(out, t->eos, e);
    encoder_free(&c);
    out->n = rc ? before : out->n;
    return rc;
}

int tokenizer_encode(const Tokenizer *t, const char *text, size_t len, unsigned flags,
                     TokenList *out, Err *e)
{
    TextPart whole = {len, flags & ENCODE_SPECIAL};
    return tokenizer_encode_parts(t, text, len, &whole, 1, flags, out, e);
}

/* ---- decoding -------------------------------------------------------------------------------- */

void tokenizer_bytes(const Tokenizer *t, int id, bool special, Buf *out)
{
    Str s = tokenizer_piece(t, id);
    TokenType type = tokenizer_type(t, id);
    const char *end = s.ptr + s.len;
    size_t before = out->len;
    bool by_name = type == TOKEN_CONTROL || type == TOKEN_UNKNOWN;
    if (type == TOKEN_UNUSED || (by_name && !special) || !s.len)
        return;
    if (t->marking == MARK_PREPEND && t->later && t->later[id])
        buf_add(out, " ", 1); // it was found with one
    if (by_name) {
        buf_add(out, s.ptr, s.len);
    } else if (t->byte_level && type != TOKEN_USER_DEFINED) {
        for (const char *p = s.ptr; p < end;) {
            uint32_t cp;
            p += utf8_decode(p, end, &cp);
            int b = char_to_byte(cp);
            if (b < 0) { // a piece that is not in byte-level characters stands for itself
                out->len = before;
                buf_add(out, s.ptr, s.len);
                return;
            }
            buf_add(out, &(char){(char)b}, 1);
        }
    } else if (!t->byte_level && type == TOKEN_BYTE && named_byte(s) >= 0)
        buf_add(out, &(char){(char)named_byte(s)}, 1);
    else if (t->byte_level)
        buf_add(out, s.ptr, s.len);
    else
        for (const char *p = s.ptr; p < end;) {
            bool mark = end - p >= 3 && memcmp(p, SPACE_MARK, 3) == 0;
            buf_add(out, mark ? " " : p, 1);
            p += mark ? 3 : 1;
        }
}

void tokenizer_text(const Tokenizer *t, int id, Buf *out)
{
    Buf bytes = {0};
    tokenizer_bytes(t, id, true, &bytes);
    out->failed |= bytes.failed;
    for (size_t i = 0; i < bytes.len && !bytes.failed;) {
        uint32_t cp;
        char hex[8];
        size_t n = utf8_decode(bytes.ptr + i, bytes.ptr + bytes.len, &cp);
        if (cp & UTF8_INVALID || !cp) // NumPy would drop a zero
            buf_add(out, hex, (size_t)snprintf(hex, sizeof hex, "\\x%02X", (unsigned)(cp & 0xff)));
        else
            buf_add(out, bytes.ptr + i, n);
        i += n;
    }
    buf_free(&bytes);
}

void decoder_init(Decoder *d, const Tokenizer *t, bool at_start, bool special)
{
    *d = (Decoder){
        .t = t, .special = special, .at_start = at_start && t->space_prefix && !t->byte_level};
}

void decoder_feed(Decoder *d, int id, Buf *out)
{
    size_t from = out->len;
    decoder_flush(d, out);
    size_t fresh = out->len;
    tokenizer_bytes(d->t, id, d->special, out);
    if (out->failed)
        return;
    if (d->at_start && out->len > fresh) {
        d->at_start = false;
        if (out->ptr[fresh] == ' ') {
            memmove(out->ptr + fresh, out->ptr + fresh + 1, out->len - fresh - 1);
            out->len--;
        }
    }
    size_t ready = utf8_complete(out->ptr + from, out->len - from);
    d->n_held = out->len - from - ready;
    memcpy(d->held, out->ptr + from + ready, d->n_held);
    out->len = from + ready;
}

void decoder_flush(Decoder *d, Buf *out)
{
    buf_add(out, d->held, d->n_held);
    d->n_held = 0;
}
