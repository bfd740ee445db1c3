/* batch.c - the mode of --jsonl and --lines, and --samples: many texts that decode together, a JSON
 * object for each. docs/batches.md describes the lines. With --chat a line's prompt is what a
 * user says; a line with messages is a conversation in any case.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "modes/conversation.h"
#include "modes/prompt.h"
#include "modes/requests.h"
#include "modes/result.h"

/* A line whose text is generated. */
typedef struct {
    Request base;
    StreamParams params;
    Str *stops;             // (n_stops) of its own, with their bytes
    int n_stops;            // -1: what the flags say
    Constraint *constraint; // of its own, NULL: what the flags say
    bool echo;
    uint64_t seed;
    ParallelText text;
} Generation;

typedef struct {
    Requests q;
    SamplerParams sampling; // its seed is the base of those that are derived
    Conversations talks;
} BatchRun;

/* ---- reading a line -------------------------------------------------------------------------- */

/* Members that say how a text is generated, by the flags whose row has their type and range. */
static const struct {
    const char *member, *flag;
} numbers[] = {
    {"n", "--predict"},
    {"temp", "--temp"},
    {"top_k", "--top-k"},
    {"top_p", "--top-p"},
    {"min_p", "--min-p"},
    {"repeat_penalty", "--repeat-penalty"},
    {"presence_penalty", "--presence-penalty"},
    {"frequency_penalty", "--frequency-penalty"},
    {"repeat_last_n", "--repeat-last-n"},
    {"logprobs", "--logprobs"},
};

/* The other members that are read; what is none of these is carried through. */
static const char *const others[] = {
    "prompt", "ids",  "messages", "tools",   "chat_template_kwargs",
    "stop",   "seed", "echo",     "grammar", "json_schema"};

/* Members of the result, which a line cannot carry through. */
static const char *const results[] = {"text",           "bytes",           "prompt_ids",
                                      "n_prompt",       "n_generated",     "finish_reason",
                                      "prompt_seconds", "generate_seconds"};

/* Members of lines for --score. */
static const char *const refused[] = {"completion", "completions"};

#define COUNT(list) (sizeof list / sizeof *list)

static bool is_number(Str name)
{
    for (size_t i = 0; i < COUNT(numbers); i++)
        if (str_eq(name, numbers[i].member))
            return true;
    return false;
}

static int read_numbers(const JsonDoc *d, Options *own, Err *e)
{
    for (size_t i = 0; i < COUNT(numbers); i++) {
        const JsonNode *n = json_field(d, numbers[i].member);
        const Option *o = options_find(numbers[i].flag);
        void *field = (char *)own + o->offset;
        int64_t whole;
        if (!n)
            continue;
        bool fits = n->type == JSON_NUMBER && n->number >= o->min && n->number <= o->max
                 && (o->kind == OPT_FLOAT || json_integer(n, INT32_MIN, INT32_MAX, &whole));
        if (!fits)
            return err_set(e, EXIT_USAGE, "%s: want a %snumber from %.10g to %.10g",
                           numbers[i].member, o->kind == OPT_INT ? "whole " : "", o->min, o->max);
        if (o->kind == OPT_INT)
            *(int *)field = (int)whole;
        else
            *(float *)field = (float)n->number;
    }
    return 0;
}

static int add_stop(Generation *r, Str s, Err *e)
{
    Str *stops = mem_grow(r->stops, (size_t)r->n_stops + 1, sizeof *stops);
    char *copy = mem_alloc(s.len, 1);
    if (stops)
        r->stops = stops;
    if (!stops || !copy) {
        free(copy);
        return err_set(e, EXIT_MEMORY, "out of memory for the line");
    }
    memcpy(copy, s.ptr, s.len);
    r->stops[r->n_stops++] = (Str){copy, s.len};
    return 0;
}

