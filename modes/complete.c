/* complete.c - the mode without a flag: runs the prompt, prints what the model makes of it, writes
 * what was asked for beside it (logits, attention maps, statistics).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/npy.h"
#include "engine/session_file.h"
#include "generate/stream.h"
#include "maps/job.h"
#include "modes/modes.h"
#include "modes/outputs.h"
#include "modes/prompt.h"
#include "modes/result.h"

enum { MAX_LOGITS = 32 }; // rows of a pass whose logits are written to a file

/* One run of the mode. */
typedef struct {
    const Options *o;
    Engine engine;
    Session session;
    SessionFile loaded; // zeroed: none
    OutFile saved;      // zeroed: none
    Sampler sampler;
    StreamParams params;
    Stream stream; // the prompt and what is generated
    Buf shown;     // bytes on their way to standard output
    char last;     // the last byte that was printed
    NpyFile logits;
    MapJob *maps; // NULL: none are wanted
    Prompt prompt;
    int n_prompt;
    int n_loaded;    // tokens whose keys and values a session brought
    int n_run;       // tokens of the text that were run, whose rows were written
    int n_logits;    // rows of logits of the last pass
    bool open_line;  // the text on standard output did not end in a newline
    bool mixed_line; // and standard error appears after it
    double prompt_seconds, generate_seconds;
} Run;

static void describe(const Run *r, const SessionParams *p)
{
    const Config *c = &r->engine.model.decoder.config;
    double kv = (double)r->session.cache.block_bytes / KV_BLOCK;
    char state[40] = "";
    if (r->session.cache.state_floats)
        snprintf(state, sizeof state, "state %.1f KB, ",
                 (double)cache_state_bytes(&r->session.cache) / 1e3);
    fprintf(stderr,
            "engine: kernels %s, %d threads, context %d of %d, "
            "KV cache %s %.1f KB per token, %sseed %llu\n",
            p->kernels->name, r->session.threads->n_threads, p->seq_len, c->seq_len,
            kv_names[p->kv_type], kv / 1e3, state, (unsigned long long)r->params.sampling.seed);
}

/* Run the text's first n tokens through the model, but for those that were run; logits of the last
 * row only, or of all where they are written to a file. Where the text has become longer than
 * longrope's original context all of it runs again, but only rows that are new go to files. */
static int run_text(Run *r, int n, bool wants_logits, Err *e)
{
    bool writes = wants_logits && r->o->logits, live = r->maps && maps_live(r->maps);
    Session *s = &r->session;
    int step = s->params.max_batch, first = cache_expect(&s->cache, 0, n);
    bool progress = r->n_run < r->n_prompt && n - first > step && isatty(STDERR_FILENO)
                 && !r->open_line; // it would wipe text out
    Want want = writes ? WANT_ALL : wants_logits ? WANT_LAST : WANT_NONE;
    for (int i = first, rows; i < n && !stop_signal; i += rows) {
        rows = n - i < step ? n - i : step;
        if (progress)
            fprintf(stderr, "\rprompt: %d of %d tokens", i, n);
        Span span = {.n = rows, .tokens = r->stream.text.ids + i, .want = want};
        r->n_logits = forward_span(s, &span, e);
        if (r->n_logits < 0)
            return stop_signal ? 0 : -1;
        int again = r->n_run - i < 0 ? 0 : r->n_run - i < rows ? r->n_run - i : rows;
        int fresh = rows - again;
        size_t at = (size_t)again * (size_t)r->engine.model.decoder.config.vocab_size;
        if (writes && fresh && npy_rows(&r->logits, s->logits + at, (size_t)fresh, e))
            return -1;
        if (live && fresh && maps_live_rows(r->maps, r->stream.text.ids + i + again, fresh, e))
            return -1;
        r->n_run += fresh;
    }
    if (progress)
        fprintf(stderr, "\r\033[K");
    return 0;
}

static int put(Run *r, const char *bytes, size_t len, Err *e)
{
    if (!len)
        return 0;
    r->last = bytes[len - 1];
    return modes_print(bytes, len, e);
}

/* Print and empty r->shown; with --json it is printed at the end. */
static int put_shown(Run *r, Err *e)
{
    if (r->o->json)
        return 0;
    int rc = put(r, r->shown.ptr, r->shown.len, e);
    r->shown.len = 0;
    return rc;
}

/* --logprobs without --json: a line for a new token takes the place of the text. */
static int show_logprobs(Run *r, size_t n_before, Err *e)
{
    if (r->o->json || r->o->logprobs < 0)
        return 0;
    r->shown.len = 0;
    if (r->stream.text.n > n_before)
        result_logprob_line(&r->stream, &r->shown);
    return r->shown.failed ? err_set(e, EXIT_MEMORY, "out of memory for the text") : 0;
}

