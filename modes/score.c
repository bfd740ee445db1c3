/* score.c - how well a model predicts a text. Contracts are in score.h. */
#include "modes/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LOGIT_ROWS = 32, PIECE = 1024, MIN_TOKENS = 3 };

typedef struct {
    const Model *model;
    Session *session;
    int *window; // (seq_len) its tokens
    double *nll; // (LOGIT_ROWS)
    int from, n; // rows of the window whose logits are in the session
    Score *out;
    const atomic_int *stop;
    Err *e;
    const int *ids;
    int bos, rc;
} Work;

/* -log p of the token that follows each row. */
static void measure_rows(void *context, int from, int to, int thread)
{
    Work *w = context;
    size_t vocab = (size_t)w->model->decoder.config.vocab_size;
    (void)thread;
    for (int i = from; i < to; i++) {
        float *x = w->session->logits + (size_t)i * vocab, max = -INFINITY,
              own = x[w->window[w->from + i + 1]];
        double sum = 0;
        for (size_t k = 0; k < vocab; k++)
            max = x[k] > max ? x[k] : max;
        for (size_t k = 0; k < vocab; k += PIECE) // floats in a piece, doubles over the pieces
            sum += (double)w->session->k->exp_sum(x + k, vocab - k < PIECE ? vocab - k : PIECE,
                                                  max);
        w->nll[i] = log(sum) + (double)max - (double)own;
    }
}

static int run_window(Work *w)
{
    Session *s = w->session;
    Score *out = w->out;
    int n = out->seq_len, first = n / 2, step;
    Buf bytes = {0};
    cache_truncate(&s->cache, 0, 0);
    cache_expect(&s->cache, 0, n);
    for (int i = 0; i < n - 1; i += step) {
        bool counts = i >= first;
        int end = counts ? n - 1 : first, most = counts ? LOGIT_ROWS : s->params.max_batch;
        step = end - i < most ? end - i : most;
        step = step < s->params.max_batch ? step : s->params.max_batch;
        Span rows = {.n = step, .tokens = w->window + i, .want = counts ? WANT_ALL : WANT_NONE};
        bool failed = forward_span(s, &rows, w->e) < 0;
        w->from = i;
        if (counts && !failed)
            threads_run(s->threads, step, 1, measure_rows, w);
        if (failed || *w->stop) {
            buf_free(&bytes);
            return -1;
        }
        if (!counts)
            continue;
        for (int k = 0; k < step; k++) {
            tokenizer_bytes(w->model->tokenizer, w->window[i + k + 1], false, &bytes);
            out->nll += w->nll[k];
            out->nll_squares += w->nll[k] * w->nll[k];
        }
        out->n_tokens += (size_t)step;
    }
    out->n_bytes += bytes.len;
    out->n_windows++;
    int rc = bytes.failed ? err_set(w->e, EXIT_MEMORY, "out of memory") : 0;
    buf_free(&bytes);
    return rc;
}

static void run_windows(void *context)
{
    Work *w = context;
    size_t n = (size_t)w->out->seq_len, n_windows = (size_t)w->n / n;
    bool progress = isatty(STDERR_FILENO);
    for (size_t i = 0; i < n_windows && !w->rc && !*w->stop; i++) {
        memcpy(w->window, w->ids + i * n, n * sizeof *w->window);
        if (w->bos >= 0)
            w->window[0] = w->bos;
        w->rc = run_window(w);
        if (progress && !w->rc)
            fprintf(stderr, "\rperplexity: window %zu of %zu, %.4f so far ", i + 1, n_windows,
                    exp(score_mean(w->out)));
    }
    if (progress)
        fprintf(stderr, "\r\033[K");
}

int score_perplexity(const Model *m, SessionParams p, const char *name, const int *ids, size_t n,
                     int bos, int seq_len, const atomic_int *stop, Score *out, Err *e)
{
    Session s;
    double nll[LOGIT_ROWS];
    if (seq_len < MIN_TOKENS)
        return err_set(e, EXIT_USAGE,
                       "-c: got windows of %d tokens, want at least %d for "
                       "--perplexity",
                       seq_len, MIN_TOKENS);
    if (n > INT32_MAX)
        err_set(e, EXIT_USAGE, "got %zu tokens, want at most %d", n, INT32_MAX);
    if (n < MIN_TOKENS)
        err_set(e, EXIT_USAGE, "%zu tokens are too few to score; perplexity needs at least %d", n,
                MIN_TOKENS);
    if (n > INT32_MAX || n < MIN_TOKENS)
        return err_prefix(e, name);
    seq_len = (size_t)seq_len < n ? seq_len : (int)n;
    *out = (Score){.seq_len = seq_len};
    p.seq_len = seq_len;
    p.n_seqs = 1;
    p.max_batch = p.max_batch < seq_len ? p.max_batch : seq_len;
    p.max_logits = LOGIT_ROWS < p.max_batch ? LOGIT_ROWS : p.max_batch;
    int *window = mem_alloc((size_t)seq_len, sizeof *window);
    if (!window)
        return err_set(e, EXIT_MEMORY, "out of memory");
    int rc = session_init(&s, &m->decoder, &p, e);
    if (!rc) {
        Work w = {.model = m,
                  .session = &s,
                  .window = window,
                  .nll = nll,
                  .n = (int)n,
                  .out = out,
                  .stop = stop,
                  .e = e,
                  .ids = ids,
                  .bos = bos};
        threads_team(s.threads, run_windows, &w);
        rc = w.rc;
        session_free(&s);
    }
    free(window);
    return rc;
}

double score_mean(const Score *s)
{
    return s->n_tokens ? s->nll / (double)s->n_tokens : NAN;
}

double score_error(const Score *s)
{
    double n = (double)s->n_tokens, mean = score_mean(s),
           variance = s->nll_squares / n - mean * mean;
    return n > 1 && variance > 0 ? sqrt(variance / (n - 1)) : 0;
}

double score_bits_per_byte(const Score *s)
{
    return s->n_bytes ? s->nll / (double)s->n_bytes / log(2) : 0;
}