/* "stop": a text or a list of them. */
static int read_stops(const JsonDoc *d, Generation *r, Err *e)
{
    const JsonNode *n = json_field(d, "stop");
    r->n_stops = n ? 0 : -1;
    if (!n)
        return 0;
    bool list = n->type == JSON_LIST;
    for (const JsonNode *s = list ? json_first(d, n) : n; s; s = list ? json_next(d, n, s) : NULL) {
        if (s->type != JSON_STRING || !s->string.len)
            return err_set(e, EXIT_USAGE, "stop: want a text that is not empty, or a list of them");
        if (add_stop(r, s->string, e))
            return -1;
    }
    return 0;
}

/* A seed of its own for each name: its "id" as JSON text, or the number of a line or sample. */
static uint64_t derive_seed(uint64_t base, Str name)
{
    uint64_t h = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < name.len; i++)
        h = (h ^ (unsigned char)name.ptr[i]) * 1099511628211u;
    return random_mix(random_mix(base) ^ h) % SEED_LIMIT;
}

static int read_seed(const BatchRun *b, const JsonDoc *d, Generation *r, Err *e)
{
    char number[16];
    const JsonNode *n = json_field(d, "seed");
    int64_t seed;
    Str name = r->base.id;
    if (n && !json_integer(n, 0, INT64_MAX, &seed))
        return err_set(e, EXIT_USAGE, "seed: want a whole number from 0 to %" PRId64, INT64_MAX);
    if (!name.len)
        name = (Str){number, (size_t)snprintf(number, sizeof number, "%d", r->base.line)};
    r->seed = n ? (uint64_t)seed : derive_seed(b->sampling.seed, name);
    return 0;
}

static int encode_prompt(const Requests *q, Str text, TokenList *out, Err *e)
{
    int bos = tokenizer_bos(q->engine.model.tokenizer);
    if (requests_encode(q, text, out, e))
        return -1;
    return !out->n && !q->o->no_bos && bos >= 0 ? tokens_add(out, bos, e) : 0;
}

/* The ids of a conversation, and its text unless `text` is NULL. */
static int read_conversation(BatchRun *b, const JsonDoc *d, Str said, TokenList *ids, Buf *text,
                             Err *e)
{
    Rendered r = {0};
    int rc = conversations_render(&b->talks, d, said, &r, e)
          || chat_format_encode(b->q.engine.model.tokenizer, &r, ids, e);
    if (!rc && text)
        buf_add(text, r.text.ptr, r.text.len);
    rendered_free(&r);
    return rc ? -1 : 0;
}

/* The prompt's ids, and its text (empty where it is given as ids) unless `text` is NULL. */
static int read_prompt(BatchRun *b, const JsonDoc *d, const Request *r, TokenList *out, Buf *text,
                       Err *e)
{
    const Requests *q = &b->q;
    const JsonNode *prompt = r->is_json || !d ? json_field(d, "prompt") : d->nodes;
    const JsonNode *ids = json_field(d, "ids"), *messages = json_field(d, "messages");
    for (size_t i = 0; i < COUNT(refused); i++)
        if (json_field(d, refused[i]))
            return err_set(e, EXIT_USAGE, "%s: want --score for it", refused[i]);
    if (r->is_json && !prompt + !ids + !messages != 2)
        return err_set(e, EXIT_USAGE, "want one of \"prompt\", \"messages\" and \"ids\"");
    if (prompt && prompt->type != JSON_STRING)
        return err_set(e, EXIT_USAGE, "prompt: want a string");
    Str said = prompt ? prompt->string : r->json;
    int talk = conversations_wanted(&b->talks, d, e);
    if (talk)
        return talk < 0 ? -1 : read_conversation(b, d, said, out, text, e);
    if (ids)
        return requests_read_ids(q, d, ids, "ids", out, e);
    if (text)
        buf_add(text, said.ptr, said.len);
    return encode_prompt(q, said, out, e);
}

/* ---- a line's stream ------------------------------------------------------------------------- */

