/* run.c - the program: reads the command line, runs one mode, turns an Err into one line and an exit status.
 *
 * Results go to standard output and nothing else does. Only this file exits.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "modes/bench.h"
#include "base/cpu.h"
#include "base/json.h"
#include "base/npy.h"
#include "maps/job.h"
#include "modes/options.h"
#include "modes/quantize.h"
#include "modes/score.h"

/* The signal that asked us to stop, 0 for none. */
static volatile sig_atomic_t stop_signal;

/* Whether main() is at its end; before that only a library calls exit(). */
static volatile sig_atomic_t main_ended;

/* End as the signal does by default, but leave nothing half-written. */
static void on_end(int number)
{
    sigset_t own;
    file_abandon();
    signal(number, SIG_DFL);
    raise(number);
    sigemptyset(&own);
    sigaddset(&own, number);
    sigprocmask(SIG_UNBLOCK, &own, NULL);
}

static void on_stop(int number)
{
    if (stop_signal == number) // asked for the second time
        on_end(number);
    stop_signal = number;
}

/* A page of a mapped file could not be read. */
static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)context;
    file_abandon();
    const char *line = file_lost(info->si_addr);
    if (!line)
        on_end(number);
    ssize_t written = write(STDERR_FILENO, line, strlen(line));
    (void)written;
    _exit(EXIT_IO);
}

/* OpenMP's library ends the program by exit() where memory or threads lack; what it has to say it
 * has said. */
static void on_exit_of_library(void)
{
    if (main_ended)
        return;
    file_abandon();
    _exit(EXIT_MEMORY);
}

static void catch_signals(void)
{
    static const int stops[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    static const int ends[] = {SIGQUIT, SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU, SIGVTALRM, SIGPROF,
                               SIGABRT, SIGSEGV, SIGILL, SIGFPE};
    enum { N_STOPS = sizeof stops / sizeof *stops, N_ENDS = sizeof ends / sizeof *ends };
    struct sigaction a = {.sa_flags = 0}, old;
    sigemptyset(&a.sa_mask);
    for (int i = 0; i < N_STOPS + N_ENDS; i++) {
        int number = i < N_STOPS ? stops[i] : ends[i - N_STOPS];
        a.sa_handler = i < N_STOPS ? on_stop : on_end;
        if (!sigaction(number, NULL, &old) && old.sa_handler == SIG_DFL)
            sigaction(number, &a, NULL); // nohup and `run &` in a script ignore some
    }
    struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    sigemptyset(&bus.sa_mask);
    sigaction(SIGBUS, &bus, NULL);
    signal(SIGXFSZ, SIG_IGN); // a write beyond the limit of file sizes then fails like any other
    atexit(on_exit_of_library);
}

/* A file opened while descriptor 1 is closed would receive our standard output. Closed ones are held by a file that
 * can do neither what they are for nor harm. */
static void hold_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", fd ? O_RDONLY : O_WRONLY);
}

/* ---- prompt ------------------------------------------------------------------------------------------------ */

/* The parts of -i and -f as one text. */
typedef struct {
    Buf text;
    TextPart *parts; // (n)
    size_t n;
} Prompt;

static void prompt_free(Prompt *p)
{
    buf_free(&p->text);
    free(p->parts);
    *p = (Prompt){0};
}

/* Take one newline off the end of what begins at `from`: `echo` and editors put it there. */
static void cut_newline(Buf *text, size_t from)
{
    if (text->len == from || text->ptr[text->len - 1] != '\n')
        return;
    text->len--;
    if (text->len > from && text->ptr[text->len - 1] == '\r')
        text->len--;
}

static int no_prompt(const Options *o, Err *e)
{
    char model[200];
    str_escape((Str){o->model, strlen(o->model)}, model, sizeof model);
    return err_set(e, EXIT_USAGE, "no prompt given; usage: ./run %s -i \"Once upon a time\"",
                   model);
}

static int read_prompt(const Options *o, Prompt *p, Err *e)
{
    static const TextArg piped = {.arg = "-", .is_file = true};
    const TextArg *list = o->n_parts ? o->parts : &piped;
    if (!o->n_parts && isatty(STDIN_FILENO))
        return no_prompt(o, e);
    p->n = o->n_parts ? (size_t)o->n_parts : 1;
    p->parts = mem_alloc(p->n, sizeof *p->parts);
    for (size_t i = 0; i < p->n && p->parts; i++) {
        size_t from = p->text.len;
        if (!list[i].is_file)
            buf_add(&p->text, list[i].text.ptr, list[i].text.len);
        else if (file_read(list[i].arg, &stop_signal, &p->text, e))
            return -1;
        if (list[i].is_file && i + 1 == p->n && !o->keep_newline)
            cut_newline(&p->text, from);
        p->parts[i] = (TextPart){p->text.len, list[i].is_file ? o->special_files : o->special};
    }
    bool failed = p->text.failed || !p->parts;
    return failed ? err_set(e, EXIT_MEMORY, "out of memory for the prompt") : 0;
}

