/* vocab.c - the tokenizer.* keys of a file, read and checked. Contracts are in vocab.h.
 *
 * What the keys leave open is in tables: the kinds of tokenizers, the ways to mark spaces and the
 * names of tokens that end a text. How byte-level texts are cut, by name, is pretokenize.c's table;
 * what the files of an architecture do not say comes from the caller.
 */
#include "text/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "text/pretokenize.h"

#define COUNT(list) (sizeof(list) / sizeof *(list))

float vocab_score(const Vocab *v, int id)
{
    float score;
    memcpy(&score, v->scores->data + 4 * (size_t)id, 4);
    return score;
}

/* ---- keys ------------------------------------------------------------------------------------ */

static int no_memory(Err *e)
{
    return err_set(e, EXIT_MEMORY, "out of memory for the tokenizer");
}

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
static int id_key(const Vocab *v, const Gguf *g, const char *name, int *id, Err *e)
{
    uint32_t got;
    int rc = gguf_u32(g, name, &got, e);
    if (rc <= 0)
        return rc;
    if (got >= (uint32_t)v->n)
        return err_set(e, EXIT_MODEL, "key %s: got %u, want less than the %d tokens", name, got,
                       v->n);
    *id = (int)got;
    return 0;
}

/* Set *out (n, made where NULL) for the ids in an optional array. */
static int mark_ids(const Vocab *v, const Gguf *g, const char *name, uint8_t **out, Err *e)
{
    const GgufKey *ids;
    int rc = array_key(g, name, GGUF_I32, "32-bit integers", 0, &ids, e);
    if (rc <= 0)
        return rc;
    if (!*out && !(*out = mem_zalloc((size_t)v->n, 1)))
        return no_memory(e);
    for (uint64_t i = 0; i < ids->n; i++) {
        double got = gguf_number(ids, i);
        if (got < 0 || got >= v->n)
            return err_set(e, EXIT_MODEL, "key %s: got %.0f, want less than the %d tokens", name,
                           got, v->n);
        (*out)[(int)got] = 1;
    }
    return 0;
}

/* ---- tables ---------------------------------------------------------------------------------- */

/* tokenizer.ggml.model: the kinds of tokenizers, or what we do not have. */
static const struct {
    const char *name, *refused;
    bool pretokenized; // the flags are the pre-tokenizer's
    bool by_score, wordpiece;
    unsigned flags; // of PRE_
} models[] = {
    {.name = "gpt2", .pretokenized = true},
    {.name = "llama", .by_score = true, .flags = PRE_ESCAPE | PRE_BOS},
    {.name = "gemma4", .flags = PRE_ESCAPE | PRE_BOS},
    {.name = "t5", .refused = "Unigram"},
    {.name = "bert", .wordpiece = true, .flags = PRE_ESCAPE | PRE_BOS},
    {.name = "rwkv", .refused = "RWKV"},
    {.name = "plamo2", .refused = "PLaMo 2"},
    {.name = "none", .refused = "no tokenizer"},
    {.name = "no_vocab", .refused = "no tokenizer"},
    {.name = "hybriddna", .refused = "DNA k-mers"},
    {.name = "whitespace", .refused = "words"},
};

/* tokenizer.attnc.space_prefix. */
static const struct {
    const char *name;
    bool early;        // Vocab.marks_early
    bool space_prefix; // whether a mark may be put before the text at all
} markings[] = {
    [MARK_SENTENCEPIECE] = {"", true, true}, // where the key is absent
    [MARK_PREPEND] = {"prepend", true, true}, [MARK_REPLACE] = {"replace", true, false},
    [MARK_FIRST] = {"first", false, true},    [MARK_ALWAYS] = {"always", false, true},
    [MARK_NEVER] = {"never", false, false},
};

/* What a token ends. */
typedef enum { ENDS_TEXT, ENDS_MESSAGE, ENDS_CALL, ENDS_TURN, N_ENDS } Ends;

/* Names of CONTROL tokens that end a text: of turns and texts, and the file separators that models
 * of code put between files (the list is llama.cpp's). In the formats harmony and solar <|end|>
 * ends a message only: those have tokens for the end of a call and of a turn, too. */