/* --json: the whole result as one object. */
static int print_result(Run *r, Err *e)
{
    Result result = {&r->stream, &r->shown, r->params.sampling.seed, r->prompt_seconds,
                     r->generate_seconds};
    r->last = '\n';
    return result_print(&result, e);
}

static int generate(Run *r, Err *e)
{
    Stream *s = &r->stream;
    size_t vocab = (size_t)r->engine.model.decoder.config.vocab_size;
    while (!s->end && !stop_signal) {
        float *logits = r->session.logits + (size_t)(r->n_logits - 1) * vocab;
        size_t n = s->text.n;
        if (stream_next(s, &r->sampler, logits, &r->shown, e) || show_logprobs(r, n, e)
            || put_shown(r, e) || (!s->end && run_text(r, (int)s->text.n, true, e)))
            return -1;
    }
    return stream_finish(s, &r->shown, e) || show_logprobs(r, s->text.n, e) || put_shown(r, e) ? -1
                                                                                               : 0;
}

/* Open the files that are written while the session runs, and set what they need of it in *p. */
static int prepare_outputs(Run *r, SessionParams *p, Err *e)
{
    const Options *o = r->o;
    if (outputs_check(o, &r->engine.model.file, e))
        return -1;
    if (o->maps.n_files || o->maps.n_stats || o->maps.n_routing) {
        int n = r->n_prompt + (o->n_predict > 0 && o->ignore_eos ? o->n_predict : 0); // at least
        n = n < p->seq_len ? n : p->seq_len;
        r->maps = maps_open(&o->maps, &r->engine.model, o->model, r->n_prompt, n, e);
        if (!r->maps)
            return -1;
        if (maps_live(r->maps))
            maps_live_params(r->maps, p);
    }
    size_t vocab = (size_t)r->engine.model.decoder.config.vocab_size;
    if (o->save_session && out_open(&r->saved, o->save_session, e))
        return -1;
    return o->logits ? npy_open(&r->logits, o->logits, vocab, e) : 0;
}

/* Flags that do not go together with sessions. */
static int check_session_flags(const Options *o, Err *e)
{
    const char *session = o->load_session ? "--load-session" : "--save-session";
    if (!o->load_session && !o->save_session)
        return 0;
    const char *maps = o->maps.n_files   ? "--dump-attn"
                     : o->maps.n_stats   ? "--attn-stats"
                     : o->maps.n_routing ? "--dump-routing"
                                         : NULL;
    if (maps)
        return err_set(e, EXIT_USAGE, "%s does not go together with %s", session, maps);
    if (o->save_session && !strcmp(o->save_session, "-"))
        return err_set(e, EXIT_USAGE,
                       "--save-session: got \"-\", want a file: standard output gets the text");
    if (o->save_session && out_is_direct(o->save_session))
        return err_set(e, EXIT_USAGE,
                       "--save-session: got a pipe or device, want a file, which can be mapped");
    if (o->load_session && o->no_bos)
        return err_set(e, EXIT_USAGE, "--load-session does not take --no-bos: its text has begun");
    return 0;
}

/* --load-session: its ids begin the text. */
static int load_session(Run *r, TokenList *text, Err *e)
{
    SessionFile *f = &r->loaded;
    double begin = clock_seconds();
    if (session_file_open(f, r->o->load_session, &r->engine.model, &r->engine.params, e))
        return -1;
    size_t n = (size_t)f->header.n_ids;
    if (!mem_room(&text->ids, n, &text->cap, sizeof *text->ids))
        return err_set(e, EXIT_MEMORY, "out of memory for the session");
    memcpy(text->ids, f->ids, n * sizeof *text->ids);
    text->n = n;
    if (r->o->verbose)
        fprintf(stderr, "session: %zu tokens, %.1f MB, loaded in %.1f ms\n", n,
                (double)f->file.size / 1e6, 1e3 * (clock_seconds() - begin));
    return 0;
}

/* The session's keys and values; the text's last token is run in any case, for its logits. */
static void take_over(Run *r)
{
    session_file_attach(&r->loaded, &r->session);
    r->n_run = r->n_loaded = cache_truncate(&r->session.cache, 0, r->n_prompt - 1);
}