/* Read the prompt and make its ids. */
static int encode_prompt(const Options *o, const Tokenizer *t, Prompt *p, TokenList *ids, Err *e)
{
    if (read_prompt(o, p, e))
        return -1;
    const char *text = p->text.ptr ? p->text.ptr : "";
    unsigned flags = o->no_bos ? 0 : ENCODE_BOS;
    int rc = tokenizer_encode_parts(t, text, p->text.len, p->parts, p->n, flags, ids, e);
    if (rc && e->code == EXIT_MODEL)
        err_prefix(e, o->model); // its tables are built, and so checked, on first use
    return rc;
}

/* ---- output ------------------------------------------------------------------------------------------------ */

static int stdout_failed(Err *e)
{
    err_set(e, EXIT_IO, "standard output: cannot write: %s", strerror(errno));
    return -1;
}

/* What a byte of the generated text is: printed, or of a control token's name, which is not. Stop
 * texts may hold such names, as a whole or not at all. */
enum { BYTE_SHOWN, BYTE_HIDDEN, BYTE_HIDDEN_ON }; // HIDDEN begins a name, HIDDEN_ON goes on with it

/* Generated text on its way out: bytes that may begin a stop text wait for what follows. */
typedef struct {
    const Options *o;
    Decoder decoder;
    Buf text;  // decoded, not printed yet, with the names of control tokens
    Buf marks; // BYTE_ of each of them
    int stop;  // number of the stop text that was met, with print_ready() = 1
    char last; // printed byte
} Printer;

/* Mark what was appended to the text. */
static void add_marks(Printer *p, char first, char others)
{
    for (char mark = first; p->marks.len < p->text.len && !p->marks.failed; mark = others)
        buf_add(&p->marks, &mark, 1);
}

/* Append a generated token. */
static void printer_feed(Printer *p, int id)
{
    const Tokenizer *t = p->decoder.t;
    TokenType type = tokenizer_type(t, id);
    if ((type == TOKEN_CONTROL || type == TOKEN_UNKNOWN) && !p->o->special) {
        Str name = tokenizer_piece(t, id);
        buf_add(&p->text, name.ptr, name.len);
        add_marks(p, BYTE_HIDDEN, BYTE_HIDDEN_ON);
    } else {
        decoder_feed(&p->decoder, id, &p->text);
        add_marks(p, BYTE_SHOWN, BYTE_SHOWN);
    }
}

/* The text is over: an incomplete character is printed as it is. */
static void printer_end(Printer *p)
{
    decoder_flush(&p->decoder, &p->text);
    add_marks(p, BYTE_SHOWN, BYTE_SHOWN);
}

/* Whether a stop text may begin or end before byte `at`. */
static bool is_boundary(const Printer *p, size_t at)
{
    return at == p->text.len || p->marks.ptr[at] != BYTE_HIDDEN_ON;
}

/* The first stop text: where it begins, or text.len if there is none. */
static size_t find_stop(Printer *p)
{
    size_t first = p->text.len;
    for (int i = 0; i < p->o->n_stops; i++) {
        const Buf *stop = &p->o->stops[i].text;
        for (size_t at = 0; at + stop->len <= p->text.len && at < first; at++)
            if (!memcmp(p->text.ptr + at, stop->ptr, stop->len) && is_boundary(p, at)
                && is_boundary(p, at + stop->len)) {
                first = at;
                p->stop = i;
            }
    }
    return first;
}

/* How many bytes at the end could be the beginning of a stop text. */
static size_t held_back(const Printer *p)
{
    size_t most = 0, len = p->text.len;
    for (int i = 0; i < p->o->n_stops; i++) {
        const Buf *stop = &p->o->stops[i].text;
        for (size_t n = stop->len - 1; n > most; n--)
            if (n <= len && !memcmp(p->text.ptr + len - n, stop->ptr, n) && is_boundary(p, len - n))
                most = n;
    }
    return most;
}

static int put(Printer *p, const char *bytes, size_t len, Err *e)
{
    if (!len)
        return 0;
    p->last = bytes[len - 1];
    if (fwrite(bytes, 1, len, stdout) != len || fflush(stdout))
        return stdout_failed(e);
    return 0;
}

