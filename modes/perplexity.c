/* perplexity.c - the mode --perplexity: how well a model predicts a text.
 *
 * Measured as llama.cpp's tool does. The text's tokens are cut into windows that do not overlap; a
 * rest is left out, a shorter text is one window. Each window begins with the begin-of-text token
 * in place of its first token, where the tokenizer adds one. The tokens of its second half count,
 * predicted from all that stands before them in the window.
 */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "generate/sampler.h"
#include "modes/modes.h"

enum { LOGIT_ROWS = 32, MIN_TOKENS = 3 };

typedef struct {
    const Tokenizer *tokenizer;
    Session session;
    TokenList ids; // of the text
    int bos;       // first token of each window, -1: the text's
    int seq_len;   // tokens of a window

    int *window; // (seq_len) the window that is run
    int from;    // its row whose logits are the session's first
    double row_nll[LOGIT_ROWS];

    int n_windows;           // that were run
    size_t n_tokens;         // that count; sums over them:
    size_t n_bytes;          // of their texts
    double nll, nll_squares; // nats
    int rc;
    Err *e;
} Score;

static double mean_nll(const Score *s)
{
    return s->n_tokens ? s->nll / (double)s->n_tokens : NAN;
}

/* -log p of the token that follows each row. */
static void measure_rows(void *context, int from, int to, int thread)
{
    Score *s = context;
    size_t vocab = (size_t)s->session.stack->config.vocab_size;
    (void)thread;
    for (int i = from; i < to; i++) {
        float *x = s->session.logits + (size_t)i * vocab;
        double own = x[s->window[s->from + i + 1]];
        s->row_nll[i] = log_sum_exp(s->session.k, x, vocab) - own;
    }
}

/* Add n rows from s->from on, whose logits are in the session, to the sums. */
static int add_rows(Score *s, int n)
{
    Buf bytes = {0};
    threads_run(s->session.threads, n, 1, measure_rows, s);
    for (int i = 0; i < n; i++) {
        tokenizer_bytes(s->tokenizer, s->window[s->from + i + 1], false, &bytes);
        s->nll += s->row_nll[i];
        s->nll_squares += s->row_nll[i] * s->row_nll[i];
    }
    s->n_tokens += (size_t)n;
    s->n_bytes += bytes.len;
    int rc = bytes.failed ? err_set(s->e, EXIT_MEMORY, "out of memory") : 0;
    buf_free(&bytes);
    return rc;
}

static int run_window(Score *s)
{
    int n = s->seq_len, first = n / 2, batch = s->session.params.max_batch, step;
    cache_truncate(&s->session.cache, 0, 0);
    cache_expect(&s->session.cache, 0, n);
    for (int i = 0; i < n - 1; i += step) {
        bool counts = i >= first;
        int end = counts ? n - 1 : first, most = counts && LOGIT_ROWS < batch ? LOGIT_ROWS : batch;
        step = end - i < most ? end - i : most;
        Span rows = {.n = step, .tokens = s->window + i, .want = counts ? WANT_ALL : WANT_NONE};
        s->from = i;
        if (forward_span(&s->session, &rows, s->e) < 0 || (counts && add_rows(s, step))
            || stop_signal)
            return -1;
    }
    s->n_windows++;
    return 0;
}

static void run_windows(void *context)
{
    Score *s = context;
    size_t n = (size_t)s->seq_len, n_windows = s->ids.n / n;
    bool progress = isatty(STDERR_FILENO);
    for (size_t i = 0; i < n_windows && !s->rc && !stop_signal; i++) {
        s->window = s->ids.ids + i * n;
        if (s->bos >= 0)
            s->window[0] = s->bos;
        s->rc = run_window(s);
        if (progress && !s->rc)
            fprintf(stderr, "\rperplexity: window %zu of %zu, %.4f so far ", i + 1, n_windows,
                    exp(mean_nll(s)));
    }
    if (progress)
        fprintf(stderr, "\r\033[K");
}

static int print_score(const Options *o, const Score *s, Err *e)
{
    double n = (double)s->n_tokens, mean = mean_nll(s), ppl = exp(mean);
    double variance = s->nll_squares / n - mean * mean;
    double error = n > 1 && variance > 0 ? sqrt(variance / (n - 1)) : 0; // of the mean
    double bits = s->n_bytes ? s->nll / (double)s->n_bytes / log(2) : 0;
    if (o->json)
        printf("{\"perplexity\": %.9g, \"perplexity_error\": %.9g, \"nll\": %.9g, "
               "\"nll_error\": %.9g, \"bits_per_byte\": %.9g, \"tokens\": %zu, \"bytes\": %zu, "
               "\"windows\": %d, \"window\": %d}\n",
               ppl, ppl * error, mean, error, bits, s->n_tokens, s->n_bytes, s->n_windows,
               s->seq_len);
    else
        printf("perplexity %.4f +- %.4f, %.5f nats a token, %.4f bits a byte "
               "(%zu tokens in %d windows of %d)\n",
               ppl, ppl * error, mean, bits, s->n_tokens, s->n_windows, s->seq_len);
    return fflush(stdout) || ferror(stdout) ? modes_print_failed(e) : 0;
}

/* Read the text into s->ids. */
static int read_text(const Options *o, Score *s, const char *name, Err *e)
{
    Buf text = {0};
    int rc = file_read(o->perplexity, &stop_signal, &text, e);
    const char *bytes = text.ptr ? text.ptr : "";
    if (!rc
        && (rc = tokenizer_encode(s->tokenizer, bytes, text.len, modes_encode_flags(o), &s->ids,
                                  e)))
        err_prefix(e, e->code == EXIT_MODEL ? o->model : name);
    buf_free(&text);
    return rc;
}

static int check_sizes(const Score *s, const char *name, Err *e)
{
    if (s->seq_len < MIN_TOKENS)
        return err_set(e, EXIT_USAGE,
                       "-c: got windows of %d tokens, want at least %d for "
                       "--perplexity",
                       s->seq_len, MIN_TOKENS);
    if (s->ids.n >= MIN_TOKENS)
        return 0;
    err_set(e, EXIT_USAGE, "%zu tokens are too few to score; perplexity needs at least %d",
            s->ids.n, MIN_TOKENS);
    return err_prefix(e, name);
}

int perplexity_mode(const Options *o, Err *e)
{
    Engine x;
    if (modes_open(&x, o, true, e))
        return -1;
    const char *name = file_shown(o->perplexity);
    const Config *c = &x.model.decoder.config;
    const Tokenizer *t = x.model.tokenizer;
    int usual = c->seq_len < SCORE_WINDOW ? c->seq_len : SCORE_WINDOW;
    Score s = {.tokenizer = t,
               .bos = !o->no_bos && tokenizer_adds_bos(t) ? tokenizer_bos(t) : -1,
               .seq_len = o->seq_len ? o->seq_len : usual,
               .e = e};
    int rc = read_text(o, &s, name, e);
    modes_note_context(o, c, s.seq_len);
    rc = rc || check_sizes(&s, name, e);
    if (!rc && s.ids.n < (size_t)s.seq_len)
        s.seq_len = (int)s.ids.n;
    if (!rc) {
        modes_sizes(&x.params, s.seq_len, s.seq_len, LOGIT_ROWS);
        rc = session_init(&s.session, &x.model.decoder, &x.params, e);
    }
    if (!rc) {
        threads_team(&x.threads, run_windows, &s);
        rc = s.rc;
    }
    if (!rc && !stop_signal)
        rc = print_score(o, &s, e);
    session_free(&s.session);
    tokens_free(&s.ids);
    return modes_close(&x, rc);
}