/* Everything between the parsed options and the first token. */
static int prepare(Run *r, Err *e)
{
    const Options *o = r->o;
    TokenList *text = &r->stream.text;
    if (check_session_flags(o, e) || modes_open(&r->engine, o, true, e)
        || (o->load_session && load_session(r, text, e)))
        return -1;
    SessionParams p = r->engine.params;
    const Config *c = &r->engine.model.decoder.config;
    int seq_len;
    if (modes_check_biases(o, c, e)
        || prompt_start(o, &r->engine.model, &r->prompt, text, &seq_len, e))
        return -1;
    if (!o->echo)
        prompt_free(&r->prompt);
    r->n_prompt = (int)text->n;
    int rows = c->ropes[0].scaling == ROPE_LONGROPE ? seq_len : r->n_prompt; // see run_text()
    if (o->logits && rows > MAX_LOGITS)
        rows = MAX_LOGITS;
    modes_sizes(&p, seq_len, rows, o->logits ? MAX_LOGITS : 1);
    modes_note_context(o, c, seq_len);
    if (prepare_outputs(r, &p, e) || session_init(&r->session, &r->engine.model.decoder, &p, e)
        || (r->maps && maps_live(r->maps) && maps_live_watch(r->maps, &r->session, e))
        || sampler_init(&r->sampler, c->vocab_size, p.kernels, e))
        return -1;
    r->params = modes_stream_params(o, &r->engine, seq_len);
    r->params.sampling = modes_sampler_params(o);
    stream_init(&r->stream, &r->params, r->params.sampling.seed, *text);
    if (o->load_session)
        take_over(r);
    if (o->verbose)
        describe(r, &p);
    return 0;
}

/* Prompt and generation, as one body for the team of threads: they stand by from the first token to
 * the last. */
typedef struct {
    Run *r;
    Err *e;
    int rc;
} Work;

static void work(void *context)
{
    Work *w = context;
    Run *r = w->r;
    double begin = clock_seconds();
    w->rc = run_text(r, r->n_prompt, true, w->e);
    r->prompt_seconds = clock_seconds() - begin;
    if (!w->rc && !stop_signal)
        w->rc = generate(r, w->e);
    r->generate_seconds = clock_seconds() - begin - r->prompt_seconds;
}

/* --echo: the prompt as it was given, without the begin-of-text token that we add. */
static int print_prompt(Run *r, Err *e)
{
    const Buf *text = &r->prompt.text;
    if (r->o->load_session && !text->len) // the session's text is before what is printed
        return 0;
    buf_add(&r->shown, text->ptr, stream_follow(&r->stream, text->ptr, text->len));
    return r->shown.failed ? err_set(e, EXIT_MEMORY, "out of memory for the text")
                           : put_shown(r, e);
}

/* Whether what standard error gets may appear after the text: both are one file, or standard error
 * is a terminal, which may show standard output through a pipe. */
static bool shares_screen(void)
{
    struct stat a, b;
    bool known = !fstat(STDOUT_FILENO, &a) && !fstat(STDERR_FILENO, &b);
    return isatty(STDERR_FILENO) || (known && a.st_dev == b.st_dev && a.st_ino == b.st_ino);
}

/* End the text's last line before standard error writes, if both appear together. */
static void begin_line(Run *r)
{
    if (r->mixed_line)
        fputc('\n', stderr);
    r->mixed_line = false;
}

/* -v: the speeds, and why the text ended. */
static void describe_run(const Run *r)
{
    char why[200], name[100], experts[240];
    const Stream *s = &r->stream;
    int n_generated = (int)(s->text.n - s->n_prompt), n_prompt = r->n_prompt - r->n_loaded;
    double rate = n_generated > 1 ? (n_generated - 1) / r->generate_seconds : 0;
    switch (s->end) {
    case NOT_ENDED:
        snprintf(why, sizeof why, "signal %d, %s", (int)stop_signal, strsignal(stop_signal));
        break;
    case END_TOKEN:
        str_escape(tokenizer_piece(r->engine.model.tokenizer, s->end_token), name, sizeof name);
        snprintf(why, sizeof why, "end token %d, %s", s->end_token, name);
        break;
    case END_STOP:
        str_escape(r->params.stops[s->stop], name, sizeof name);
        snprintf(why, sizeof why, "--stop \"%s\"", name);
        break;
    case END_LIMIT: snprintf(why, sizeof why, "-n %d", r->o->n_predict); break;
    case END_GRAMMAR: snprintf(why, sizeof why, "the grammar"); break;
    case END_CONTEXT:
        snprintf(why, sizeof why, "the context of %d tokens is full (-c)", r->params.seq_len);
        break;
    }
    fprintf(stderr,
            "prompt: %d tokens in %.3f s, %.1f tokens/s\n"
            "generated: %d tokens in %.3f s, %.1f tokens/s\nended by: %s\n",
            n_prompt, r->prompt_seconds, n_prompt / r->prompt_seconds, n_generated,
            r->generate_seconds, rate, why);
    routes_describe(&r->session, experts, sizeof experts);
    if (*experts)
        fprintf(stderr, "%s\n", experts);
}

