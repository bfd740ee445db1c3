/* requests.c - see requests.h. */
#include "modes/requests.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cpu.h"
#include "modes/outputs.h"

enum { MAX_PARALLEL = 64, TEXTS_PER_THREAD = 8, WINDOW = 1024 };

/* ---- reading members ------------------------------------------------------------------------- */

bool requests_is_one_of(Str name, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(name, names[i]))
            return true;
    return false;
}

int requests_read_ids(const Requests *q, const JsonDoc *d, const JsonNode *list, const char *name,
                      TokenList *out, Err *e)
{
    int vocab = model_stack(&q->engine.model)->config.vocab_size;
    int64_t id;
    if (list->type != JSON_LIST)
        return err_set(e, EXIT_USAGE, "%s: want a list of token ids", name);
    for (const JsonNode *n = json_first(d, list); n; n = json_next(d, list, n)) {
        if (!json_integer(n, 0, vocab - 1, &id))
            return err_set(e, EXIT_USAGE, "%s: want whole numbers from 0 to %d", name, vocab - 1);
        if (tokens_add(out, (int)id, e))
            return -1;
    }
    return 0;
}

int requests_encode(const Requests *q, Str text, TokenList *out, Err *e)
{
    return tokenizer_encode(q->engine.model.tokenizer, text.ptr ? text.ptr : "", text.len,
                            modes_encode_flags(q->o), out, e);
}

/* ---- the queue ------------------------------------------------------------------------------- */

Request *requests_new(const Requests *q, int line, Str json)
{
    Request *r = mem_zalloc(1, q->kind->size);
    char *copy = mem_alloc(json.len, 1);
    if (!r || !copy) {
        free(r);
        free(copy);
        return NULL;
    }
    memcpy(copy, json.ptr ? json.ptr : "", json.len);
    r->line = line;
    r->json = (Str){copy, json.len};
    return r;
}

void requests_add(Requests *q, Request *r)
{
    r->state = r->err.code ? DONE : WAITING;
    *q->end = r;
    q->end = &r->next;
    q->waiting = q->waiting ? q->waiting : r;
    q->n_open++;
}

static void free_request(Requests *q, Request *r)
{
    q->kind->free(q, r);
    free((char *)(uintptr_t)r->json.ptr);
    free(r);
}

static int read_json(Requests *q, Request *r)
{
    JsonDoc d;
    if (json_parse(&d, r->json, &r->err))
        return -1;
    const JsonNode *whole = d.nodes, *id = json_member(&d, whole, "id");
    r->is_json = whole->type == JSON_OBJECT;
    r->id = id ? id->raw : (Str){NULL, 0};
    int rc = r->is_json || whole->type == JSON_STRING
               ? q->kind->read(q, &d, r, &r->err)
               : err_set(&r->err, EXIT_USAGE, "want an object or a string");
    json_doc_free(&d);
    return rc;
}

/* Take in a line. Its own faults are in r->err; -1 for what ends the run. */
static int take_line(Requests *q, Str line)
{
    int number = q->o->first_line - 1 + q->lines.n;
    Request *r = requests_new(q, number, line);
    if (!r)
        return err_set(q->e, EXIT_MEMORY, "out of memory for line %d", number);
    if (q->o->jsonl)
        read_json(q, r);
    else
        q->kind->read(q, NULL, r, &r->err);
    requests_add(q, r);
    return 0;
}

static int n_running(const Requests *q)
{
    return q->kind->pass ? q->n_running : q->texts.n_running;
}

/* Read the lines that are there, as far as they have room; wait for one when nothing runs. */
static int read_lines(Requests *q)
{
    Str line;
    int rc = 1;
    while (rc > 0 && q->n_open < WINDOW && !stop_signal && !q->lines.at_end) {
        bool idle = !n_running(q) && !q->n_open;
        rc = lines_next(&q->lines, idle, &line, q->e);
        if (rc > 0 && journal_line(&q->journal, q->lines.n, line) && take_line(q, line))
            return -1;
    }
    return rc < 0 || journal_save(&q->journal, q->e) ? -1 : 0;
}

/* Let lines in, in their order. */
static void admit(Requests *q)
{
    for (; q->waiting; q->waiting = q->waiting->next)
        if (q->waiting->state == WAITING && !q->kind->start(q, q->waiting))
            return;
}

