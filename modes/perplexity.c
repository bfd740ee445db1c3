/* perplexity.c - the mode --perplexity: reads a text, has score.c measure it, prints the result. */
#include <math.h>
#include <string.h>

#include "base/file.h"
#include "modes/modes.h"
#include "modes/score.h"

static int print_score(const Options *o, const Score *s, Err *e)
{
    double mean = score_mean(s), error = score_error(s), ppl = exp(mean);
    double bits = score_bits_per_byte(s);
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

int perplexity_mode(const Options *o, Err *e)
{
    Model m;
    Buf text = {0};
    TokenList ids = {0};
    Score score = {0};
    atomic_bool kv_cut = false;
    SessionParams p;
    Threads threads;
    if (modes_open(o, true, &m, &threads, &p, &kv_cut, e))
        return -1;
    const char *name = strcmp(o->perplexity, "-") ? o->perplexity : "standard input";
    unsigned flags = (o->no_bos ? 0 : ENCODE_BOS) | (o->special_files ? ENCODE_SPECIAL : 0);
    int bos = !o->no_bos && tokenizer_adds_bos(m.tokenizer) ? tokenizer_bos(m.tokenizer) : -1;
    int usual = m.decoder.config.seq_len < SCORE_WINDOW ? m.decoder.config.seq_len : SCORE_WINDOW;
    int seq_len = o->seq_len ? o->seq_len : usual;
    int rc = file_read(o->perplexity, &stop_signal, &text, e);
    modes_note_context(o, &m.decoder.config, seq_len);
    const char *bytes = text.ptr ? text.ptr : "";
    if (!rc && (rc = tokenizer_encode(m.tokenizer, bytes, text.len, flags, &ids, e)))
        err_prefix(e, e->code == EXIT_MODEL ? o->model : name);
    rc = rc ? rc
            : score_perplexity(&m, p, name, ids.ids, ids.n, bos, seq_len, &stop_signal, &score, e);
    if (!rc && score.n_tokens && !stop_signal)
        rc = print_score(o, &score, e);
    modes_warn_cut(rc, &kv_cut);
    buf_free(&text);
    tokens_free(&ids);
    threads_free(&threads);
    model_close(&m);
    return rc ? -1 : 0;
}