/* "grammar", a text, or "json_schema", a schema. */
static int read_constraint(Requests *q, const JsonDoc *d, Generation *r, Err *e)
{
    const JsonNode *grammar = json_field(d, "grammar"), *schema = json_field(d, "json_schema");
    if (!grammar && !schema)
        return 0;
    if (grammar && schema)
        return err_set(e, EXIT_USAGE, "want either \"grammar\" or \"json_schema\"");
    if (grammar && grammar->type != JSON_STRING)
        return err_set(e, EXIT_USAGE, "grammar: want a string");
    r->constraint = constraints_get(&q->engine.constraints,
                                    grammar ? CONSTRAINT_GRAMMAR : CONSTRAINT_SCHEMA,
                                    grammar ? grammar->string : schema->raw, e);
    return r->constraint ? 0 : err_prefix(e, grammar ? "grammar" : "json_schema");
}

/* Begin the stream; `shown`: the prompt's text where it is printed too. */
static void begin(Requests *q, const Options *o, Generation *r, TokenList prompt, const Str *shown)
{
    ParallelText *t = &r->text;
    r->params = modes_stream_params(o, &q->engine, q->seq_len);
    if (r->n_stops >= 0) {
        r->params.stops = r->stops;
        r->params.n_stops = r->n_stops;
    }
    if (r->constraint)
        r->params.matcher = r->constraint->matcher;
    stream_init(&t->stream, &r->params, r->seed, prompt);
    t->owner = r;
    if (shown)
        buf_add(&t->shown, shown->ptr, stream_follow(&t->stream, shown->ptr, shown->len));
}

/* What the line asks for -> its stream. */
static int read_request(Requests *q, JsonDoc *d, Request *base, Err *e)
{
    Generation *r = (Generation *)(void *)base;
    BatchRun *b = (BatchRun *)(void *)q;
    Options own = *q->o;
    TokenList ids = {0};
    Buf prompt = {0};
    const JsonNode *echo = json_field(d, "echo");
    r->echo = echo ? echo->type == JSON_TRUE : own.echo;
    if (echo && echo->type != JSON_TRUE && echo->type != JSON_FALSE)
        return err_set(e, EXIT_USAGE, "echo: want true or false");
    if (read_numbers(d, &own, e) || read_seed(b, d, r, e) || read_stops(d, r, e)
        || read_constraint(q, d, r, e))
        return -1;
    int rc = read_prompt(b, d, base, &ids, r->echo ? &prompt : NULL, e);
    if (!rc && prompt.failed)
        rc = err_set(e, EXIT_MEMORY, "out of memory for the line");
    if (!rc && !ids.n)
        rc = err_set(e, EXIT_USAGE, "the prompt is empty, want some text");
    if (!rc && ids.n > (size_t)q->seq_len)
        rc = err_set(e, EXIT_USAGE, "prompt: got %zu tokens, want at most the context's %d (-c)",
                     ids.n, q->seq_len);
    if (rc)
        tokens_free(&ids);
    else
        begin(q, &own, r, ids, r->echo ? &(Str){prompt.ptr ? prompt.ptr : "", prompt.len} : NULL);
    buf_free(&prompt);
    return rc;
}

/* ---- the rest of a line's way ---------------------------------------------------------------- */

static bool is_own(Str name)
{
    return is_number(name) || requests_is_one_of(name, others, COUNT(others))
        || requests_is_one_of(name, results, COUNT(results));
}

static bool start(Requests *q, Request *base)
{
    Generation *r = (Generation *)(void *)base;
    base->state = RUNNING;
    bool taken = parallel_add(&q->texts, &r->text);
    base->state = taken ? base->state : WAITING;
    return taken;
}

static void text_done(Requests *q, ParallelText *text)
{
    (void)q;
    Request *r = text->owner;
    r->err = text->err;
    r->state = DONE;
}

static void write_line(Requests *q, const Request *base, Json *j)
{
    const Generation *r = (const Generation *)(const void *)base;
    const ParallelText *t = &r->text;
    Result result = {&t->stream, &t->shown, r->seed, q->o->timings ? t->prompted - t->began : -1,
                     t->ended - t->prompted};
    result_members(j, &result);
}

