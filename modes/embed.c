/* embed.c - the mode --embed: a vector for each text, made of its tokens' last hidden states.
 * docs/embeddings.md describes the output.
 *
 * Texts of any lengths go through the model together, one after the other in the rows of a pass,
 * without padding. A text is whole in one pass, because the rows of an encoder see all others.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/npy.h"
#include "maps/job.h"
#include "modes/prompt.h"
#include "modes/requests.h"

enum { ROWS_PER_TEXT = 4 }; // so that the rows of a pass are also enough for many short texts

/* A line whose vector is wanted. */
typedef struct {
    Request base;
    TokenList ids;
    float *vectors; // (n, dim) owned, once it is done
    size_t n;
} Embedded;

typedef struct {
    Requests q;
    Pooling pooling;
    size_t dim;
    Span *spans;      // (n_seqs) of the next pass
    Embedded **texts; // (n_seqs) whose they are
    int n_rows;       // of it
    MapJob *maps;     // of the one text, or NULL
    TokenList ids;    // of that text
    OutFile out;      // lines of numbers
    NpyFile npy;      // or a matrix
    bool is_npy;
} EmbedRun;

static EmbedRun *run_of(Requests *q)
{
    return (EmbedRun *)(void *)q;
}

static Embedded *text_of(Request *base)
{
    return (Embedded *)(void *)base;
}

/* ---- reading a line -------------------------------------------------------------------------- */

static const char *const own[] = {"text", "ids", "embedding", "n_tokens"};

static bool is_own(Str name)
{
    return requests_is_one_of(name, own, sizeof own / sizeof *own);
}

/* A text is at least one token, and at most as many as a pass has room for. */
static int check_length(const Requests *q, TokenList *ids, Err *e)
{
    size_t most = (size_t)q->seq_len;
    const Tokenizer *t = q->engine.model.tokenizer;
    if (!ids->n)
        return err_set(e, EXIT_USAGE, "the text is empty, want some");
    if (ids->n <= most)
        return 0;
    if (!q->o->truncate)
        return err_set(e, EXIT_USAGE,
                       "got %zu tokens, want at most the context of %zu; --truncate cuts", ids->n,
                       most);
    if (ids->ids[ids->n - 1] == tokenizer_eos(t))
        ids->ids[most - 1] = tokenizer_eos(t);
    ids->n = most;
    return 0;
}

static int read_request(Requests *q, JsonDoc *d, Request *base, Err *e)
{
    Embedded *r = text_of(base);
    const JsonNode *text = base->is_json ? json_field(d, "text") : NULL;
    const JsonNode *ids = base->is_json ? json_field(d, "ids") : NULL;
    int rc;
    if (base->is_json && !text == !ids)
        return err_set(e, EXIT_USAGE, "want either \"text\" or \"ids\"");
    if (text && text->type != JSON_STRING)
        return err_set(e, EXIT_USAGE, "text: want a string");
    if (ids)
        rc = requests_read_ids(q, d, ids, "ids", &r->ids, e);
    else
        rc = requests_encode(q,
                             text ? text->string
                             : d  ? d->nodes[0].string
                                  : base->json,
                             &r->ids, e);
    return rc || check_length(q, &r->ids, e) ? -1 : 0;
}

/* The text of -i and -f. */
static int read_prompt(Requests *q)
{
    Prompt p = {0};
    Request *r = requests_new(q, 0, (Str){"", 0});
    if (!r)
        return err_set(q->e, EXIT_MEMORY, "out of memory for the text");
    int rc = prompt_encode(q->o, q->engine.model.tokenizer, &p, &text_of(r)->ids, q->e)
          || check_length(q, &text_of(r)->ids, q->e);
    prompt_free(&p);
    requests_add(q, r);
    return rc ? -1 : 0;
}

/* ---- running --------------------------------------------------------------------------------- */

static bool start(Requests *q, Request *base)
{
    EmbedRun *x = run_of(q);
    Embedded *r = text_of(base);
    int n = (int)r->ids.n, seq = q->n_running;
    if (seq == q->session.params.n_seqs || n > q->session.params.max_batch - x->n_rows)
        return false;
    x->spans[seq] = (Span){.seq = seq, .n = n, .tokens = r->ids.ids, .want = WANT_NONE};
    x->texts[seq] = r;
    x->n_rows += n;
    q->n_running++;
    base->state = RUNNING;
    return true;
}

/* Divide a vector by its length, as torch.nn.functional.normalize does. */
static void normalize(float *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)v[i] * v[i];
    double length = sqrt(sum) > 1e-12 ? sqrt(sum) : 1e-12;
    for (size_t i = 0; i < n; i++)
        v[i] = (float)(v[i] / length);
}

