/* session_file.c - writes, checks and opens the files whose form session_file.h describes. */
#include "engine/session_file.h"

#include <stdlib.h>
#include <string.h>

static const char magic[8] = "attnKV\r\n"; // without its zero; damaged where lines are converted

_Static_assert(sizeof(SessionHeader) == 192 && offsetof(SessionHeader, hash) == 128,
               "no padding in the header");
_Static_assert(sizeof(int) == 4, "ids of four bytes");

/* ---- sums ------------------------------------------------------------------------------------ */

/* The sum of n bytes, a multiple of 64, after those of `lanes`. Each lane is a polynomial of its
 * words modulo 2^64 at an odd number, so a change of one word always changes it. */
static void add_words(uint64_t lanes[8], const void *bytes, size_t n)
{
    const char *p = bytes;
    for (size_t i = 0; i < n; i += 64)
        for (size_t k = 0; k < 8; k++) {
            uint64_t word;
            memcpy(&word, p + i + 8 * k, 8);
            lanes[k] = lanes[k] * 0x9e3779b97f4a7c15u + word;
        }
}

static uint64_t sum_of(const uint64_t lanes[8])
{
    uint64_t sum = 0;
    for (int k = 0; k < 8; k++)
        sum = (sum ^ lanes[k]) * 0xd6e8feb86659fd93u; // an odd factor loses no bit
    return sum;
}

/* The hash of a header and its ids. */
static void hash_of(const SessionHeader *h, const int *ids, char out[SHA256_HEX + 1])
{
    Sha256 s;
    sha256_init(&s);
    sha256_add(&s, h, offsetof(SessionHeader, hash));
    sha256_add(&s, ids, (size_t)h->n_ids * sizeof *ids);
    sha256_hex(&s, out);
}

/* Where in the file the blocks begin; false where that is beyond any size. */
static bool blocks_offset(uint64_t n_ids, size_t *out)
{
    return n_ids <= INT_MAX && size_mul((size_t)n_ids, sizeof(int), out)
        && size_add(*out, sizeof(SessionHeader), out) && size_align(*out, SESSION_PAGE, out);
}

/* ---- reading --------------------------------------------------------------------------------- */

static int damaged(const char *what, Err *e)
{
    return err_set(e, EXIT_MODEL,
                   "%s: got a damaged file, want a session that --save-session wrote", what);
}

/* Whether the file is what its header says: size, hash, ids. */
static int check_file(SessionFile *f, int vocab_size, Err *e)
{
    const SessionHeader *h = &f->header;
    size_t at, bytes;
    char hex[SHA256_HEX + 1];
    if (f->file.size < sizeof *h)
        return damaged("header", e);
    memcpy(&f->header, f->file.base, sizeof *h);
    if (memcmp(h->magic, magic, sizeof magic))
        return err_set(e, EXIT_MODEL,
                       "magic: got another kind of file, want a session that --save-session wrote");
    if (h->version != SESSION_VERSION)
        return err_set(e, EXIT_MODEL, "version: got %u, want %u", (unsigned)h->version,
                       SESSION_VERSION);
    if (!h->n_ids || h->n_pos > h->n_ids || !blocks_offset(h->n_ids, &at) || at > f->file.size)
        return damaged("number of tokens", e);
    f->ids = mem_alloc((size_t)h->n_ids, sizeof *f->ids);
    if (!f->ids)
        return err_set(e, EXIT_MEMORY, "out of memory for the session");
    size_t n_bytes = (size_t)h->n_ids * sizeof *f->ids;
    memcpy(f->ids, (const char *)f->file.base + sizeof *h, n_bytes);
    hash_of(h, f->ids, hex);
    if (memcmp(hex, h->hash, sizeof h->hash))
        return damaged("hash", e);
    for (uint64_t i = 0; i < h->n_ids; i++)
        if (f->ids[i] < 0 || f->ids[i] >= vocab_size)
            return damaged("token", e);
    if (h->block_bytes > SIZE_MAX || h->block_bytes % 64
        || !size_mul((size_t)kv_blocks_of((int)h->n_pos), (size_t)h->block_bytes, &bytes)
        || bytes > f->file.size - at || (f->file.size - at - bytes) % 64)
        return damaged("size", e);
    f->blocks = (char *)f->file.base + at;
    f->states = f->blocks + bytes;
    f->states_bytes = f->file.size - at - bytes;
    for (const char *p = (char *)f->file.base + sizeof *h + n_bytes; p < f->blocks; p++)
        if (*p)
            return damaged("padding", e);
    return 0;
}

static int check_blocks(const SessionFile *f, Err *e)
{
    uint64_t lanes[8] = {0};
    add_words(lanes, f->blocks, f->file.size - (size_t)(f->blocks - (char *)f->file.base));
    return sum_of(lanes) == f->header.sum ? 0 : damaged("keys and values", e);
}