static void free_line(Requests *q, Request *base)
{
    Generation *r = (Generation *)(void *)base;
    for (int i = 0; i < r->n_stops; i++)
        free((char *)(uintptr_t)r->stops[i].ptr);
    free(r->stops);
    stream_free(&r->text.stream);
    constraints_let_go(&q->engine.constraints, r->constraint);
    buf_free(&r->text.shown);
}

static const RequestKind kind = {.size = sizeof(Generation),
                                 .read = read_request,
                                 .is_own = is_own,
                                 .start = start,
                                 .text_done = text_done,
                                 .write = write_line,
                                 .free = free_line};

/* ---- the mode -------------------------------------------------------------------------------- */

/* --samples: number `i` of the texts after one prompt. The first has the seed as it was given. */
static int add_sample(BatchRun *b, int i, const TokenList *prompt, const Buf *text, Err *e)
{
    char number[16];
    Generation *r = (Generation *)(void *)requests_new(&b->q, i, (Str){"", 0});
    Str name = {number, (size_t)snprintf(number, sizeof number, "%d", i)};
    Str shown = {text->ptr, text->len};
    TokenList ids = {0};
    if (!r)
        return err_set(e, EXIT_MEMORY, "out of memory for the samples");
    if (!mem_room(&ids.ids, prompt->n, &ids.cap, sizeof *ids.ids)) {
        r->base.err.code = EXIT_MEMORY; // it is freed with the others
        requests_add(&b->q, &r->base);
        return err_set(e, EXIT_MEMORY, "out of memory for the samples");
    }
    memcpy(ids.ids, prompt->ids, prompt->n * sizeof *ids.ids);
    ids.n = prompt->n;
    r->n_stops = -1;
    r->seed = i ? derive_seed(b->sampling.seed, name) : b->sampling.seed;
    begin(&b->q, b->q.o, r, ids, b->q.o->echo ? &shown : NULL);
    requests_add(&b->q, &r->base);
    return 0;
}

static int prepare_lines(BatchRun *b, const Options *o, Err *e)
{
    Requests *q = &b->q;
    return conversations_check_flags(o, e) || requests_open(q, o, &kind, &b->sampling.seed, e)
                || (o->chat && conversations_open(&b->talks, e))
                || modes_check_biases(o, &q->engine.model.decoder.config, e)
                || requests_start(q, modes_context(o, &q->engine.model.decoder.config), 0)
             ? -1
             : 0;
}

static int prepare_samples(BatchRun *b, const Options *o, Err *e)
{
    Requests *q = &b->q;
    Prompt prompt = {0};
    TokenList ids = {0};
    int seq_len = 0;
    if (!o->json)
        return err_set(e, EXIT_USAGE, "--samples: more than one needs --json");
    if (o->logits || o->maps.n_files || o->maps.n_stats || o->maps.n_routing)
        return err_set(e, EXIT_USAGE,
                       "--samples: logits, attention and routing files are of one text");
    int rc = requests_open(q, o, &kind, &b->sampling.seed, e)
          || prompt_start(o, &q->engine.model, &prompt, &ids, &seq_len, e)
          || modes_check_biases(o, &q->engine.model.decoder.config, e)
          || requests_start(q, seq_len, 0);
    for (int i = 0; !rc && i < o->samples; i++)
        rc = add_sample(b, i, &ids, &prompt.text, e);
    prompt_free(&prompt);
    tokens_free(&ids);
    return rc ? -1 : 0;
}

int batch_mode(const Options *o, Err *e)
{
    BatchRun b = {.sampling = modes_sampler_params(o)};
    b.talks = (Conversations){.o = o, .file = &b.q.engine.model.file};
    int rc = o->mode == MODE_BATCH ? prepare_lines(&b, o, e) : prepare_samples(&b, o, e);
    if (!rc)
        requests_run(&b.q);
    conversations_close(&b.talks);
    return requests_close(&b.q, rc);
}