/* Last hidden states h (n, dim) of a text -> its vectors. */
static int pool(const EmbedRun *x, Embedded *r, const float *h, Err *e)
{
    size_t n = r->ids.n, dim = x->dim;
    r->n = x->pooling == POOL_NONE ? n : 1;
    r->vectors = mem_alloc(r->n * dim, sizeof *r->vectors);
    if (!r->vectors)
        return err_set(e, EXIT_MEMORY, "out of memory for the vectors");
    if (x->pooling == POOL_MEAN) {
        for (size_t j = 0; j < dim; j++) {
            double sum = 0;
            for (size_t i = 0; i < n; i++)
                sum += h[i * dim + j];
            r->vectors[j] = (float)(sum / (double)n);
        }
    } else {
        memcpy(r->vectors, x->pooling == POOL_LAST ? h + (n - 1) * dim : h, r->n * dim * sizeof *h);
    }
    for (size_t i = 0; i < r->n && !x->q.o->no_normalize; i++)
        normalize(r->vectors + i * dim, dim);
    return 0;
}

static int pass(Requests *q)
{
    EmbedRun *x = run_of(q);
    if (forward(&q->session, &(Batch){x->spans, q->n_running}, q->e) < 0)
        return -1;
    TokenList *ids = &x->texts[0]->ids;
    if (x->maps && maps_live(x->maps) && maps_live_rows(x->maps, ids->ids, (int)ids->n, q->e))
        return -1;
    const float *h = output_hidden(&q->session);
    for (int i = 0; i < q->n_running; i++) {
        Embedded *r = x->texts[i];
        if (pool(x, r, h, q->e))
            return -1;
        h += r->ids.n * x->dim;
        q->n_tokens += r->ids.n;
        r->base.state = DONE;
        cache_truncate(&q->session.cache, i, 0);
    }
    if (x->maps) { // the line is gone when the maps are written
        x->ids = *ids;
        *ids = (TokenList){0};
    }
    q->n_running = x->n_rows = 0;
    return 0;
}

/* ---- writing --------------------------------------------------------------------------------- */

static void write_vector(Json *j, const float *v, size_t n)
{
    json_list(j);
    for (size_t i = 0; i < n; i++)
        json_number(j, v[i]);
    json_end(j);
}

/* A list of numbers, or of lists where each token has a vector. */
static void write_vectors(Json *j, const EmbedRun *x, const Embedded *r)
{
    if (x->pooling != POOL_NONE) {
        write_vector(j, r->vectors, x->dim);
        return;
    }
    json_list(j);
    for (size_t i = 0; i < r->n; i++)
        write_vector(j, r->vectors + i * x->dim, x->dim);
    json_end(j);
}

static void write_line(Requests *q, const Request *base, Json *j)
{
    const Embedded *r = (const Embedded *)(const void *)base;
    write_vectors(json_key(j, "embedding"), run_of(q), r);
    json_int(json_key(j, "n_tokens"), (int64_t)r->ids.n);
}

/* Rows of a matrix, a list as JSON, or a line of numbers for each vector. */
static int put(Requests *q, const Request *base)
{
    EmbedRun *x = run_of(q);
    const Embedded *r = (const Embedded *)(const void *)base;
    Buf out = {0};
    char number[32];
    if (x->is_npy)
        return npy_rows(&x->npy, r->vectors, r->n, q->e);
    if (q->o->json)
        write_vectors(&(Json){.out = &out}, x, r);
    for (size_t i = 0; i < r->n * x->dim && !q->o->json; i++) {
        const char *between = i % x->dim ? " " : i ? "\n" : "";
        buf_add(&out, number,
                (size_t)snprintf(number, sizeof number, "%s%.9g", between, r->vectors[i]));
    }
    buf_text(&out, "\n");
    int rc = out.failed ? err_set(q->e, EXIT_MEMORY, "out of memory for the vectors")
           : fwrite(out.ptr, 1, out.len, x->out.f) != out.len || fflush(x->out.f)
               ? out_error(&x->out, q->e)
               : 0;
    buf_free(&out);
    return rc;
}

static void free_line(Requests *q, Request *base)
{
    (void)q;
    tokens_free(&text_of(base)->ids);
    free(text_of(base)->vectors);
}

/* ---- the mode -------------------------------------------------------------------------------- */

/* Objects; where there are none, put() is in the place of write(). */
static const RequestKind objects = {.size = sizeof(Embedded),
                                    .read = read_request,
                                    .is_own = is_own,
                                    .start = start,
                                    .pass = pass,
                                    .write = write_line,
                                    .free = free_line};

/* What the flags and the file say of texts and their vectors. */
static void choose(EmbedRun *x)
{
    Requests *q = &x->q;
    const Config *c = &model_stack(&q->engine.model)->config;
    q->seq_len = modes_context(q->o, c);
    x->dim = (size_t)c->dim;
    x->pooling = q->o->pooling ? (Pooling)(q->o->pooling - 1) : c->pooling;
    if (!q->o->pooling && x->pooling == POOL_NONE)
        x->pooling = c->encoder ? POOL_MEAN : POOL_LAST;
    modes_note_context(q->o, c, q->seq_len);
}