static const struct {
    Ends ends;
    const char *names;
} end_tokens[] = {
    {ENDS_MESSAGE, "<|end|>"},
    {ENDS_CALL, "<|call|> <|calls|>"},
    {ENDS_TURN, "<|return|> <|flush|>"},
    {ENDS_TEXT, "<|eot_id|> <|im_end|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> "
                "[EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
                "<｜end▁of▁sentence｜> [e~["},
    {ENDS_TEXT, "<|fim_pad|> <fim-pad> <fim_pad> <|fim_repo|> <|repo_name|> <fim-repo> <REPO> "
                "<reponame> <|file_sep|>"},
};

/* Keys of tokens that end a text, whatever their names. */
static const char *const end_keys[] = {
    "tokenizer.ggml.eot_token_id",     "tokenizer.ggml.eom_token_id",
    "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id",
    "tokenizer.ggml.fim_sep_token_id",
};

/* ---- opening --------------------------------------------------------------------------------- */

/* The tokens that end a text by their names. */
static void mark_named_ends(Vocab *v)
{
    int last[N_ENDS] = {-1, -1, -1, -1}; // token that ends such a thing
    bool begins[256] = {false};          // whether a name begins with this byte
    for (size_t i = 0; i < COUNT(end_tokens); i++)
        for (const char *p = end_tokens[i].names; p; p = strchr(p, ' ') ? strchr(p, ' ') + 1 : NULL)
            begins[(unsigned char)*p] = true;
    for (int id = 0; id < v->n; id++) {
        Str s = v->pieces[id];
        if (s.len == 0 || !begins[(unsigned char)*s.ptr]
            || (v->types && vocab_type(v, id) != TOKEN_CONTROL))
            continue;
        for (size_t i = 0; i < COUNT(end_tokens); i++)
            if (str_listed(s, end_tokens[i].names)) {
                v->is_end[id] = 1;
                last[end_tokens[i].ends] = id;
            }
    }
    if (last[ENDS_MESSAGE] >= 0 && last[ENDS_CALL] >= 0 && last[ENDS_TURN] >= 0)
        v->is_end[last[ENDS_MESSAGE]] = 0;
}

static int find_end_tokens(Vocab *v, const Gguf *g, Err *e)
{
    v->is_end = mem_zalloc((size_t)v->n, 1);
    if (!v->is_end)
        return no_memory(e);
    mark_named_ends(v);
    for (size_t i = 0; i < COUNT(end_keys); i++) {
        int id = -1;
        if (id_key(v, g, end_keys[i], &id, e))
            return -1;
        if (id >= 0)
            v->is_end[id] = 1;
    }
    if (v->eos >= 0)
        v->is_end[v->eos] = 1;
    return mark_ids(v, g, "tokenizer.ggml.eos_token_ids", &v->is_end, e);
}

/* How spaces are marked: our own keys, else SentencePiece's way with or without a prefix. */
static int open_marking(Vocab *v, const Gguf *g, Err *e)
{
    static const char key[] = "tokenizer.attnc.space_prefix";
    Str name = {0};
    char shown[80];
    int has_name = v->byte_level ? 0 : gguf_str(g, key, &name, e);
    if (has_name < 0
        || (has_name && mark_ids(v, g, "tokenizer.attnc.normalized_tokens", &v->later, e)))
        return -1;
    for (size_t i = 0; has_name && i < COUNT(markings); i++)
        if (*markings[i].name && str_eq(name, markings[i].name)) {
            v->marking = (Marking)i;
            v->space_prefix = markings[i].space_prefix;
        }
    v->marks_early = markings[v->marking].early;
    if (has_name && v->marking == MARK_SENTENCEPIECE)
        return err_set(e, EXIT_MODEL,
                       "key %s: got \"%s\", want first, always, never, prepend or replace", key,
                       str_escape(name, shown, sizeof shown));
    return 0;
}

/* Where byte-level BPE cuts the text: our own keys, the rule named by the file, or
 * default_pre (NULL: none). */
