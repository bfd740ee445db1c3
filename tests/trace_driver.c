/* trace_driver.c - the rows that every hook sees in one pass over a text, for tests/trace.py.
 *
 * Standard input: token ids. Standard output, for each call of a hook and at last for the logits:
 * point, layer, first row, rows and width as 32-bit integers, then rows * width floats. The logits
 * have the point HOOK_POINTS and the layer -1. Activations and cache are floats.
 *
 *     trace_driver MODEL < IDS
 */
#include "model.h"

static int write_rows(void *context, const HookRows *r)
{
    int head[] = {(int)r->point, r->layer, r->first, r->n, (int)r->width};
    size_t n = (size_t)r->n * r->width;
    bool written = fwrite(head, sizeof head, 1, stdout) == 1
                && fwrite(r->x, sizeof *r->x, n, stdout) == n;
    return written ? 0 : err_set(context, EXIT_IO, "standard output: cannot write");
}

static int trace(const Model *m, const int *ids, int n, Err *e)
{
    Threads threads;
    Session s;
    SessionParams p = {.seq_len = n,
                       .n_seqs = 1,
                       .max_batch = n,
                       .max_logits = n,
                       .threads = &threads,
                       .kv_type = KV_F32,
                       .exact = true,
                       .kernels = kernels_select(NULL, e)};
    threads_init(&threads, 1, NULL);
    int rc = p.kernels ? session_init(&s, &m->decoder, &p, e) : -1;
    if (!rc) {
        for (int point = 0; point < HOOK_POINTS; point++)
            session_hook(&s, (HookPoint)point, write_rows, e);
        cache_expect(&s.cache, 0, n);
        rc = forward_span(&s, &(Span){.n = n, .tokens = ids, .want = WANT_ALL}, e) < 0
          || write_rows(e, &(HookRows){.point = HOOK_POINTS,
                                       .layer = -1,
                                       .n = n,
                                       .width = (size_t)m->decoder.config.vocab_size,
                                       .x = s.logits});
        session_free(&s);
    }
    threads_free(&threads);
    return rc ? -1 : 0;
}

int main(int argc, char **argv)
{
    TokenList ids = {0};
    Err e = {0};
    Model m;
    int rc = argc == 2 ? 0 : err_set(&e, EXIT_USAGE, "usage: trace_driver MODEL < IDS");
    for (int id; !rc && scanf("%d", &id) == 1;)
        rc = tokens_add(&ids, id, &e);
    if (!rc)
        rc = model_open(&m, argv[1], false, &e);
    if (!rc) {
        rc = trace(&m, ids.ids, (int)ids.n, &e);
        model_close(&m);
    }
    tokens_free(&ids);
    if (rc)
        fprintf(stderr, "trace_driver: %s\n", e.text);
    return rc ? e.code : EXIT_OK;
}