/* Print what is ready; `at_end` prints all. 1 when a stop text was met, -1 on failure. */
static int print_ready(Printer *p, bool at_end, Err *e)
{
    Buf *text = &p->text, *marks = &p->marks;
    if (text->failed || marks->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    if (!text->len)
        return 0;
    size_t stop = find_stop(p), n = stop, shown = 0;
    bool met = stop < text->len;
    if (!met && !at_end)
        n -= held_back(p);
    for (size_t i = 0; i < n; i++)
        if (marks->ptr[i] == BYTE_SHOWN)
            text->ptr[shown++] = text->ptr[i];
    if (put(p, text->ptr, shown, e))
        return -1;
    memmove(text->ptr, text->ptr + n, text->len - n);
    memmove(marks->ptr, marks->ptr + n, marks->len - n);
    text->len -= n;
    marks->len -= n;
    return met;
}

/* ---- generate ---------------------------------------------------------------------------------------------- */

/* Why a text ended. */
typedef enum { END_SIGNAL, END_TOKEN, END_STOP, END_LIMIT, END_CONTEXT } End;

typedef struct {
    const Options *o;
    Model model;
    Session session;
    Sampler sampler;
    NpyFile logits;
    MapJob *maps; // NULL: none are wanted
    Prompt prompt;
    TokenList text; // the prompt and what is generated
    int n_prompt, n_generated;
    int n_run;      // tokens of the text that were run, whose rows were written
    int n_logits;   // rows of logits of the last pass
    atomic_bool kv_cut;
    End end;
    int end_token;   // with END_TOKEN
    bool open_line;  // the text on standard output did not end in a newline
    bool mixed_line; // nor does what standard error shows with it
    double prompt_seconds, generate_seconds;
} Run;

static int choose_threads(const Options *o)
{
    const char *env = getenv("OMP_NUM_THREADS");
    int n = o->n_threads ? o->n_threads : env ? atoi(env) : 0;
#ifndef _OPENMP
    n = 1;
#endif
    return n > 0 && n <= 1024 ? n : cpu_threads();
}

/* The context: -c, else the model's, at most 4096, grown to what the prompt and -n need. */
static int choose_seq_len(const Options *o, const Config *c, size_t n_prompt, int *seq_len, Err *e)
{
    size_t want = n_prompt + (size_t)(o->n_predict > 0 ? o->n_predict : 0), model = (size_t)c->seq_len;
    size_t n = model < USUAL_CONTEXT ? model : USUAL_CONTEXT;
    if (want > n)
        n = want < model ? want : model;
    if (o->seq_len)
        n = (size_t)o->seq_len;
    if (n_prompt > n)
        return err_set(e, EXIT_USAGE, "prompt: got %zu tokens, want at most the context's %zu (%s)", n_prompt, n,
                       o->seq_len ? "-c" : "the model's; -c N allows more");
    *seq_len = (int)n;
    return 0;
}

/* The one line on standard error that a run which succeeds may print. */
static void warn_cut(int rc, atomic_bool *kv_cut)
{
    if (!rc && atomic_load(kv_cut))
        fprintf(stderr, "run: keys or values beyond 65504 were cut off in the f16 cache; "
                "--kv f32 keeps them whole\n");
}

/* A context beyond what the model was made for works, but is worth a word to people. */
static void note_context(const Options *o, const Config *c, int seq_len)
{
    if (seq_len > c->seq_len && (o->verbose || isatty(STDERR_FILENO)))
        fprintf(stderr, "run: -c %d is more than the %d tokens that the model was made for\n",
                seq_len, c->seq_len);
}

/* The model, and the parameters of sessions but for their sizes; *kv_cut is for warn_cut(). -v says what it is. */
static int open_model(const Options *o, Model *m, SessionParams *p, atomic_bool *kv_cut, Err *e)
{
    double begin = clock_seconds(), bytes = 0;
    *p = (SessionParams){.max_batch = o->batch, .kv_type = o->kv_type, .exact = o->exact,
                         .n_threads = choose_threads(o), .stop = &stop_signal,
                         .kernels = kernels_select(getenv("RUN_CPU"), e), .kv_cut = kv_cut};
    if (!p->kernels || model_open(m, o->model, e))
        return -1;
    const Config *c = &m->config;
    for (int i = 0; i < m->file.n_maps; i++)
        bytes += (double)m->file.maps[i].size;
    if (o->verbose)
        fprintf(stderr, "model: %s, %.1f M parameters, %.1f MB, %d layers, dim %d, "
                "%d heads (%d key/value), vocabulary %d, loaded in %.0f ms\n",
                c->arch, (double)m->n_params / 1e6, bytes / 1e6, c->n_layers, c->dim,
                c->layers[0].n_heads, c->layers[0].n_kv_heads, c->vocab_size,
                1e3 * (clock_seconds() - begin));
    return 0;
}

static void describe(const Run *r, const SessionParams *p)
{
    const Config *c = &r->model.config;
    double kv = (double)r->session.cache.block_bytes / KV_BLOCK;
    fprintf(stderr, "engine: kernels %s, %d threads, context %d of %d, KV cache %s %.1f KB per token, seed %llu\n",
            p->kernels->name, r->session.threads.n_threads, p->seq_len, c->seq_len,
            kv_names[p->kv_type], kv / 1e3,
            (unsigned long long)r->o->sampler.seed);
}

/* Run the text's first n tokens through the model, from where it stands; logits of the last row only, or of all where
 * they are written to a file. Where the text has become longer than longrope's original context all of it runs again, but
 * only rows that are new go to files. */
static int run_text(Run *r, int n, bool wants_logits, Err *e)
{
    bool writes = wants_logits && r->o->logits, live = r->maps && maps_live(r->maps);
    Session *s = &r->session;
    int step = s->params.max_batch, first = cache_expect(&s->cache, 0, n);
    bool progress = !r->n_run && n - first > step && isatty(STDERR_FILENO) && !r->open_line; // it would wipe text out
    Want want = writes ? WANT_ALL : wants_logits ? WANT_LAST : WANT_NONE;
    for (int i = first, rows; i < n && !stop_signal; i += rows) {
        rows = n - i < step ? n - i : step;
        if (progress)
            fprintf(stderr, "\rprompt: %d of %d tokens", i, n);
        r->n_logits = forward(s, &(Batch){.n = rows, .tokens = r->text.ids + i, .want = want}, e);
        if (r->n_logits < 0)
            return stop_signal ? 0 : -1;
        int again = r->n_run - i < 0 ? 0 : r->n_run - i < rows ? r->n_run - i : rows, fresh = rows - again;
        size_t at = (size_t)again * (size_t)r->model.config.vocab_size;
        if (writes && fresh && npy_rows(&r->logits, s->logits + at, (size_t)fresh, e))
            return -1;
        if (live && fresh && maps_live_rows(r->maps, r->text.ids + i + again, fresh, e))
            return -1;
        r->n_run += fresh;
    }
    if (progress)
        fprintf(stderr, "\r\033[K");
    return 0;
}

static int generate(Run *r, Printer *p, Err *e)
{
    const Options *o = r->o;
    const Tokenizer *t = r->model.tokenizer;
    size_t vocab = (size_t)r->model.config.vocab_size;
    int met = 0;
    r->end = o->n_predict ? END_SIGNAL : END_LIMIT;
    while (!stop_signal && o->n_predict) {
        int id = sampler_pick(&r->sampler, r->session.logits + (size_t)(r->n_logits - 1) * vocab);
        if (id < 0)
            return err_set(e, EXIT_IO, "sampling: no token has a finite logit (a damaged model, or "
                           "--logit-bias left none)");
        if (!o->ignore_eos && tokenizer_is_end(t, id)) {
            r->end = END_TOKEN;
            r->end_token = id;
            break;
        }
        sampler_accept(&r->sampler, id);
        r->n_generated++;
        if (tokens_add(&r->text, id, e))
            return -1;
        printer_feed(p, id);
        met = print_ready(p, false, e);
        bool enough = r->n_generated == o->n_predict;
        if (met || enough || r->session.cache.seqs[0].n_pos == r->session.params.seq_len) {
            r->end = met ? END_STOP : enough ? END_LIMIT : END_CONTEXT;
            break;
        }
        if (run_text(r, (int)r->text.n, true, e))
            return -1;
    }
    if (!met) {
        printer_end(p);
        met = print_ready(p, true, e);
        r->end = met > 0 ? END_STOP : r->end;
    }
    return met < 0 ? -1 : 0;
}

static bool is_model_file(const Gguf *g, const char *path)
{
    struct stat a, b;
    for (int i = 0; i < g->n_maps; i++)
        if (!stat(path, &a) && !stat(g->maps[i].path, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
            return true;
    return false;
}

static int check_biases(const Run *r, Err *e)
{
    const SamplerParams *p = &r->o->sampler;
    for (int i = 0; i < p->n_biases; i++)
        if (p->biases[i].id >= r->model.config.vocab_size)
            return err_set(e, EXIT_USAGE, "--logit-bias: got token %d, want 0 to %d", p->biases[i].id, r->model.config.vocab_size - 1);
    return 0;
}

/* A file that a run writes. */
typedef struct {
    const char *flag, *path; // path NULL where none is wanted
} Output;

/* Number i of them, flag NULL past the last. */
static Output output_at(const Options *o, int i)
{
    const MapOptions *m = &o->maps;
    if (i == 0)
        return (Output){"--logits", o->logits};
    if (--i < m->n_stats)
        return (Output){"--attn-stats", m->stats[i]};
    i -= m->n_stats;
    return i < m->n_files ? (Output){"--dump-attn", m->files[i]} : (Output){NULL, NULL};
}

/* Whether two results would end in one place: one file, or one flag's results in one stream. */
static bool same_output(Output a, Output b)
{
    return a.path && b.path
        && (out_same(a.path, b.path) || (!strcmp(a.flag, b.flag) && !strcmp(a.path, b.path)));
}

static int check_outputs(const Run *r, Err *e)
{
    for (int i = 0; output_at(r->o, i).flag; i++) {
        Output a = output_at(r->o, i);
        if (a.path && is_model_file(&r->model.file, a.path))
            return err_set(e, EXIT_USAGE, "%s: got the model's own file, want another", a.flag);
        for (int k = 0; k < i; k++)
            if (same_output(output_at(r->o, k), a))
                return err_set(e, EXIT_USAGE, "%s and %s: got one file for two results, want two",
                               output_at(r->o, k).flag, a.flag);
    }
    return 0;
}

/* The session's sizes, and the files that are written from it. */
static int prepare_outputs(Run *r, SessionParams *p, Err *e)
{
    const Options *o = r->o;
    if (check_outputs(r, e))
        return -1;
    if (o->logits)
        p->max_batch = p->max_logits = p->max_batch < 32 ? p->max_batch : 32;
    if (o->maps.n_files || o->maps.n_stats) {
        int n = r->n_prompt + (o->n_predict > 0 && o->ignore_eos ? o->n_predict : 0); // tokens that there will be at least
        r->maps = maps_open(&o->maps, &r->model, o->model, r->n_prompt, n < p->seq_len ? n : p->seq_len, e);
        if (!r->maps)
            return -1;
        if (maps_live(r->maps))
            maps_live_params(r->maps, p);
    }
    return o->logits ? npy_open(&r->logits, o->logits, (size_t)r->model.config.vocab_size, e) : 0;
}

/* Everything between the parsed options and the first token. */
static int prepare(Run *r, Err *e)
{
    const Options *o = r->o;
    SessionParams p;
    if (open_model(o, &r->model, &p, &r->kv_cut, e))
        return -1;
    p.n_seqs = p.max_logits = 1;
    const Tokenizer *t = r->model.tokenizer;
    if (check_biases(r, e) || encode_prompt(o, t, &r->prompt, &r->text, e))
        return -1;
    if (!r->text.n && !o->no_bos && tokenizer_bos(t) >= 0 && tokens_add(&r->text, tokenizer_bos(t), e))
        return -1;
    if (!o->echo)
        prompt_free(&r->prompt);
    r->n_prompt = (int)r->text.n;
    if (!r->n_prompt)
        return err_set(e, EXIT_USAGE, "the prompt is empty, want some text (%s)",
                       o->no_bos ? "--no-bos leaves nothing to start from" : "this model has no begin-of-text token");
    if (choose_seq_len(o, &r->model.config, r->text.n, &p.seq_len, e))
        return -1;
    int most = r->model.config.ropes[0].scaling == ROPE_LONGROPE ? p.seq_len : r->n_prompt; // run_text() may run all again
    p.max_batch = p.max_batch < most ? p.max_batch : most;
    note_context(o, &r->model.config, p.seq_len);
    if (prepare_outputs(r, &p, e) || session_init(&r->session, &r->model, &p, e)
        || (r->maps && maps_live(r->maps) && maps_live_watch(r->maps, &r->session, e))
        || sampler_init(&r->sampler, &o->sampler, r->model.config.vocab_size, p.kernels, e))
        return -1;
    if (o->verbose)
        describe(r, &p);
    return 0;
}

/* Prompt and generation, as one body for the team of threads: they stand by from the first token to the last. */
typedef struct {
    Run *r;
    Printer *p;
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
        w->rc = generate(r, w->p, w->e);
    r->generate_seconds = clock_seconds() - begin - r->prompt_seconds;
}

/* --echo: the prompt as it was given, so without a BOS that we put in front. A character that it
 * leaves incomplete waits for the generated text. */
static int print_prompt(const Run *r, Printer *p, Err *e)
{
    const Buf *text = &r->prompt.text;
    size_t n = utf8_complete(text->ptr, text->len);
    p->decoder.n_held = text->len - n;
    memcpy(p->decoder.held, text->ptr ? text->ptr + n : "", p->decoder.n_held);
    return put(p, text->ptr, n, e);
}

/* Whether standard error may stand behind the text: both are one file, or it is a terminal that may
 * show standard output through a pipe. */
static bool shares_screen(void)
{
    struct stat a, b;
    bool known = !fstat(STDOUT_FILENO, &a) && !fstat(STDERR_FILENO, &b);
    return isatty(STDERR_FILENO) || (known && a.st_dev == b.st_dev && a.st_ino == b.st_ino);
}

/* Begin a new line on standard error if the text's last one stands open there. */
static void begin_line(Run *r)
{
    if (r->mixed_line)
        fputc('\n', stderr);
    r->mixed_line = false;
}

/* -v: the speeds, and why the text ended. */
static void describe_run(const Run *r, const Printer *p)
{
    char why[200], name[100];
    double rate = r->n_generated > 1 ? (r->n_generated - 1) / r->generate_seconds : 0;
    int context = r->session.params.seq_len, id = r->end_token;
    const Buf *stop = r->end == END_STOP ? &r->o->stops[p->stop].text : NULL;
    switch (r->end) {
    case END_SIGNAL:
        snprintf(why, sizeof why, "signal %d, %s", (int)stop_signal, strsignal(stop_signal));
        break;
    case END_TOKEN:
        str_escape(tokenizer_piece(r->model.tokenizer, id), name, sizeof name);
        snprintf(why, sizeof why, "end token %d, %s", id, name);
        break;
    case END_STOP:
        str_escape((Str){stop->ptr, stop->len}, name, sizeof name);
        snprintf(why, sizeof why, "--stop \"%s\"", name);
        break;
    case END_LIMIT: snprintf(why, sizeof why, "-n %d", r->o->n_predict); break;
    case END_CONTEXT:
        snprintf(why, sizeof why, "the context of %d tokens is full (-c)", context);
        break;
    }
    fprintf(stderr, "prompt: %d tokens in %.3f s, %.1f tokens/s\n"
            "generated: %d tokens in %.3f s, %.1f tokens/s\nended by: %s\n",
            r->n_prompt, r->prompt_seconds, r->n_prompt / r->prompt_seconds, r->n_generated,
            r->generate_seconds, rate, why);
}

static int run_and_print(Run *r, Err *e)
{
    const Options *o = r->o;
    Printer p = {.o = o, .last = '\n'};
    Work w = {r, &p, e, 0};
    decoder_init(&p.decoder, r->model.tokenizer, o->echo && !r->prompt.text.len, o->special);
    int rc = o->echo && r->prompt.text.len ? print_prompt(r, &p, e) : 0;
    r->open_line = p.last != '\n';
    for (int i = 0; i < r->n_prompt; i++)
        sampler_accept(&r->sampler, r->text.ids[i]);
    if (!rc) {
        threads_team(&r->session.threads, work, &w);
        rc = w.rc;
    }
    r->open_line = p.last != '\n';
    if (r->open_line && isatty(STDOUT_FILENO))
        r->open_line = putchar('\n') == EOF;
    if (!rc && fflush(stdout))
        rc = stdout_failed(e);
    r->mixed_line = r->open_line && shares_screen();
    if (o->verbose && !rc) {
        begin_line(r);
        describe_run(r, &p);
    }
    buf_free(&p.text);
    buf_free(&p.marks);
    return rc;
}

/* Whether statistics go to standard output, behind the text. */
static bool wants_table(const MapOptions *m)
{
    for (int i = 0; i < m->n_stats; i++)
        if (!strcmp(m->stats[i], "-"))
            return true;
    return false;
}

/* What was generated is printed; now the maps of it. A signal that ended the generation does not end this, the next one
 * does, and leaves no file. */
static int write_maps(Run *r, Err *e)
{
    SessionParams p = r->session.params;
    int n = (int)r->text.n < p.seq_len ? (int)r->text.n : p.seq_len, rc = 0, first_signal = stop_signal;
    if (stop_signal) {
        stop_signal = 0;
        n = r->n_run < r->n_prompt ? 0 : n; // not even the prompt is complete
    }
    if (n && maps_live(r->maps)) // the last token was not run: nothing followed it
        rc = run_text(r, n, false, e);
    session_free(&r->session);
    p.max_batch = r->o->batch;
    if (!rc && n && maps_wants_replay(r->maps))
        rc = maps_replay(r->maps, p, r->text.ids, n, &stop_signal, e);
    bool begins = !rc && n && r->open_line && wants_table(&r->o->maps);
    if (begins && (putchar('\n') == EOF || fflush(stdout)))
        rc = stdout_failed(e);
    if (!rc && n)
        rc = maps_finish(r->maps, e);
    if (!stop_signal)
        stop_signal = first_signal;
    return rc ? -1 : 0;
}

static int generate_mode(const Options *o, Err *e)
{
    Run r = {.o = o};
    int rc = prepare(&r, e) || run_and_print(&r, e) || (o->logits && npy_finish(&r.logits, e));
    bool ran = !rc;
    rc = rc || (r.maps && write_maps(&r, e));
    if (ran && o->logits && (!rc || stop_signal) && npy_commit(&r.logits, e))
        rc = -1; // where a signal ended the maps the logits are complete all the same
    if (rc || atomic_load(&r.kv_cut))
        begin_line(&r); // for the error or the warning
    warn_cut(rc, &r.kv_cut);
    npy_discard(&r.logits);
    maps_close(r.maps);
    prompt_free(&r.prompt);
    tokens_free(&r.text);
    sampler_free(&r.sampler);
    session_free(&r.session);
    model_close(&r.model);
    return rc ? -1 : 0;
}

/* ---- perplexity -------------------------------------------------------------------------------------------- */

static int print_score(const Options *o, const Score *s, Err *e)
{
    double mean = score_mean(s), error = score_error(s), ppl = exp(mean), bits = score_bits_per_byte(s);
    static const char text[] = "perplexity %.4f +- %.4f, %.5f nats a token, %.4f bits a byte (%zu tokens in %d windows of %d)\n";
    static const char json[] = "{\"perplexity\": %.9g, \"perplexity_error\": %.9g, \"nll\": %.9g, \"nll_error\": %.9g, "
                               "\"bits_per_byte\": %.9g, \"tokens\": %zu, \"bytes\": %zu, \"windows\": %d, \"window\": %d}\n";
    if (o->json)
        printf(json, ppl, ppl * error, mean, error, bits, s->n_tokens, s->n_bytes, s->n_windows, s->seq_len);
    else
        printf(text, ppl, ppl * error, mean, bits, s->n_tokens, s->n_windows, s->seq_len);
    return fflush(stdout) || ferror(stdout) ? stdout_failed(e) : 0;
}

static int perplexity_mode(const Options *o, Err *e)
{
    Model m;
    Buf text = {0};
    TokenList ids = {0};
    Score score = {0};
    atomic_bool kv_cut = false;
    SessionParams p;
    if (open_model(o, &m, &p, &kv_cut, e))
        return -1;
    const char *name = strcmp(o->perplexity, "-") ? o->perplexity : "standard input";
    unsigned flags = (o->no_bos ? 0 : ENCODE_BOS) | (o->special_files ? ENCODE_SPECIAL : 0);
    int bos = !o->no_bos && tokenizer_adds_bos(m.tokenizer) ? tokenizer_bos(m.tokenizer) : -1;
    int usual = m.config.seq_len < SCORE_WINDOW ? m.config.seq_len : SCORE_WINDOW;
    int seq_len = o->seq_len ? o->seq_len : usual;
    int rc = file_read(o->perplexity, &stop_signal, &text, e);
    note_context(o, &m.config, seq_len);
    const char *bytes = text.ptr ? text.ptr : "";
    if (!rc && (rc = tokenizer_encode(m.tokenizer, bytes, text.len, flags, &ids, e)))
        err_prefix(e, e->code == EXIT_MODEL ? o->model : name);
    rc = rc ? rc : score_perplexity(&m, p, name, ids.ids, ids.n, bos, seq_len, &stop_signal,
                                    &score, e);
    if (!rc && score.n_tokens && !stop_signal)
        rc = print_score(o, &score, e);
    warn_cut(rc, &kv_cut);
    buf_free(&text);
    tokens_free(&ids);
    model_close(&m);
    return rc ? -1 : 0;
}

/* ---- bench -------------------------------------------------------------------------------------------------- */

static void print_timing(const Options *o, const char *name, int n, const Timing *t)
{
    double median = n / timing_median(t), low = n / t->seconds[t->n - 1], high = n / t->seconds[0];
    if (o->json)
        printf(", \"%s_tps\": %.6g, \"%s_tps_min\": %.6g, \"%s_tps_max\": %.6g", name, median, name, low, name, high);
    else
        printf("%-7s %5d tokens: %8.1f tokens/s (%.1f to %.1f in %d runs)\n", name, n, median, low, high, t->n);
}

static int bench_mode(const Options *o, Err *e)
{
    Model m;
    atomic_bool kv_cut = false;
    Bench b = {.n_prompt = o->bench_prompt, .n_generate = o->bench_generate, .depth = o->bench_depth,
               .n_runs = o->bench_runs};
    SessionParams p;
    if (open_model(o, &m, &p, &kv_cut, e))
        return -1;
    int rc = bench_run(&m, p, &b, &stop_signal, e);
    warn_cut(rc, &kv_cut);
    const char *kv = kv_names[o->kv_type];
    if (!rc && (b.prefill.n || b.decode.n)) {
        if (o->json)
            printf("{\"arch\": \"%s\", \"parameters\": %zu, \"kernels\": \"%s\", \"threads\": %d, \"kv\": \"%s\", \"pp\": %d, "
                   "\"tg\": %d, \"depth\": %d", m.config.arch, m.n_params, p.kernels->name,
                   b.n_threads, kv, b.n_prompt, b.n_generate, b.depth);
        else
            printf("%s, %.1f M parameters, kernels %s, %d threads, KV cache %s, depth %d\n", m.config.arch, (double)m.n_params / 1e6,
                   p.kernels->name, b.n_threads, kv, b.depth);
        if (b.prefill.n)
            print_timing(o, "prefill", b.n_prompt, &b.prefill);
        if (b.decode.n)
            print_timing(o, "decode", b.n_generate, &b.decode);
        fputs(o->json ? "}\n" : "", stdout);
        rc = fflush(stdout) || ferror(stdout) ? stdout_failed(e) : 0;
    }
    model_close(&m);
    return rc ? -1 : 0;
}

/* ---- quantize ----------------------------------------------------------------------------------------------- */

static int quantize_mode(const Options *o, Err *e)
{
    Gguf file;
    QuantizeParams p = {.type = o->quantize, .overrides = o->quantize_types, .n_overrides = o->n_quantize_types,
                        .n_threads = choose_threads(o), .kernels = kernels_select(getenv("RUN_CPU"), e), .log = o->verbose ? stderr : NULL};
    if (!strcmp(o->output, "-") && isatty(STDOUT_FILENO))
        return err_set(e, EXIT_USAGE, "-o: got a terminal, want a file or a pipe for the model");
    if (!p.kernels || gguf_open(&file, o->model, e))
        return -1;
    int rc = is_model_file(&file, o->output) ? err_set(e, EXIT_USAGE, "-o: got the model's own file, want another")
           : quantize_file(&file, o->output, &p, &stop_signal, e);
    if (rc && e->code == EXIT_MODEL)
        err_prefix(e, o->model);
    gguf_close(&file);
    return rc;
}

/* ---- tokenize ---------------------------------------------------------------------------------------------- */

enum { PRINTED_AT_ONCE = 65536 }; // bytes

/* Print the buffer and empty it, if it holds `size` bytes. */
static int print_buffer(Buf *out, size_t size, Err *e)
{
    if (out->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the tokens");
    if (out->len < size)
        return 0;
    if (out->len && fwrite(out->ptr, 1, out->len, stdout) != out->len)
        return stdout_failed(e);
    out->len = 0;
    return 0;
}

static void add_id(const Tokenizer *t, int id, Buf *out)
{
    (void)t;
    json_int(out, id);
}

static void add_piece(const Tokenizer *t, int id, Buf *out)
{
    json_string(out, tokenizer_piece(t, id));
}

static void add_text(const Tokenizer *t, int id, Buf *out)
{
    Buf text = {0};
    tokenizer_text(t, id, &text);
    json_string(out, (Str){text.ptr ? text.ptr : "", text.len});
    out->failed |= text.failed;
    buf_free(&text);
}

static void add_bytes(const Tokenizer *t, int id, Buf *out)
{
    Buf bytes = {0};
    tokenizer_bytes(t, id, false, &bytes);
    json_hex(out, (Str){bytes.ptr, bytes.len});
    out->failed |= bytes.failed;
    buf_free(&bytes);
}

/* The lists of --tokenize --json, a value a token. */
static const struct {
    const char *name;
    void (*add)(const Tokenizer *t, int id, Buf *out);
} token_lists[] = {
    {"ids", add_id}, {"pieces", add_piece}, {"text", add_text}, {"bytes", add_bytes}
};

static int tokens_json(const Tokenizer *t, const TokenList *ids, Buf *out, Err *e)
{
    int rc = 0;
    for (size_t k = 0; k < sizeof token_lists / sizeof *token_lists; k++) {
        buf_text(out, k ? "], \"" : "{\"");
        buf_text(out, token_lists[k].name);
        buf_text(out, "\": [");
        for (size_t i = 0; i < ids->n && !rc; i++) {
            buf_add(out, ", ", i ? 2 : 0);
            token_lists[k].add(t, ids->ids[i], out);
            rc = print_buffer(out, PRINTED_AT_ONCE, e);
        }
    }
    buf_text(out, "]}\n");
    return rc;
}

/* A line: the id, and the token's bytes as far as they are text. */
static void add_line(const Tokenizer *t, int id, Buf *out)
{
    char shown[400], line[440];
    Buf bytes = {0};
    tokenizer_bytes(t, id, true, &bytes);
    str_escape((Str){bytes.ptr ? bytes.ptr : "", bytes.len}, shown, sizeof shown);
    buf_add(out, line, (size_t)snprintf(line, sizeof line, "%6d  \"%s\"\n", id, shown));
    out->failed |= bytes.failed;
    buf_free(&bytes);
}

static int tokens_text(const Tokenizer *t, const TokenList *ids, Buf *out, Err *e)
{
    int rc = 0;
    for (size_t i = 0; i < ids->n && !rc; i++) {
        add_line(t, ids->ids[i], out);
        rc = print_buffer(out, PRINTED_AT_ONCE, e);
    }
    return rc;
}

static int print_tokens(const Options *o, const Tokenizer *t, const TokenList *ids, Err *e)
{
    Buf out = {0};
    int rc = (o->json ? tokens_json : tokens_text)(t, ids, &out, e);
    rc = rc ? rc : print_buffer(&out, 0, e);
    if (!rc && fflush(stdout))
        rc = stdout_failed(e);
    buf_free(&out);
    return rc;
}

static int tokenize_mode(const Options *o, Err *e)
{
    Gguf file;
    TokenList ids = {0};
    Prompt prompt = {0};
    if (gguf_open(&file, o->model, e))
        return -1;
    Tokenizer *t = tokenizer_open(&file, e);
    int rc = t ? encode_prompt(o, t, &prompt, &ids, e) || print_tokens(o, t, &ids, e)
           : err_prefix(e, o->model);
    prompt_free(&prompt);
    tokens_free(&ids);
    tokenizer_close(t);
    gguf_close(&file);
    return rc ? -1 : 0;
}

/* ---- main -------------------------------------------------------------------------------------------------- */

/* Each mode runs a model or prints a text of ours. */
static const struct {
    int (*run)(const Options *o, Err *e);
    void (*print)(FILE *f);
} modes[N_MODES] = {
    [MODE_GENERATE] = {.run = generate_mode},
    [MODE_TOKENIZE] = {.run = tokenize_mode},
    [MODE_PERPLEXITY] = {.run = perplexity_mode},
    [MODE_BENCH] = {.run = bench_mode},
    [MODE_QUANTIZE] = {.run = quantize_mode},
    [MODE_HELP] = {.print = options_help},
    [MODE_VERSION] = {.print = options_version},
    [MODE_MAN] = {.print = options_man},
    [MODE_COMPLETION] = {.print = options_completion},
};

static int run_mode(const Options *o, Err *e)
{
    if (modes[o->mode].run)
        return modes[o->mode].run(o, e);
    modes[o->mode].print(stdout);
    return fflush(stdout) || ferror(stdout) ? stdout_failed(e) : 0;
}

int main(int argc, char **argv)
{
    Options o;
    Err e = {0};
    hold_standard_files();
    catch_signals();
    int rc = options_parse(&o, argc, argv, &e);
    if (!rc) {
        if (!o.has_seed) {
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            o.sampler.seed = (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 40;
        }
        rc = run_mode(&o, &e);
    }
    options_free(&o);
    main_ended = true;
    if (stop_signal) { // end as the signal would have ended us, so that a shell loop stops
        fflush(stdout);
        on_end(stop_signal);
    }
    if (rc)
        fprintf(stderr, "run: %s\n", e.text);
    return rc ? e.code : EXIT_OK;
}