/* The session: the rows of a pass are -b, or those of a text that fills the context; those of the
 * one text where its maps are wanted. */
static int open_session(EmbedRun *x)
{
    Requests *q = &x->q;
    SessionParams p = q->engine.params;
    int n_text = q->first ? (int)text_of(q->first)->ids.n : q->seq_len;
    p.max_rows = q->o->batch;
    p.max_batch = !q->first && q->o->batch > n_text ? q->o->batch : n_text;
    p.seq_len = x->maps ? n_text : q->seq_len;
    p.max_logits = 1;
    p.n_seqs = q->first ? 1 : 1 + (p.max_batch - 1) / ROWS_PER_TEXT;
    p.n_blocks = p.n_seqs + kv_blocks_of(p.max_batch);
    p.keep_softmax = x->maps && maps_live(x->maps);
    x->spans = mem_zalloc((size_t)p.n_seqs, sizeof *x->spans);
    x->texts = mem_zalloc((size_t)p.n_seqs, sizeof *x->texts);
    if (!x->spans || !x->texts)
        return err_set(q->e, EXIT_MEMORY, "out of memory for the session");
    return session_init(&q->session, model_stack(&q->engine.model), &p, q->e)
                || (p.keep_softmax && maps_live_watch(x->maps, &q->session, q->e))
             ? -1
             : 0;
}

/* The text of -i and -f, with what is wanted of its maps. */
static int open_text(EmbedRun *x)
{
    Requests *q = &x->q;
    const MapOptions *o = &q->o->maps;
    bool wanted = o->n_files || o->n_stats;
    if (!q->lines.at_end)
        return !wanted
                 ? 0
                 : err_set(q->e, EXIT_USAGE, "attention maps are of one text, want it in -i or -f");
    if (read_prompt(q))
        return -1;
    int n = (int)text_of(q->first)->ids.n;
    x->maps = wanted ? maps_open(o, &q->engine.model, q->o->model, n, n, q->e) : NULL;
    return wanted && !x->maps ? -1 : 0;
}

/* What of the maps is not written yet. */
static int finish_maps(EmbedRun *x)
{
    Requests *q = &x->q;
    const TokenList *ids = &x->ids;
    SessionParams p = q->engine.params;
    p.seq_len = (int)ids->n;
    if (!x->maps)
        return 0;
    session_free(&q->session); // the maps have one of their own
    return (maps_wants_replay(x->maps) && maps_replay(x->maps, p, ids->ids, (int)ids->n, q->e))
                || maps_finish(x->maps, ids->ids, (int)ids->n, q->e)
             ? -1
             : 0;
}

static int open_output(EmbedRun *x)
{
    const Requests *q = &x->q;
    if (!q->kind->put)
        return 0;
    return x->is_npy ? npy_open(&x->npy, q->o->output, x->dim, q->e)
                     : out_open(&x->out, q->o->output ? q->o->output : "-", q->e);
}

static int close_output(EmbedRun *x, int rc)
{
    if (!rc && x->q.kind->put)
        rc = x->is_npy ? npy_finish(&x->npy, x->q.e) || npy_commit(&x->npy, x->q.e)
                       : out_commit(&x->out, x->q.e);
    npy_discard(&x->npy);
    out_discard(&x->out);
    return rc;
}

static void tell_speed(const Requests *q)
{
    double seconds = clock_seconds() - q->begin;
    fprintf(stderr, "embedded %d texts, %zu tokens in %.2f s, %.1f tokens/s\n", q->n_done,
            q->n_tokens, seconds, (double)q->n_tokens / seconds);
}

int embed_mode(const Options *o, Err *e)
{
    EmbedRun x = {0};
    Requests *q = &x.q;
    uint64_t seed = 0;
    size_t len = o->output ? strlen(o->output) : 0;
    x.is_npy = len > 4 && !strcmp(o->output + len - 4, ".npy");
    if (o->resume && (x.is_npy || !o->jsonl))
        return err_set(e, EXIT_USAGE, "--resume: want --jsonl and an -o that is not .npy");
    RequestKind kind = objects;
    kind.put = o->jsonl && !x.is_npy ? NULL : put;
    int rc = requests_open(q, o, &kind, &seed, e);
    if (!rc) {
        choose(&x);
        rc = open_text(&x) || open_session(&x) || open_output(&x) || requests_begin(q);
    }
    if (!rc)
        requests_run(q);
    rc = rc || q->rc || stop_signal || finish_maps(&x) ? -1 : 0;
    rc = close_output(&x, rc);
    if (!rc && o->verbose)
        tell_speed(q);
    maps_close(x.maps);
    tokens_free(&x.ids);
    free(x.spans);
    free(x.texts);
    return requests_close(q, rc);
}