static int open_pretokenizer(Vocab *v, const Gguf *g, const char *default_pre, unsigned *flags,
                             Err *e)
{
    Str name = {0}, normalizer = {0};
    const GgufKey *own;
    char shown[80];
    int has_name = gguf_str(g, "tokenizer.ggml.pre", &name, e);
    int has_own = array_key(g, "tokenizer.attnc.pre_patterns", GGUF_STRING, "strings", 0, &own, e);
    int has_normalizer = gguf_str(g, "tokenizer.attnc.normalizer", &normalizer, e);
    if (has_name < 0 || has_own < 0 || has_normalizer < 0)
        return -1;
    if (!has_name && default_pre)
        name = (Str){default_pre, strlen(default_pre)};
    const PreRule *rule = name.len ? pre_rule(name) : NULL;
    if (rule)
        *flags = rule->flags;
    else if (!has_own && !has_name)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.pre: missing, want it for byte-level BPE (this "
                       "architecture has no default)");
    else if (!has_own)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.pre: got \"%s\", want a pre-tokenizer that we know, "
                       "such as gpt-2, llama-bpe, qwen2, smollm or tekken",
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
    v->pretok = pretok_compile(patterns, n, e);
    if (has_own)
        free(patterns);
    return v->pretok ? 0 : -1;
}

/* The kind of the tokenizer, and what follows from it. */
static int open_model(Vocab *v, const Gguf *g, const char *default_pre, unsigned *flags, Err *e)
{
    Str model = {0};
    char shown[80];
    int rc = gguf_str(g, "tokenizer.ggml.model", &model, e);
    if (rc <= 0)
        return rc < 0
                 ? -1
                 : err_set(e, EXIT_MODEL,
                           "key tokenizer.ggml.model: missing, want gpt2, llama, gemma4 or bert");
    size_t i = 0;
    while (i < COUNT(models) && !str_eq(model, models[i].name))
        i++;
    if (i == COUNT(models) || models[i].refused)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.model: got \"%s\" (%s), "
                       "want gpt2, llama, gemma4 or bert",
                       str_escape(model, shown, sizeof shown),
                       i == COUNT(models) ? "unknown to us" : models[i].refused);
    v->by_score = models[i].by_score;
    v->wordpiece = models[i].wordpiece;
    *flags = models[i].flags;
    if (models[i].pretokenized && open_pretokenizer(v, g, default_pre, flags, e))
        return -1;
    v->byte_level = !(*flags & PRE_ESCAPE);
    return 0;
}

/* The pieces and what there is of each. */
static int open_lists(Vocab *v, const Gguf *g, const char *default_pre, unsigned *flags, Err *e)
{
    const GgufKey *tokens, *map;
    int rc = array_key(g, "tokenizer.ggml.tokens", GGUF_STRING, "strings", 1, &tokens, e);
    if (rc <= 0)
        return rc < 0 ? -1
                      : err_set(e, EXIT_MODEL,
                                "key tokenizer.ggml.tokens: missing, want the vocabulary");
    if (tokens->n > INT32_MAX / 2)
        return err_set(e, EXIT_MODEL, "key tokenizer.ggml.tokens: got %llu items, want at most %d",
                       (unsigned long long)tokens->n, INT32_MAX / 2);
    v->n = (int)tokens->n;
    v->pieces = gguf_strings(tokens);
    if (!v->pieces)
        return no_memory(e);
    if (open_model(v, g, default_pre, flags, e)
        || array_key(g, "tokenizer.ggml.token_type", GGUF_I32, "32-bit integers", tokens->n,
                     &v->types, e)
               < 0
        || array_key(g, "tokenizer.ggml.scores", GGUF_F32, "32-bit floats",
                     v->by_score ? tokens->n : 0, &v->scores, e)
               < 0
        || array_key(g, "tokenizer.ggml.merges", GGUF_STRING, "strings", 0, &v->merges, e) < 0
        || array_key(g, "tokenizer.ggml.precompiled_charsmap", GGUF_U8, "bytes", 0, &map, e) < 0)
        return -1;
    if (v->by_score && !v->scores)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.scores: missing, want one for each of the %d tokens",
                       v->n);
    if (!v->by_score && !v->wordpiece && !v->merges)
        return err_set(e, EXIT_MODEL, "key tokenizer.ggml.merges: missing, want the merge list");
    if (map && map->n > 0)
        return err_set(e, EXIT_MODEL,
                       "key tokenizer.ggml.precompiled_charsmap: got a text normalisation, want "
                       "none");
    return 0;
}

