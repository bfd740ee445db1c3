/* batch.c - the mode of --jsonl and --lines, and --samples: many texts that decode together, a JSON
 * object for each. docs/pipelines.md describes the lines.
 *
 * Lines are read as they come, wait in order for a place in the pool of texts that decode together
 * (generate/parallel.c), and are written in order, or with --unordered as they finish. A line that
 * cannot be run gets an object with an error, and the others go on.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/json_read.h"
#include "generate/parallel.h"
#include "modes/journal.h"
#include "modes/modes.h"
#include "modes/prompt.h"
#include "modes/result.h"

enum { MAX_PARALLEL = 64, TEXTS_PER_THREAD = 8, WINDOW = 1024 };

typedef enum { WAITING, RUNNING, DONE } RequestState;

/* A line on its way from the input to the output. */
typedef struct Request Request;
struct Request {
    Request *next;
    int line; // from 1; of a sample its number, from 0
    RequestState state;
    Str json;     // the line itself, owned; what is carried through points into it
    bool is_json; // an object
    Str id;       // its "id" as JSON, empty for none
    StreamParams params;
    Str *stops;             // owned, their bytes too
    Constraint *constraint; // of its own, NULL: what the flags say
    bool echo;
    uint64_t seed;
    ParallelText text;
};

typedef struct {
    const Options *o;
    Engine engine;
    Session session;
    Parallel texts;
    Lines lines;
    Journal journal; // of a file, else zeroed
    FILE *out;
    const char *out_path;   // for messages
    SamplerParams sampling; // of lines that do not say it
    Request *first, **end;  // in the order of the input
    Request *waiting;       // the first that waits
    int n_open;             // lines that are not written
    int n_done, n_failed;
    size_t n_tokens;
    double begin;
    bool progress;
    int seq_len;
    int rc;
    Err *e;
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
static const char *const others[] = {"id",   "prompt", "ids",     "stop",
                                     "seed", "echo",   "grammar", "json_schema"};

/* Members of the result, which a line cannot carry through. */
static const char *const results[] = {"line",     "text",        "bytes",         "prompt_ids",
                                      "n_prompt", "n_generated", "finish_reason", "error"};

/* Members that say what this version cannot do. */
static const char *const refused[] = {"messages", "tools", "chat_template_kwargs", "completion",
                                      "completions"};

#define COUNT(list) (sizeof list / sizeof *list)

static bool is_one_of(Str name, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(name, names[i]))
            return true;
    return false;
}

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
        const JsonNode *n = json_member(d, d->nodes, numbers[i].member);
        const Option *o = options_find(numbers[i].flag);
        void *field = (char *)own + o->offset;
        int64_t whole;
        if (!n)
            continue;
        bool fits = n->type == JSON_NUMBER && n->number >= o->min && n->number <= o->max
                 && (o->kind == OPT_FLOAT || json_integer(n, INT32_MIN, INT32_MAX, &whole));
        if (!fits)
            return err_set(e, EXIT_USAGE, "%s: want a %snumber from %g to %g", numbers[i].member,
                           o->kind == OPT_INT ? "whole " : "", o->min, o->max);
        if (o->kind == OPT_INT)
            *(int *)field = (int)whole;
        else
            *(float *)field = (float)n->number;
    }
    return 0;
}

static int add_stop(Request *r, Str s, Err *e)
{
    Str *stops = mem_grow(r->stops, (size_t)r->params.n_stops + 1, sizeof *stops);
    char *copy = mem_alloc(s.len, 1);
    if (stops)
        r->stops = stops;
    if (!stops || !copy) {
        free(copy);
        return err_set(e, EXIT_MEMORY, "out of memory for the line");
    }
    memcpy(copy, s.ptr, s.len);
    r->stops[r->params.n_stops++] = (Str){copy, s.len};
    return 0;
}

