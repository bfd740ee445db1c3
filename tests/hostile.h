/* hostile.h - for programs that open many models and sessions that may be damaged: files in memory
 * of their exact size, and a use of what could be opened.
 *
 * Files are not mapped here but read into memory of their exact size: a map ends with the rest of a
 * page, where the address sanitizer would not see a read beyond the file.
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model.h"
#include "engine/session_file.h"
#include "generate/sampler.h"

enum { GENERATED = 3 }; // tokens

void *mmap(void *hint, size_t len, int prot, int flags, int fd, off_t offset)
{
    void *p;
    (void)hint, (void)prot, (void)flags, (void)offset;
    if (posix_memalign(&p, 64, len))
        return MAP_FAILED;
    memset(p, 0, len);
    if (fd >= 0 && read(fd, p, len) != (ssize_t)len) {
        free(p);
        return MAP_FAILED;
    }
    return p;
}

int munmap(void *p, size_t len)
{
    (void)len;
    free(p);
    return 0;
}

/* Take the next file from standard input, where each stands after its length as 4 bytes,
 * little-endian, and write it to `path`. 1; 0 at the end; -1 where that fails. */
static inline int hostile_next(const char *path)
{
    unsigned char head[4];
    if (fread(head, 1, 4, stdin) != 4)
        return 0;
    size_t len = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
    char *bytes = malloc(len + 1);
    unlink(path); // a new file is not written to the disk at once, an overwritten one is
    FILE *f = fopen(path, "wb");
    bool ok = bytes && f && fread(bytes, 1, len, stdin) == len && fwrite(bytes, 1, len, f) == len;
    if (f && fclose(f))
        ok = false;
    free(bytes);
    return ok ? 1 : -1;
}

/* A prompt is encoded, run and, by a decoder, continued by a few tokens. 0, or -1 and the Err that
 * ./run would show. */
static inline int hostile_use(const Model *m, Err *e)
{
    static const SamplerParams params = {.temp = 0.8f,
                                         .top_k = 40,
                                         .top_p = 0.95f,
                                         .min_p = 0.05f,
                                         .repeat_penalty = 1.1f,
                                         .repeat_last_n = 64};
    Threads threads;
    SessionParams p = {.n_seqs = 1,
                       .max_logits = 1,
                       .threads = &threads,
                       .kernels = kernels_select(getenv("RUN_CPU"), e)};
    threads_init(&threads, 1, NULL);
    TokenList ids = {0};
    uint64_t random = params.seed;
    Session s = {0};
    Sampler sampler = {0};
    Decoder d;
    Buf out = {0};
    int rc = tokenizer_encode(m->tokenizer, "ab \xc3\xa9\xff", 6, ENCODE_BOS, &ids, e);
    if (rc && e->code == EXIT_MODEL) // a table that is built on first use, as in run.c
        err_prefix(e, m->file.maps[0].path);
    if (!rc && !ids.n)
        rc = err_set(e, EXIT_USAGE, "the prompt is empty, want some text");
    p.max_batch = (int)ids.n;
    p.seq_len = (int)ids.n + GENERATED;
    if (!rc)
        rc = session_init(&s, model_stack(m), &p, e)
                  || sampler_init(&sampler, model_stack(m)->config.vocab_size, p.kernels, e)
               ? -1
               : 0;
    decoder_init(&d, m->tokenizer, true, true);
    if (!rc && m->encoder.layers) {
        rc = forward_span(&s, &(Span){.n = (int)ids.n, .tokens = ids.ids}, e) < 0 ? -1 : 0;
        output_hidden(&s);
    }
    for (int i = 0; i < GENERATED && !rc && m->decoder.layers; i++) {
        Span rows = {.n = i ? 1 : (int)ids.n, .tokens = i ? ids.ids + ids.n - 1 : ids.ids};
        rc = forward_span(&s, &rows, e) < 0 ? -1 : 0;
        int id = rc ? -1 : sampler_pick(&sampler, &params, &random, ids.ids, ids.n, s.logits);
        if (!rc && id < 0)
            rc = err_set(e, EXIT_IO, "sampling: no token has a finite logit");
        if (!rc)
            rc = tokens_add(&ids, id, e);
        decoder_feed(&d, id, &out);
    }
    decoder_flush(&d, &out);
    buf_free(&out);
    tokens_free(&ids);
    sampler_free(&sampler);
    session_free(&s);
    threads_free(&threads);
    return rc;
}

/* A session file is loaded and gets one more token. The same. */
static inline int hostile_load(const Model *m, const char *path, KvType kv, Err *e)
{
    Threads threads;
    SessionFile f;
    Session s = {0};
    int id = 0;
    SessionParams p = {.n_seqs = 1,
                       .max_batch = 1,
                       .max_logits = 1,
                       .kv_type = kv,
                       .threads = &threads,
                       .kernels = kernels_select(getenv("RUN_CPU"), e)};
    if (session_file_open(&f, path, m, &p, e))
        return -1;
    threads_init(&threads, 1, NULL);
    p.seq_len = (int)f.header.n_ids + 1;
    int rc = session_init(&s, &m->decoder, &p, e);
    if (!rc) {
        session_file_attach(&f, &s);
        rc = forward_span(&s, &(Span){.n = 1, .tokens = &id}, e) < 0 ? -1 : 0;
    }
    session_free(&s);
    session_file_close(&f);
    threads_free(&threads);
    return rc;
}

#endif