/* Whether what has failed is a session: numbers of its text that are not finite are no run's. */
static bool is_bad_session(const Run *r, const Err *e)
{
    return r->o->load_session && e->code == EXIT_IO && atomic_load(&r->session.bad_row) != INT_MAX;
}

static int run_and_print(Run *r, Err *e)
{
    const Options *o = r->o;
    Work w = {.r = r, .e = e};
    int rc = o->echo ? print_prompt(r, e) : 0;
    r->open_line = r->last != '\n';
    if (!rc) {
        threads_team(r->session.threads, work, &w);
        rc = w.rc;
        if (rc && is_bad_session(r, e)) {
            e->code = EXIT_MODEL;
            err_prefix(e, r->o->load_session);
        }
    }
    if (!rc && o->json)
        rc = print_result(r, e);
    r->open_line = r->last != '\n';
    if (r->open_line && isatty(STDOUT_FILENO))
        r->open_line = putchar('\n') == EOF;
    if (!rc && fflush(stdout))
        rc = modes_print_failed(e);
    r->mixed_line = r->open_line && shares_screen();
    if (!rc && r->stream.end == END_TOKEN && r->stream.text.n == r->stream.n_prompt
        && isatty(STDOUT_FILENO) && isatty(STDERR_FILENO)
        && gguf_key(&r->engine.model.file, "tokenizer.chat_template")) {
        begin_line(r);
        fprintf(stderr, "%s: the model ended at once; it is made for conversations: add --chat\n",
                program_name());
    }
    if (o->verbose && !rc) {
        begin_line(r);
        describe_run(r);
    }
    return rc;
}

/* Whether statistics go to standard output, after the text. */
static bool wants_table(const MapOptions *m)
{
    for (int i = 0; i < m->n_stats; i++)
        if (!strcmp(m->stats[i], "-"))
            return true;
    return false;
}

/* Write the maps of the generated text. A signal that ended the generation does not end this, the
 * next one does, and leaves no file. */
static int write_maps(Run *r, Err *e)
{
    SessionParams p = r->session.params;
    const TokenList *text = &r->stream.text;
    int n = (int)text->n < p.seq_len ? (int)text->n : p.seq_len, rc = 0;
    int first_signal = stop_signal;
    if (stop_signal) {
        stop_signal = 0;
        n = r->n_run < r->n_prompt ? 0 : n; // not even the prompt is complete
    }
    if (n && maps_live(r->maps)) // the last token was not run: nothing followed it
        rc = run_text(r, n, false, e);
    session_free(&r->session);
    p.max_batch = r->o->batch;
    if (!rc && n && maps_wants_replay(r->maps))
        rc = maps_replay(r->maps, p, text->ids, n, e);
    bool begins = !rc && n && r->open_line && wants_table(&r->o->maps);
    if (begins && (putchar('\n') == EOF || fflush(stdout)))
        rc = modes_print_failed(e);
    if (!rc && n)
        rc = maps_finish(r->maps, text->ids, n, e);
    if (!stop_signal)
        stop_signal = first_signal;
    return rc ? -1 : 0;
}

int complete_mode(const Options *o, Err *e)
{
    if (o->samples > 1 && (o->load_session || o->save_session))
        return err_set(e, EXIT_USAGE, "--samples: a session is of one text");
    if (o->samples > 1)
        return batch_mode(o, e);
    Run r = {.o = o, .last = '\n'};
    int rc = prepare(&r, e) || run_and_print(&r, e) || (o->logits && npy_finish(&r.logits, e));
    if (!rc && o->save_session)
        rc = session_file_write(&r.saved, &r.session, &r.engine.model, &r.stream.text, e)
          || out_commit(&r.saved, e);
    bool ran = !rc;
    rc = rc || (r.maps && write_maps(&r, e));
    if (ran && o->logits && (!rc || stop_signal) && npy_commit(&r.logits, e))
        rc = -1; // where a signal ended the maps the logits are complete all the same
    if (rc || atomic_load(&r.engine.kv_cut))
        begin_line(&r); // for the error or the warning
    npy_discard(&r.logits);
    out_discard(&r.saved);
    maps_close(r.maps);
    prompt_free(&r.prompt);
    stream_free(&r.stream);
    buf_free(&r.shown);
    sampler_free(&r.sampler);
    session_free(&r.session);
    session_file_close(&r.loaded);
    return modes_close(&r.engine, rc);
}