/* Whether it is a session of this model with these parameters. */
static int check_suits(const SessionFile *f, const Model *m, const SessionParams *p, Err *e)
{
    const SessionHeader *h = &f->header;
    char hex[SHA256_HEX + 1], kv[sizeof h->kv + 1] = "", name[40];
    Cache c;
    gguf_fingerprint(&m->file, hex);
    cache_size(&c, &m->decoder.config, p);
    memcpy(kv, h->kv, sizeof h->kv);
    if (memcmp(hex, h->model, sizeof h->model))
        return err_set(e, EXIT_MODEL, "model: got a session of another one than %s",
                       m->file.maps[0].path);
    if (h->layout != KV_LAYOUT)
        return err_set(e, EXIT_MODEL, "layout: got %u, want %u; this version stores keys otherwise",
                       (unsigned)h->layout, KV_LAYOUT);
    if (strcmp(kv, kv_names[p->kv_type]))
        return err_set(e, EXIT_MODEL, "--kv: got a session with %s, want %s",
                       str_escape((Str){kv, strlen(kv)}, name, sizeof name), kv_names[p->kv_type]);
    if (h->exact != p->exact)
        return err_set(e, EXIT_MODEL, "--exact: got a session %s it, want one %s",
                       h->exact ? "with" : "without", p->exact ? "with" : "without");
    if (h->is_long > 1 || h->block_bytes != c.block_bytes)
        return damaged("cache", e);
    if (cache_state_bytes(&c)
            ? f->states_bytes / cache_state_bytes(&c) != (size_t)cache_n_states(&c, (int)h->n_pos)
                  || f->states_bytes % cache_state_bytes(&c)
            : f->states_bytes)
        return damaged("size", e);
    return 0;
}

int session_file_open(SessionFile *f, const char *path, const Model *m, const SessionParams *p,
                      Err *e)
{
    *f = (SessionFile){0};
    int rc = file_map(&f->file, path, "a session", true, e)
          || check_file(f, m->decoder.config.vocab_size, e) || check_suits(f, m, p, e)
          || check_blocks(f, e);
    if (!rc)
        return 0;
    session_file_close(f);
    return err_prefix(e, path);
}

void session_file_close(SessionFile *f)
{
    file_unmap(&f->file);
    free(f->ids);
    *f = (SessionFile){0};
}

void session_file_attach(const SessionFile *f, Session *s)
{
    cache_adopt(&s->cache, f->blocks, f->states, (int)f->header.n_pos, f->header.is_long);
}

/* ---- writing --------------------------------------------------------------------------------- */

int session_file_write(OutFile *o, const Session *s, const Model *m, const TokenList *text, Err *e)
{
    static const char zeros[SESSION_PAGE];
    const Cache *c = &s->cache;
    const Sequence *q = &c->seqs[0];
    size_t n_blocks = (size_t)kv_blocks_of(q->n_pos), at = 0;
    int n_states = cache_n_states(c, q->n_pos);
    uint64_t lanes[8] = {0};
    char hex[SHA256_HEX + 1];
    SessionHeader h = {.version = SESSION_VERSION,
                       .layout = KV_LAYOUT,
                       .exact = s->params.exact,
                       .is_long = q->is_long,
                       .n_ids = text->n,
                       .n_pos = (uint64_t)q->n_pos,
                       .block_bytes = c->block_bytes};
    for (size_t b = 0; b < n_blocks; b++)
        add_words(lanes, cache_block(c, 0, (int)b), c->block_bytes);
    for (int i = 0; i < n_states; i++)
        add_words(lanes, cache_nth_state(c, 0, i), cache_state_bytes(c));
    h.sum = sum_of(lanes);
    memcpy(h.magic, magic, sizeof magic);
    snprintf(h.kv, sizeof h.kv, "%s", kv_names[c->type]);
    gguf_fingerprint(&m->file, hex);
    memcpy(h.model, hex, sizeof h.model);
    hash_of(&h, text->ids, hex);
    memcpy(h.hash, hex, sizeof h.hash);
    blocks_offset(text->n, &at);
    size_t pad = at - sizeof h - text->n * sizeof *text->ids;
    bool ok = fwrite(&h, sizeof h, 1, o->f) == 1
           && fwrite(text->ids, sizeof *text->ids, text->n, o->f) == text->n
           && fwrite(zeros, 1, pad, o->f) == pad;
    for (size_t b = 0; ok && b < n_blocks; b++)
        ok = fwrite(cache_block(c, 0, (int)b), 1, c->block_bytes, o->f) == c->block_bytes;
    for (int i = 0; ok && i < n_states; i++)
        ok = fwrite(cache_nth_state(c, 0, i), cache_state_bytes(c), 1, o->f) == 1;
    return ok ? 0 : out_error(o, e);
}