/* The id that a special token has where no key says it, unless the types say that it is a plain
 * one. */
static int usual_id(const Vocab *v, int id, TokenType type)
{
    return id < v->n && (!v->types || vocab_type(v, id) == type) ? id : -1;
}

/* SentencePiece's own ids, or those of BERT's vocabularies, whose keys have names of their own. */
static int open_special(Vocab *v, const Gguf *g, Err *e)
{
    if (v->by_score) {
        v->bos = usual_id(v, 1, TOKEN_CONTROL);
        v->eos = usual_id(v, 2, TOKEN_CONTROL);
        v->unknown = usual_id(v, 0, TOKEN_UNKNOWN);
    }
    if (v->wordpiece) {
        v->unknown = 100 < v->n ? 100 : -1;
        v->bos = usual_id(v, 101, TOKEN_CONTROL);
        v->eos = usual_id(v, 102, TOKEN_CONTROL);
    }
    return id_key(v, g, "tokenizer.ggml.bos_token_id", &v->bos, e)
                || id_key(v, g, "tokenizer.ggml.eos_token_id", &v->eos, e)
                || id_key(v, g, "tokenizer.ggml.unknown_token_id", &v->unknown, e)
                || (v->wordpiece
                    && (id_key(v, g, "tokenizer.ggml.cls_token_id", &v->bos, e)
                        || id_key(v, g, "tokenizer.ggml.seperator_token_id", &v->eos, e)))
             ? -1
             : 0;
}

/* What BERT's normalizer does, and its [SEP]. */
static int open_wordpiece(Vocab *v, const Gguf *g, Err *e)
{
    v->space_prefix = v->lowercase = v->adds_eos = true;
    if (gguf_bool(g, "tokenizer.ggml.normalizer.lowercase", &v->lowercase, e) < 0)
        return -1;
    v->strip_accents = v->lowercase;
    return gguf_bool(g, "tokenizer.ggml.normalizer.strip_accents", &v->strip_accents, e) < 0
                || gguf_bool(g, "tokenizer.ggml.add_sep_token", &v->adds_eos, e) < 0
             ? -1
             : 0;
}

int vocab_open(Vocab *v, const Gguf *g, const TokenizerDefaults *defaults, Err *e)
{
    unsigned flags = 0;
    *v = (Vocab){.bos = -1, .eos = -1, .unknown = -1};
    if (open_lists(v, g, defaults->pre, &flags, e))
        return -1;
    v->nfc = flags & PRE_NFC;
    v->ignore_merges = flags & PRE_IGNORE_MERGES;
    v->adds_bos = flags & PRE_BOS;
    v->space_prefix = v->by_score;
    if (open_special(v, g, e) || (v->wordpiece && open_wordpiece(v, g, e))
        || gguf_bool(g, "tokenizer.ggml.add_bos_token", &v->adds_bos, e) < 0
        || gguf_bool(g, "tokenizer.ggml.add_eos_token", &v->adds_eos, e) < 0
        || gguf_bool(g, "tokenizer.ggml.add_space_prefix", &v->space_prefix, e) < 0
        || gguf_bool(g, "tokenizer.ggml.remove_extra_whitespaces", &v->remove_extra_spaces, e) < 0
        || gguf_bool(g, "tokenizer.attnc.ignore_merges", &v->ignore_merges, e) < 0
        || open_marking(v, g, e))
        return -1;
    v->adds_bos = (v->adds_bos || defaults->adds_bos) && v->bos >= 0;
    v->adds_eos = v->adds_eos && v->eos >= 0;
    return find_end_tokens(v, g, e);
}

void vocab_close(Vocab *v)
{
    free(v->pieces);
    free(v->is_end);
    free(v->later);
    pretok_free(v->pretok);
    *v = (Vocab){0};
}