static void text_done(void *context, ParallelText *text)
{
    Requests *q = context;
    q->n_tokens += text->stream.text.n - text->stream.n_prompt;
    q->kind->text_done(q, text);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* The members of the line that are not ours. */
static void carry_through(const Requests *q, const Request *r, Json *j)
{
    JsonDoc d;
    Err none;
    if (!r->is_json || json_parse(&d, r->json, &none))
        return;
    for (const JsonNode *n = json_first(&d, d.nodes); n; n = json_next(&d, d.nodes, n))
        if (!str_eq(n->key, "id") && !str_eq(n->key, "line") && !str_eq(n->key, "error")
            && !q->kind->is_own(n->key)) {
            json_key_str(j, n->key);
            json_raw(j, n->raw);
        }
    json_doc_free(&d);
}

static int write_request(Requests *q, const Request *r)
{
    Buf out = {0};
    Json j = {.out = &out};
    json_object(&j);
    if (r->id.len)
        json_raw(json_key(&j, "id"), r->id);
    json_int(json_key(&j, q->o->mode == MODE_GENERATE ? "sample" : "line"), r->line);
    if (r->err.code)
        json_text(json_key(&j, "error"), r->err.text);
    else
        q->kind->write(q, r, &j);
    carry_through(q, r, &j);
    json_end(&j);
    buf_text(&out, "\n");
    q->n_failed += r->err.code != 0;
    int rc = out.failed ? err_set(q->e, EXIT_MEMORY, "out of memory for line %d", r->line)
           : fwrite(out.ptr, 1, out.len, q->out) != out.len || fflush(q->out)
               ? err_errno(q->e, q->out_path)
               : 0;
    buf_free(&out);
    return rc;
}

static int put_request(Requests *q, const Request *r)
{
    char name[32];
    if (!r->err.code)
        return q->kind->put(q, r);
    *q->e = r->err;
    snprintf(name, sizeof name, "line %d", r->line);
    return err_prefix(q->e, name);
}

/* Write what is done: the first lines or, unordered, any. */
static int write_done(Requests *q)
{
    for (Request **at = &q->first; *at;) {
        Request *r = *at;
        if (r->state != DONE && !q->o->unordered)
            return 0;
        if (r->state != DONE) {
            at = &r->next;
            continue;
        }
        if (q->waiting == r)
            q->waiting = r->next;
        q->n_done++;
        if (q->kind->put ? put_request(q, r) : write_request(q, r))
            return -1;
        *at = r->next;
        if (!*at)
            q->end = at;
        q->n_open--;
        free_request(q, r);
    }
    return 0;
}

/* ---- running --------------------------------------------------------------------------------- */

static void show_progress(const Requests *q)
{
    double seconds = clock_seconds() - q->begin, all = lines_expect(&q->lines);
    int n = q->n_done - q->journal.n_done; // in this run
    fprintf(stderr, "\r%d lines done, %d under way, %.1f tokens/s", q->n_done, n_running(q),
            (double)q->n_tokens / seconds);
    if (all >= q->n_done && n) {
        int left = (int)fmin((all - q->n_done) * seconds / n, 1e6);
        fprintf(stderr, ", %.0f %%, %d:%02d:%02d left", 100 * q->n_done / all, left / 3600,
                left / 60 % 60, left % 60);
    }
    fputs("\033[K", stderr);
}

static void run_lines(void *context)
{
    Requests *q = context;
    while (!q->rc && !stop_signal) {
        q->rc = read_lines(q);
        if (!q->rc)
            admit(q);
        if (!q->rc && n_running(q))
            q->rc = q->kind->pass ? q->kind->pass(q) : parallel_step(&q->texts, q->e);
        if (!q->rc)
            q->rc = write_done(q);
        if (q->progress)
            show_progress(q);
        if (q->lines.at_end && !q->n_open)
            break;
    }
    if (q->progress)
        fprintf(stderr, "\r\033[K");
}

void requests_run(Requests *q)
{
    threads_team(&q->engine.threads, run_lines, q);
    if (!q->rc && q->n_failed && !stop_signal)
        q->rc = err_set(q->e, EXIT_IO, "%d of %d lines have failed, see their \"error\"",
                        q->n_failed, q->n_done);
}

/* ---- opening and closing --------------------------------------------------------------------- */

/* -o, or standard output: what may not be written is refused, and a regular file's journal opened.
 */
static int prepare_output(Requests *q, uint64_t *seed)
{
    const char *path = q->o->output, *what;
    const Gguf *model = &q->engine.model.file;
    char words[80];
    bool standard = !path || !strcmp(path, "-");
    q->out_path = standard ? "standard output" : path;
    if (outputs_check(q->o, model, q->e))
        return -1;
    if (q->kind->put)
        return 0;
    if (standard || out_is_direct(path))
        return q->o->resume ? err_set(q->e, EXIT_USAGE,
                                      "--resume: -o: got a stream, want a file, which keeps the "
                                      "lines that are done")
                            : 0;
    if (journal_open(&q->journal, q->o, &q->engine, seed, q->e))
        return -1;
    what = outputs_read_as(q->o, model, q->journal.path, words);
    if (what)
        return err_set(q->e, EXIT_USAGE, "-o: its %s is %s, want another name", q->journal.path,
                       what);
    q->n_done = q->journal.n_done;
    q->n_failed = q->journal.n_failed;
    return 0;
}

/* Read again what a run that is resumed has read, and take in what it has not finished. Lines of a
 * file are compared first and read once more; those of a pipe have to be kept. */
static int catch_up(Requests *q)
{
    Journal *j = &q->journal;
    Str line;
    bool file = lines_rewind(&q->lines);
    int rc = 1;
    while (j->n < j->n_before && (rc = lines_next(&q->lines, true, &line, q->e)) > 0) {
        if (!journal_line(j, q->lines.n, line) || file)
            continue;
        if (q->n_open == WINDOW)
            return err_set(q->e, EXIT_USAGE,
                           "--resume: %s lacks more than %d of the lines that were read; want the "
                           "input as a file, not a pipe",
                           j->out, WINDOW);
        if (take_line(q, line))
            return -1;
    }
    if (rc < 0 || stop_signal || journal_check_input(j, q->e))
        return -1;
    if (file)
        lines_rewind(&q->lines);
    return 0;
}

/* Lines appear as they are done, so a file has its own name at once. */
static int open_output(Requests *q)
{
    if (!q->o->output || !strcmp(q->o->output, "-"))
        q->out = stdout;
    else if (q->journal.path)
        q->out = journal_begin(&q->journal, q->e);
    else if (!(q->out = fopen(q->o->output, "w")))
        err_errno(q->e, q->out_path);
    return q->out ? 0 : -1;
}

int requests_open(Requests *q, const Options *o, const RequestKind *kind, uint64_t *seed, Err *e)
{
    *q = (Requests){.o = o, .kind = kind, .e = e};
    q->end = &q->first;
    q->lines.at_end = !o->jsonl && !o->lines;
    if (o->jsonl && o->lines)
        return err_set(e, EXIT_USAGE, "--jsonl and --lines: got two inputs, want one");
    if (modes_open(&q->engine, o, true, e)
        || (!q->lines.at_end
            && lines_open(&q->lines, o->jsonl ? o->jsonl : o->lines, &stop_signal, e)))
        return -1;
    return prepare_output(q, seed);
}

/* Texts at once, and blocks of the cache for them: as many as are asked for, else as the processor
 * has a use for and half of the free memory has room for. */
static void choose_sizes(Requests *q, SessionParams *p)
{
    const Options *o = q->o;
    Cache one;
    int n_threads = q->engine.threads.n_threads;
    int per_text = kv_blocks_of(q->seq_len);
    p->n_seqs = 1;
    cache_size(&one, &q->engine.model.decoder.config, p);
    size_t free_memory = cpu_free_memory();
    double room = (free_memory ? (double)free_memory : 1e9) / 2 / (double)one.block_bytes;
    int n = n_threads * TEXTS_PER_THREAD < MAX_PARALLEL ? n_threads * TEXTS_PER_THREAD
                                                        : MAX_PARALLEL;
    p->n_seqs = o->parallel ? o->parallel : n;
    double blocks = (double)p->n_seqs * per_text;
    p->n_blocks = (int)(blocks < room ? blocks : room > per_text ? room : per_text);
}

int requests_start(Requests *q, int seq_len, int max_logits)
{
    const Options *o = q->o;
    SessionParams p = q->engine.params;
    q->seq_len = seq_len;
    modes_sizes(&p, seq_len, o->batch, 1);
    choose_sizes(q, &p);
    p.max_batch = o->batch > p.n_seqs ? o->batch : p.n_seqs;
    p.max_logits = !max_logits ? p.n_seqs : max_logits < p.max_batch ? max_logits : p.max_batch;
    modes_note_context(o, &q->engine.model.decoder.config, seq_len);
    return session_init(&q->session, &q->engine.model.decoder, &p, q->e)
                || parallel_init(&q->texts, &q->session, text_done, q, q->e) || requests_begin(q)
             ? -1
             : 0;
}

int requests_begin(Requests *q)
{
    q->progress = isatty(STDERR_FILENO) && !(isatty(STDOUT_FILENO) && !q->o->output);
    q->begin = clock_seconds();
    return (q->journal.resumed && catch_up(q)) || (!q->kind->put && open_output(q)) ? -1 : 0;
}

int requests_close(Requests *q, int rc)
{
    rc = rc ? rc : q->rc;
    while (q->first) {
        Request *next = q->first->next;
        free_request(q, q->first);
        q->first = next;
    }
    parallel_free(&q->texts);
    session_free(&q->session);
    lines_close(&q->lines);
    journal_close(&q->journal);
    if (q->out && q->out != stdout && fclose(q->out) && !rc)
        rc = err_errno(q->e, q->out_path);
    return modes_close(&q->engine, rc);
}