/* "stop": a text or a list of them; without it the texts of --stop. */
static int read_stops(const Options *o, const JsonDoc *d, Request *r, Err *e)
{
    const JsonNode *n = d->n ? json_member(d, d->nodes, "stop") : NULL;
    for (int i = 0; !n && i < o->n_stops; i++)
        if (add_stop(r, (Str){o->stops[i].text.ptr, o->stops[i].text.len}, e))
            return -1;
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

static uint64_t mix(uint64_t z) // SplitMix64's finaliser
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A seed of its own for each name: its "id" as JSON text, or the number of a line or sample. */
static uint64_t derive_seed(uint64_t base, Str name)
{
    uint64_t h = 14695981039346656037u; // FNV-1a
    for (size_t i = 0; i < name.len; i++)
        h = (h ^ (unsigned char)name.ptr[i]) * 1099511628211u;
    return mix(mix(base) ^ h) % SEED_LIMIT;
}

static int read_seed(const BatchRun *b, const JsonDoc *d, Request *r, Err *e)
{
    char number[16];
    const JsonNode *n = d->n ? json_member(d, d->nodes, "seed") : NULL;
    int64_t seed;
    Str name = r->id;
    if (n && !json_integer(n, 0, INT64_MAX, &seed))
        return err_set(e, EXIT_USAGE, "seed: want a whole number from 0 on");
    if (!name.len)
        name = (Str){number, (size_t)snprintf(number, sizeof number, "%d", r->line)};
    r->seed = n ? (uint64_t)seed : derive_seed(b->sampling.seed, name);
    return 0;
}

/* "ids": the prompt's tokens. */
static int read_ids(const BatchRun *b, const JsonDoc *d, const JsonNode *list, TokenList *out,
                    Err *e)
{
    int vocab = b->engine.model.decoder.config.vocab_size;
    int64_t id;
    if (list->type != JSON_LIST)
        return err_set(e, EXIT_USAGE, "ids: want a list of token ids");
    for (const JsonNode *n = json_first(d, list); n; n = json_next(d, list, n)) {
        if (!json_integer(n, 0, vocab - 1, &id))
            return err_set(e, EXIT_USAGE, "ids: want whole numbers from 0 to %d", vocab - 1);
        if (tokens_add(out, (int)id, e))
            return -1;
    }
    return 0;
}

static int encode_prompt(const BatchRun *b, Str text, TokenList *out, Err *e)
{
    const Options *o = b->o;
    const Tokenizer *t = b->engine.model.tokenizer;
    unsigned flags = (o->no_bos ? 0 : ENCODE_BOS) | (o->special_files ? ENCODE_SPECIAL : 0);
    if (tokenizer_encode(t, text.ptr ? text.ptr : "", text.len, flags, out, e))
        return -1;
    if (!out->n && !o->no_bos && tokenizer_bos(t) >= 0)
        return tokens_add(out, tokenizer_bos(t), e);
    return 0;
}

/* The prompt's ids, and its text (empty where it is given as ids). */
static int read_prompt(const BatchRun *b, const JsonDoc *d, Request *r, TokenList *out, Str *text,
                       Err *e)
{
    const JsonNode *whole = d->n ? d->nodes : NULL;
    const JsonNode *prompt = r->is_json ? json_member(d, whole, "prompt") : whole;
    const JsonNode *ids = r->is_json ? json_member(d, whole, "ids") : NULL;
    for (size_t i = 0; r->is_json && i < COUNT(refused); i++)
        if (json_member(d, whole, refused[i]))
            return err_set(e, EXIT_USAGE, "%s: not supported by this mode", refused[i]);
    if (r->is_json && !prompt == !ids)
        return err_set(e, EXIT_USAGE, "want either \"prompt\" or \"ids\"");
    if (ids)
        return read_ids(b, d, ids, out, e);
    if (prompt && prompt->type != JSON_STRING)
        return err_set(e, EXIT_USAGE, "prompt: want a string");
    *text = prompt ? prompt->string : r->json;
    return encode_prompt(b, *text, out, e);
}

static void set_stream_params(const BatchRun *b, const Options *o, Request *r)
{
    int n_stops = r->params.n_stops;
    r->params = modes_stream_params(o, &b->engine, b->seq_len);
    r->params.stops = r->stops;
    r->params.n_stops = n_stops;
}

/* "grammar", a text, or "json_schema", a schema. */
static int read_constraint(BatchRun *b, const JsonDoc *d, Request *r, Err *e)
{
    const JsonNode *grammar = json_member(d, d->nodes, "grammar");
    const JsonNode *schema = json_member(d, d->nodes, "json_schema");
    if (!grammar && !schema)
        return 0;
    if (grammar && schema)
        return err_set(e, EXIT_USAGE, "want either \"grammar\" or \"json_schema\"");
    if (grammar && grammar->type != JSON_STRING)
        return err_set(e, EXIT_USAGE, "grammar: want a string");
    r->constraint = constraints_get(&b->engine.constraints,
                                    grammar ? CONSTRAINT_GRAMMAR : CONSTRAINT_SCHEMA,
                                    grammar ? grammar->string : schema->raw, e);
    if (!r->constraint)
        return err_prefix(e, grammar ? "grammar" : "json_schema");
    r->params.matcher = r->constraint->matcher;
    return 0;
}

/* Put a request at the end of the queue; one with an error is done. */
static void add_request(BatchRun *b, Request *r)
{
    r->state = r->text.err.code ? DONE : WAITING;
    *b->end = r;
    b->end = &r->next;
    b->waiting = b->waiting ? b->waiting : r;
    b->n_open++;
}

/* What the line asks for -> its stream. */
static int read_request(BatchRun *b, const JsonDoc *d, Request *r, Err *e)
{
    Options own = *b->o;
    TokenList ids = {0};
    Str prompt = {"", 0};
    const JsonNode *id = r->is_json ? json_member(d, d->nodes, "id") : NULL;
    const JsonNode *echo = r->is_json ? json_member(d, d->nodes, "echo") : NULL;
    r->id = id ? id->raw : (Str){NULL, 0};
    r->echo = echo ? echo->type == JSON_TRUE : own.echo;
    if (echo && echo->type != JSON_TRUE && echo->type != JSON_FALSE)
        return err_set(e, EXIT_USAGE, "echo: want true or false");
    if ((r->is_json && read_numbers(d, &own, e))
        || read_seed(b, r->is_json ? d : &(JsonDoc){0}, r, e)
        || read_stops(&own, r->is_json ? d : &(JsonDoc){0}, r, e))
        return -1;
    set_stream_params(b, &own, r);
    if (r->is_json && read_constraint(b, d, r, e))
        return -1;
    int rc = read_prompt(b, d, r, &ids, &prompt, e);
    if (!rc && !ids.n)
        rc = err_set(e, EXIT_USAGE, "the prompt is empty, want some text");
    if (!rc && ids.n > (size_t)b->seq_len)
        rc = err_set(e, EXIT_USAGE, "prompt: got %zu tokens, want at most the context's %d (-c)",
                     ids.n, b->seq_len);
    if (rc) {
        tokens_free(&ids);
        return rc;
    }
    stream_init(&r->text.stream, &r->params, r->seed, ids);
    if (r->echo)
        buf_add(&r->text.shown, prompt.ptr, stream_follow(&r->text.stream, prompt.ptr, prompt.len));
    return 0;
}

/* Take in a line. Its own faults are in r->text.err; -1 for what ends the run. */
static int take_line(BatchRun *b, Str line)
{
    Request *r = mem_zalloc(1, sizeof *r);
    char *copy = mem_alloc(line.len, 1);
    JsonDoc d = {0};
    if (!r || !copy) {
        free(r);
        free(copy);
        return err_set(b->e, EXIT_MEMORY, "out of memory for line %d", b->lines.n);
    }
    memcpy(copy, line.ptr ? line.ptr : "", line.len);
    *r = (Request){.line = b->lines.n, .json = {copy, line.len}};
    Err *e = &r->text.err;
    bool json = b->o->jsonl != NULL;
    if (!json || !json_parse(&d, r->json, e)) {
        r->is_json = json && d.nodes[0].type == JSON_OBJECT;
        if (json && !r->is_json && d.nodes[0].type != JSON_STRING)
            err_set(e, EXIT_USAGE, "want an object or a string");
        else
            read_request(b, &d, r, e);
    }
    json_doc_free(&d);
    add_request(b, r);
    return 0;
}

/* --samples: number `i` of the texts after one prompt. The first has the seed as it was given. */
static int take_sample(BatchRun *b, int i, const TokenList *prompt, const Buf *text)
{
    char number[16];
    Request *r = mem_zalloc(1, sizeof *r);
    TokenList ids = {0};
    if (!r || !mem_room(&ids.ids, prompt->n, &ids.cap, sizeof *ids.ids)
        || read_stops(b->o, &(JsonDoc){0}, r, b->e)) {
        free(r);
        return err_set(b->e, EXIT_MEMORY, "out of memory for the samples");
    }
    memcpy(ids.ids, prompt->ids, prompt->n * sizeof *ids.ids);
    ids.n = prompt->n;
    Str name = {number, (size_t)snprintf(number, sizeof number, "%d", i)};
    r->line = i;
    r->seed = i ? derive_seed(b->sampling.seed, name) : b->sampling.seed;
    set_stream_params(b, b->o, r);
    stream_init(&r->text.stream, &r->params, r->seed, ids);
    if (b->o->echo)
        buf_add(&r->text.shown, text->ptr, stream_follow(&r->text.stream, text->ptr, text->len));
    add_request(b, r);
    return 0;
}

/* ---- writing a line -------------------------------------------------------------------------- */

static void free_request(BatchRun *b, Request *r)
{
    for (int i = 0; r->stops && i < r->params.n_stops; i++)
        free((char *)(uintptr_t)r->stops[i].ptr);
    free(r->stops);
    free((char *)(uintptr_t)r->json.ptr);
    stream_free(&r->text.stream);
    constraints_let_go(&b->engine.constraints, r->constraint);
    buf_free(&r->text.shown);
    free(r);
}

/* The members of the line that are not ours. */
static void carry_through(Json *j, const Request *r)
{
    JsonDoc d;
    Err none;
    if (!r->is_json || json_parse(&d, r->json, &none))
        return;
    for (const JsonNode *n = json_first(&d, d.nodes); n; n = json_next(&d, d.nodes, n))
        if (!is_number(n->key) && !is_one_of(n->key, others, COUNT(others))
            && !is_one_of(n->key, results, COUNT(results))) {
            json_key_str(j, n->key);
            json_raw(j, n->raw);
        }
    json_doc_free(&d);
}

static int write_request(BatchRun *b, Request *r)
{
    Buf out = {0};
    Json j = {.out = &out};
    const ParallelText *t = &r->text;
    bool timings = b->o->timings;
    Result result = {&t->stream, &t->shown, r->seed, timings ? t->prompted - t->began : -1,
                     t->ended - t->prompted};
    json_object(&j);
    if (r->id.len)
        json_raw(json_key(&j, "id"), r->id);
    json_int(json_key(&j, b->o->mode == MODE_BATCH ? "line" : "sample"), r->line);
    if (r->text.err.code)
        json_text(json_key(&j, "error"), r->text.err.text);
    else
        result_members(&j, &result);
    carry_through(&j, r);
    json_end(&j);
    buf_text(&out, "\n");
    b->n_done++;
    b->n_failed += r->text.err.code != 0;
    b->n_tokens += r->text.stream.text.n - r->text.stream.n_prompt;
    int rc = out.failed ? err_set(b->e, EXIT_MEMORY, "out of memory for line %d", r->line)
           : fwrite(out.ptr, 1, out.len, b->out) != out.len || fflush(b->out)
               ? err_errno(b->e, b->out_path)
               : 0;
    buf_free(&out);
    return rc;
}

/* Write what is done: the first lines or, unordered, any. */
static int write_done(BatchRun *b)
{
    for (Request **at = &b->first; *at;) {
        Request *r = *at;
        if (r->state != DONE && !b->o->unordered)
            return 0;
        if (r->state != DONE) {
            at = &r->next;
            continue;
        }
        if (b->waiting == r)
            b->waiting = r->next;
        if (write_request(b, r))
            return -1;
        *at = r->next;
        if (!*at)
            b->end = at;
        b->n_open--;
        free_request(b, r);
    }
    return 0;
}

/* ---- running --------------------------------------------------------------------------------- */

static void text_done(void *context, ParallelText *text)
{
    (void)context;
    Request *r = (Request *)(void *)((char *)text - offsetof(Request, text));
    r->state = DONE;
}

/* Read the lines that are there, as far as they have room; wait for one when nothing runs. */
static int read_lines(BatchRun *b)
{
    Str line;
    int rc = 1;
    while (rc > 0 && b->n_open < WINDOW && !stop_signal && !b->lines.at_end) {
        bool idle = !parallel_n_running(&b->texts) && !b->n_open;
        rc = lines_next(&b->lines, idle, &line, b->e);
        if (rc > 0 && journal_line(&b->journal, b->lines.n, line) && take_line(b, line))
            return -1;
    }
    return rc < 0 || journal_save(&b->journal, b->e) ? -1 : 0;
}

/* Let lines in, in their order. */
static void admit(BatchRun *b)
{
    for (; b->waiting; b->waiting = b->waiting->next) {
        Request *r = b->waiting;
        if (r->state != WAITING)
            continue;
        r->state = RUNNING;
        if (!parallel_add(&b->texts, &r->text)) {
            r->state = WAITING;
            return;
        }
    }
}

static void show_progress(const BatchRun *b)
{
    double seconds = clock_seconds() - b->begin;
    fprintf(stderr, "\r%d lines done, %d under way, %.1f tokens/s ", b->n_done,
            parallel_n_running(&b->texts), (double)b->n_tokens / seconds);
}

static void run_batch(void *context)
{
    BatchRun *b = context;
    while (!b->rc && !stop_signal) {
        b->rc = read_lines(b);
        if (!b->rc)
            admit(b);
        if (!b->rc && parallel_n_running(&b->texts) && parallel_step(&b->texts, b->e))
            b->rc = -1;
        if (!b->rc)
            b->rc = write_done(b);
        if (b->progress)
            show_progress(b);
        if (b->lines.at_end && !b->n_open)
            break;
    }
    if (b->progress)
        fprintf(stderr, "\r\033[K");
}

/* ---- setting up ------------------------------------------------------------------------------ */

/* Texts at once, and blocks of the cache for them: as many as are asked for, else as the processor
 * has a use for and half of the free memory has room for. */
static void choose_sizes(BatchRun *b, SessionParams *p)
{
    const Options *o = b->o;
    Cache one;
    int n_threads = b->engine.threads.n_threads;
    int per_text = (b->seq_len + KV_BLOCK - 1) / KV_BLOCK;
    p->n_seqs = 1;
    cache_size(&one, &b->engine.model.decoder.config, p);
    double room = (double)cpu_free_memory() / 2 / (double)one.block_bytes;
    int n = n_threads * TEXTS_PER_THREAD < MAX_PARALLEL ? n_threads * TEXTS_PER_THREAD
                                                        : MAX_PARALLEL;
    p->n_seqs = p->max_logits = o->parallel ? o->parallel : n;
    double blocks = (double)p->n_seqs * per_text;
    p->n_blocks = (int)(blocks < room ? blocks : room > per_text ? room : per_text);
}

/* -o, or standard output: what may not be written is refused, and a regular file's journal opened.
 */
static int prepare_output(BatchRun *b, Err *e)
{
    const char *path = b->o->output;
    bool standard = !path || !strcmp(path, "-");
    b->out_path = standard ? "standard output" : path;
    if (!standard && modes_is_model_file(&b->engine.model.file, path))
        return err_set(e, EXIT_USAGE, "-o: got the model's own file, want another");
    if (!standard && b->lines.path && out_same(path, b->lines.path))
        return err_set(e, EXIT_USAGE, "-o: got the file that is read, want another");
    if (standard || out_is_direct(path))
        return b->o->resume ? err_set(e, EXIT_USAGE,
                                      "--resume: -o: got a stream, want a file, which keeps the "
                                      "lines that are done")
                            : 0;
    if (journal_open(&b->journal, b->o, &b->engine, &b->sampling.seed, e))
        return -1;
    if (out_same(b->journal.path, b->lines.path))
        return err_set(e, EXIT_USAGE, "-o: its %s is the file that is read, want another name",
                       b->journal.path);
    b->n_done = b->journal.n_done;
    b->n_failed = b->journal.n_failed;
    return 0;
}

/* Read again what a run that is resumed has read, and take in what it has not finished. Lines of a
 * file are compared first and read once more; those of a pipe have to be kept. */
static int catch_up(BatchRun *b, Err *e)
{
    Journal *j = &b->journal;
    Str line;
    bool file = lines_rewind(&b->lines);
    int rc = 1;
    while (j->n < j->n_before && (rc = lines_next(&b->lines, true, &line, e)) > 0) {
        if (!journal_line(j, b->lines.n, line) || file)
            continue;
        if (b->n_open == WINDOW)
            return err_set(e, EXIT_USAGE,
                           "--resume: %s lacks more than %d of the lines that were read; want the "
                           "input as a file, not a pipe",
                           j->out, WINDOW);
        if (take_line(b, line))
            return -1;
    }
    if (rc < 0 || stop_signal || journal_check_input(j, e))
        return -1;
    if (file)
        lines_rewind(&b->lines);
    return 0;
}

/* Lines appear as they are done, so a file has its own name at once. */
static int open_output(BatchRun *b, Err *e)
{
    if (!b->o->output || !strcmp(b->o->output, "-"))
        b->out = stdout;
    else if (b->journal.path)
        b->out = journal_begin(&b->journal, e);
    else if (!(b->out = fopen(b->o->output, "w")))
        err_errno(e, b->out_path);
    return b->out ? 0 : -1;
}

/* The session and the pool, for texts of at most seq_len tokens. */
static int prepare_pool(BatchRun *b, int seq_len, Err *e)
{
    const Options *o = b->o;
    const Config *c = &b->engine.model.decoder.config;
    SessionParams p = b->engine.params;
    b->seq_len = seq_len;
    modes_sizes(&p, seq_len, o->batch, 1);
    choose_sizes(b, &p);
    p.max_batch = o->batch > p.n_seqs ? o->batch : p.n_seqs;
    modes_note_context(o, c, b->seq_len);
    b->progress = isatty(STDERR_FILENO) && !(isatty(STDOUT_FILENO) && !o->output);
    b->begin = clock_seconds();
    return modes_check_biases(o, c, e) || session_init(&b->session, &b->engine.model.decoder, &p, e)
                || parallel_init(&b->texts, &b->session, text_done, b, e)
             ? -1
             : 0;
}

static int prepare_lines(BatchRun *b, Err *e)
{
    const Options *o = b->o;
    if (o->jsonl && o->lines)
        return err_set(e, EXIT_USAGE, "--jsonl and --lines: got two inputs, want one");
    b->sampling = modes_sampler_params(o);
    if (modes_open(&b->engine, o, true, e)
        || lines_open(&b->lines, o->jsonl ? o->jsonl : o->lines, &stop_signal, e)
        || prepare_output(b, e))
        return -1;
    int most = b->engine.model.decoder.config.seq_len;
    return prepare_pool(b,
                        o->seq_len             ? o->seq_len
                        : most < USUAL_CONTEXT ? most
                                               : USUAL_CONTEXT,
                        e)
                || (b->journal.resumed && catch_up(b, e)) || open_output(b, e)
             ? -1
             : 0;
}

static int prepare_samples(BatchRun *b, Err *e)
{
    const Options *o = b->o;
    Prompt prompt = {0};
    TokenList ids = {0};
    int seq_len = 0;
    if (!o->json)
        return err_set(e, EXIT_USAGE, "--samples: more than one needs --json");
    if (o->logits || o->maps.n_files || o->maps.n_stats)
        return err_set(e, EXIT_USAGE, "--samples: logits and attention files are of one text");
    b->lines.at_end = true;
    b->sampling = modes_sampler_params(o);
    int rc = modes_open(&b->engine, o, true, e)
          || prompt_start(o, &b->engine.model, &prompt, &ids, &seq_len, e) || prepare_output(b, e)
          || prepare_pool(b, seq_len, e) || open_output(b, e);
    for (int i = 0; !rc && i < o->samples; i++)
        rc = take_sample(b, i, &ids, &prompt.text);
    prompt_free(&prompt);
    tokens_free(&ids);
    return rc ? -1 : 0;
}

int batch_mode(const Options *o, Err *e)
{
    BatchRun b = {.o = o, .e = e};
    b.end = &b.first;
    b.rc = o->mode == MODE_BATCH ? prepare_lines(&b, e) : prepare_samples(&b, e);
    if (!b.rc)
        threads_team(&b.engine.threads, run_batch, &b);
    if (!b.rc && b.n_failed && !stop_signal)
        b.rc = err_set(e, EXIT_IO, "%d of %d lines have failed, see their \"error\"", b.n_failed,
                       b.n_done);
    while (b.first) {
        Request *next = b.first->next;
        free_request(&b, b.first);
        b.first = next;
    }
    parallel_free(&b.texts);
    session_free(&b.session);
    lines_close(&b.lines);
    journal_close(&b.journal);
    if (b.out && b.out != stdout && fclose(b.out) && !b.rc)
        b.rc = err_errno(e, b.out_path);
    return modes_close(&b.engine, b.rc);
}
