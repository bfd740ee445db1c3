/* fuzz_session.c - an input is a byte of flags, a model file after its length (4 bytes,
 * little-endian), and a session file of it, which is loaded. The lowest bits of the flags are the
 * type of the cache; with SIZED the blocks get the size that they must have, and with SEALED the
 * fingerprint and the sums are those that fit, so that what is behind them is reached too.
 */
#include "fuzz.h"
#include "hostile.h"

enum { TYPES = 3, SIZED = 4, SEALED = 8 };

/* As session_file.h describes it. */
static uint64_t sum_of(const char *blocks, size_t n)
{
    uint64_t lanes[8] = {0}, sum = 0, word;
    for (size_t i = 0; i + 8 <= n; i += 8) {
        memcpy(&word, blocks + i, 8);
        lanes[i / 8 % 8] = lanes[i / 8 % 8] * 0x9e3779b97f4a7c15u + word;
    }
    for (int k = 0; k < 8; k++)
        sum = (sum ^ lanes[k]) * 0xd6e8feb86659fd93u;
    return sum;
}

static void seal(char *file, size_t size, size_t at, const Gguf *g)
{
    SessionHeader h;
    Sha256 hash;
    char hex[SHA256_HEX + 1];
    memcpy(&h, file, sizeof h);
    gguf_fingerprint(g, hex);
    memcpy(h.model, hex, sizeof h.model);
    h.sum = at < size ? sum_of(file + at, size - at) : 0;
    sha256_init(&hash);
    sha256_add(&hash, &h, offsetof(SessionHeader, hash));
    sha256_add(&hash, file + sizeof h, (size_t)h.n_ids * 4);
    sha256_hex(&hash, hex);
    memcpy(h.hash, hex, sizeof h.hash);
    memcpy(file, &h, sizeof h);
}

static void load(const Model *m, const uint8_t *data, size_t size, unsigned flags)
{
    SessionHeader h;
    Cache c;
    Err e = {0};
    SessionParams p = {.n_seqs = 1, .seq_len = 1, .kv_type = (KvType)(flags % TYPES)};
    char *file = mem_zalloc(size + (1 << 20), 1);
    MUST(file);
    memcpy(file, data, size);
    memcpy(&h, file, sizeof h);
    if (size > sizeof h && h.n_ids < (size - sizeof h) / 4) {
        size_t at = (sizeof h + (size_t)h.n_ids * 4 + SESSION_PAGE - 1) / SESSION_PAGE
                  * SESSION_PAGE;
        cache_size(&c, &m->decoder.config, &p);
        h.block_bytes = c.block_bytes;
        size_t bytes = ((size_t)h.n_pos + KV_BLOCK - 1) / KV_BLOCK * c.block_bytes;
        if (flags & SIZED && h.n_pos <= h.n_ids && bytes < 1 << 19) {
            memcpy(file, &h, sizeof h);
            size = at + bytes;
        }
        if (flags & SEALED)
            seal(file, size, at, &m->file);
    }
    if (hostile_load(m, fuzz_file(file, size), p.kv_type, &e))
        MUST(e.code && *e.text);
    free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Model m;
    Err e = {0};
    uint32_t n;
    if (size < 5)
        return 0;
    memcpy(&n, data + 1, 4);
    if (n > size - 5 || model_open(&m, fuzz_file(data + 5, n), false, &e))
        return 0;
    load(&m, data + 5 + n, size - 5 - n, *data);
    model_close(&m);
    return 0;
}
