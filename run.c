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

#include "bench.h"
#include "cpu.h"
#include "json.h"
#include "npy.h"
#include "options.h"
#include "quantize.h"
#include "score.h"

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

static int hex_digits(const char *p, int n, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < n; i++) {
        static const char digits[] = "0123456789abcdefABCDEF";
        const char *at = p[i] ? strchr(digits, p[i]) : NULL;
        if (!at)
            return -1;
        *out = *out << 4 | (uint32_t)(at - digits < 16 ? at - digits : at - digits - 6);
    }
    return 0;
}

/* Append `text` with \n \t \r \\ \" \' \xHH \uHHHH read; any other backslash stays. */
static void add_escaped(Buf *out, const char *text)
{
    static const char from[] = "ntr\\\"'", to[] = "\n\t\r\\\"'";
    for (; *text; text++) {
        const char *plain = text[0] == '\\' && text[1] ? strchr(from, text[1]) : NULL;
        uint32_t code, low;
        char utf8[4];
        if (plain) {
            buf_add(out, &to[plain - from], 1);
            text++;
        } else if (text[0] == '\\' && text[1] == 'x' && !hex_digits(text + 2, 2, &code)) {
            utf8[0] = (char)code; // a byte, not a code point
            buf_add(out, utf8, 1);
            text += 3;
        } else if (text[0] == '\\' && text[1] == 'u' && !hex_digits(text + 2, 4, &code) && code >> 11 != 0xd800 >> 11) {
            buf_add(out, utf8, utf8_encode(code, utf8));
            text += 5;
        } else if (text[0] == '\\' && text[1] == 'u' && !hex_digits(text + 2, 4, &code) && code >> 10 == 0xd800 >> 10
                   && text[6] == '\\' && text[7] == 'u' && !hex_digits(text + 8, 4, &low) && low >> 10 == 0xdc00 >> 10) {
            buf_add(out, utf8, utf8_encode(0x10000 + ((code & 0x3ff) << 10) + (low & 0x3ff), utf8)); // a surrogate pair
            text += 11;
        } else {
            buf_add(out, text, 1);
        }
    }
}

static int read_prompt(const Options *o, Buf *out, Err *e)
{
    if (!o->n_parts) {
        char model[200];
        str_escape((Str){o->model, strlen(o->model)}, model, sizeof model);
        if (isatty(STDIN_FILENO))
            return err_set(e, EXIT_USAGE, "got no prompt, want one: ./run %s -i \"Once upon a time\"", model);
        return file_read("-", &stop_signal, out, e);
    }
    for (int i = 0; i < o->n_parts; i++) {
        const PromptPart *p = &o->parts[i];
        if (p->is_file && file_read(p->text, &stop_signal, out, e))
            return -1;
        if (!p->is_file && o->escape)
            add_escaped(out, p->text);
        else if (!p->is_file)
            buf_add(out, p->text, strlen(p->text));
    }
    return out->failed ? err_set(e, EXIT_MEMORY, "out of memory for the prompt") : 0;
}

static int encode_prompt(const Options *o, const Tokenizer *t, TokenList *ids, Err *e)
{
    Buf text = {0};
    unsigned flags = (o->no_bos ? 0 : ENCODE_BOS) | (o->special ? ENCODE_SPECIAL : 0);
    int rc = read_prompt(o, &text, e);
    if (!rc && (rc = tokenizer_encode(t, text.ptr ? text.ptr : "", text.len, flags, ids, e)) && e->code == EXIT_MODEL)
        err_prefix(e, o->model); // its tables are built, and so checked, on first use
    buf_free(&text);
    return rc ? -1 : 0;
}

/* ---- output ------------------------------------------------------------------------------------------------ */

static int stdout_failed(Err *e)
{
    err_set(e, EXIT_IO, "standard output: cannot write: %s", strerror(errno));
    return -1;
}

/* Generated text on its way out: bytes that may be the beginning of a stop text wait for what follows. */
typedef struct {
    const Options *o;
    Decoder decoder;
    Buf text; // decoded, not printed yet
    char last; // printed byte
} Printer;

/* Where the first stop text begins in (p, len); len if none does. */
static size_t find_stop(const Options *o, const char *p, size_t len)
{
    size_t first = len;
    for (int i = 0; i < o->n_stops; i++) {
        size_t n = strlen(o->stops[i]);
        for (size_t at = 0; at + n <= len && at < first; at++)
            if (!memcmp(p + at, o->stops[i], n))
                first = at;
    }
    return first;
}

/* How many bytes at the end of (p, len) could be the beginning of a stop text. */
static size_t held_back(const Options *o, const char *p, size_t len)
{
    size_t most = 0;
    for (int i = 0; i < o->n_stops; i++)
        for (size_t n = strlen(o->stops[i]) - 1; n > most; n--)
            if (n <= len && !memcmp(p + len - n, o->stops[i], n))
                most = n;
    return most;
}

static int put(Printer *p, const char *bytes, size_t len, Err *e)
{
    if (len)
        p->last = bytes[len - 1];
    if (fwrite(bytes, 1, len, stdout) != len || fflush(stdout))
        return stdout_failed(e);
    return 0;
}

/* Print what is ready; `at_end` prints all. 1 when a stop text was met, -1 on failure. */
static int print_ready(Printer *p, bool at_end, Err *e)
{
    if (p->text.failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    size_t stop = find_stop(p->o, p->text.ptr, p->text.len), n = stop;
    bool met = stop < p->text.len;
    if (!met && !at_end)
        n -= held_back(p->o, p->text.ptr, p->text.len);
    if (n && put(p, p->text.ptr, n, e))
        return -1;
    memmove(p->text.ptr ? p->text.ptr : &p->last, p->text.ptr ? p->text.ptr + n : &p->last, p->text.len - n);
    p->text.len -= n;
    return met;
}

/* ---- generate ---------------------------------------------------------------------------------------------- */

typedef struct {
    const Options *o;
    Model model;
    Session session;
    Sampler sampler;
    NpyFile logits;
    MapJob *maps; // NULL: none are wanted
    TokenList text; // the prompt and what is generated
    int n_prompt, n_generated;
    bool open_line; // the text on standard output did not end in a newline
    double load_seconds, prompt_seconds, generate_seconds;
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
    size_t n = model < 4096 ? model : 4096;
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

static void describe(const Run *r, const SessionParams *p)
{
    const Config *c = &r->model.config;
    double file = 0, kv = (double)r->session.block_bytes / KV_BLOCK;
    for (int i = 0; i < r->model.file.n_maps; i++)
        file += (double)r->model.file.maps[i].size;
    fprintf(stderr, "model: %s, %.1f M parameters, %.1f MB, %d layers, dim %d, %d heads (%d key/value), vocabulary %d, "
            "loaded in %.0f ms\n",
            c->arch, (double)r->model.n_params / 1e6, file / 1e6, c->n_layers, c->dim, c->layers[0].n_heads,
            c->layers[0].n_kv_heads, c->vocab_size, 1e3 * r->load_seconds);
    fprintf(stderr, "engine: kernels %s, %d threads, context %d of %d, KV cache %s %.1f KB per token, seed %llu\n",
            p->kernels->name, r->session.threads.n_threads, p->seq_len, c->seq_len,
            kv_names[p->kv_type], kv / 1e3,
            (unsigned long long)r->o->sampler.seed);
}

/* Run tokens through the model; logits of the last row only, or of all where they are written to a file. */
static int run_tokens(Run *r, const int *ids, int n, Err *e)
{
    bool writes = r->o->logits != NULL, live = r->maps && maps_live(r->maps);
    int step = r->session.params.max_batch;
    bool progress = n > step && isatty(STDERR_FILENO);
    for (int i = 0; i < n && !stop_signal; i += step) {
        int rows = n - i < step ? n - i : step;
        if (progress)
            fprintf(stderr, "\rprompt: %d of %d tokens", i, n);
        if (forward(&r->session, &(Batch){.n = rows, .tokens = ids + i, .want = writes ? WANT_ALL : WANT_LAST}, e) < 0)
            return stop_signal ? 0 : -1;
        if (writes && npy_rows(&r->logits, r->session.logits, (size_t)rows, e))
            return -1;
        if (live && maps_live_rows(r->maps, ids + i, rows, e))
            return -1;
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
    int rows = o->logits ? (r->n_prompt - 1) % r->session.params.max_batch : 0, met = 0;
    while (!met && !stop_signal && (o->n_predict < 0 || r->n_generated < o->n_predict)) {
        int id = sampler_pick(&r->sampler, r->session.logits + (size_t)rows * vocab);
        if (id < 0)
            return err_set(e, EXIT_IO, "sampling: got no token with a finite logit (a damaged model, or --logit-bias left none)");
        if (!o->ignore_eos && tokenizer_is_end(t, id))
            break;
        sampler_accept(&r->sampler, id);
        r->n_generated++;
        if (tokens_add(&r->text, id, e))
            return -1;
        decoder_feed(&p->decoder, id, &p->text);
        met = print_ready(p, false, e);
        if (met || r->session.seqs[0].n_pos == r->session.params.seq_len)
            break;
        if (r->n_generated == o->n_predict)
            break;
        if (run_tokens(r, &id, 1, e))
            return -1;
        rows = 0;
    }
    if (!met) {
        decoder_flush(&p->decoder, &p->text);
        met = print_ready(p, true, e);
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

/* The files that a run writes: --logits, --attn-stats, then those of --dump-attn; NULL where one is not wanted. */
static const char *output_at(const Options *o, int i)
{
    return i == 0 ? o->logits : i == 1 ? o->maps.stats : o->maps.files[i - 2];
}

static const char *output_flag(int i)
{
    return i == 0 ? "--logits" : i == 1 ? "--attn-stats" : "--dump-attn";
}

/* The session's sizes, and the files that are written from it. */
static int prepare_outputs(Run *r, SessionParams *p, Err *e)
{
    const Options *o = r->o;
    for (int i = 0; i < 2 + o->maps.n_files; i++) {
        if (output_at(o, i) && is_model_file(&r->model.file, output_at(o, i)))
            return err_set(e, EXIT_USAGE, "%s: got the model's own file, want another", output_flag(i));
        for (int k = 0; k < i && output_at(o, i); k++)
            if (output_at(o, k) && out_same(output_at(o, i), output_at(o, k)))
                return err_set(e, EXIT_USAGE, "%s and %s: got one file for two results, want two", output_flag(k), output_flag(i));
    }
    if (o->logits)
        p->max_batch = p->max_logits = p->max_batch < 32 ? p->max_batch : 32;
    if (o->maps.n_files || o->maps.stats) {
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
    double begin = clock_seconds();
    SessionParams p = {.n_seqs = 1, .max_batch = o->batch, .max_logits = 1, .kv_type = o->kv_type, .exact = o->exact,
                       .n_threads = choose_threads(o), .stop = &stop_signal};
    p.kernels = kernels_select(getenv("RUN_CPU"), e);
    if (!p.kernels || model_open(&r->model, o->model, e))
        return -1;
    r->load_seconds = clock_seconds() - begin;
    const Tokenizer *t = r->model.tokenizer;
    if (check_biases(r, e) || encode_prompt(o, t, &r->text, e))
        return -1;
    if (!r->text.n && !o->no_bos && tokenizer_bos(t) >= 0 && tokens_add(&r->text, tokenizer_bos(t), e))
        return -1;
    r->n_prompt = (int)r->text.n;
    if (!r->n_prompt)
        return err_set(e, EXIT_USAGE, "prompt: got nothing, want some text (%s)",
                       o->no_bos ? "--no-bos leaves nothing to start from" : "this model has no begin-of-text token");
    if (choose_seq_len(o, &r->model.config, r->text.n, &p.seq_len, e))
        return -1;
    if (p.max_batch > r->n_prompt)
        p.max_batch = r->n_prompt;
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
    w->rc = run_tokens(r, r->text.ids, r->n_prompt, w->e);
    r->prompt_seconds = clock_seconds() - begin;
    if (!w->rc && !stop_signal)
        w->rc = generate(r, w->p, w->e);
    r->generate_seconds = clock_seconds() - begin - r->prompt_seconds;
}

/* --echo: the prompt's own text; a control token in front (BOS) is none of it. */
static int print_prompt(Run *r, Printer *p, Err *e)
{
    const Tokenizer *t = r->model.tokenizer;
    for (int i = tokenizer_type(t, r->text.ids[0]) == TOKEN_CONTROL; i < r->n_prompt; i++)
        decoder_feed(&p->decoder, r->text.ids[i], &p->text);
    if (p->text.failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    int rc = p->text.len ? put(p, p->text.ptr, p->text.len, e) : 0;
    p->text.len = 0; // stop texts are looked for in what is generated only
    return rc;
}

static int run_and_print(Run *r, Err *e)
{
    const Options *o = r->o;
    Printer p = {.o = o, .last = '\n'};
    Work w = {r, &p, e, 0};
    decoder_init(&p.decoder, r->model.tokenizer, o->echo, o->special);
    int rc = o->echo ? print_prompt(r, &p, e) : 0;
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
    if (o->verbose && !rc)
        fprintf(stderr, "prompt: %d tokens in %.3f s, %.1f tokens/s\ngenerated: %d tokens in %.3f s, %.1f tokens/s\n",
                r->n_prompt, r->prompt_seconds, r->n_prompt / r->prompt_seconds, r->n_generated, r->generate_seconds,
                r->n_generated > 1 ? (r->n_generated - 1) / r->generate_seconds : 0.0);
    buf_free(&p.text);
    return rc;
}

/* What was generated is printed; now the maps of it. A signal that ended the generation does not end this, the next one
 * does, and leaves no file. */
static int write_maps(Run *r, Err *e)
{
    SessionParams p = r->session.params;
    int n = (int)r->text.n < p.seq_len ? (int)r->text.n : p.seq_len, n_run = r->session.seqs[0].n_pos, rc = 0, first_signal = stop_signal;
    if (stop_signal) {
        stop_signal = 0;
        n = n_run < r->n_prompt ? 0 : n; // not even the prompt is complete
    }
    if (maps_live(r->maps))
        for (int i = n_run; !rc && i < n; i++) // the last token was not run: nothing followed it
            rc = forward(&r->session, &(Batch){.n = 1, .tokens = r->text.ids + i, .want = WANT_NONE}, e) < 0
               || maps_live_rows(r->maps, r->text.ids + i, 1, e);
    session_free(&r->session);
    p.max_batch = r->o->batch;
    if (!rc && n && maps_wants_replay(r->maps))
        rc = maps_replay(r->maps, p, r->text.ids, n, &stop_signal, e);
    if (!rc && n && r->open_line && r->o->maps.stats && !strcmp(r->o->maps.stats, "-") && (putchar('\n') == EOF || fflush(stdout)))
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
    npy_discard(&r.logits);
    maps_close(r.maps);
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
    SessionParams p = {.max_batch = o->batch, .kv_type = o->kv_type, .exact = o->exact, .n_threads = choose_threads(o),
                       .kernels = kernels_select(getenv("RUN_CPU"), e)};
    if (!p.kernels || model_open(&m, o->model, e))
        return -1;
    unsigned flags = (o->no_bos ? 0 : ENCODE_BOS) | (o->special ? ENCODE_SPECIAL : 0);
    int bos = !o->no_bos && tokenizer_adds_bos(m.tokenizer) ? tokenizer_bos(m.tokenizer) : -1;
    int seq_len = o->seq_len ? o->seq_len : m.config.seq_len < 512 ? m.config.seq_len : 512;
    int rc = file_read(o->perplexity, &stop_signal, &text, e)
          || tokenizer_encode(m.tokenizer, text.ptr ? text.ptr : "", text.len, flags, &ids, e)
          || score_perplexity(&m, p, ids.ids, ids.n, bos, seq_len, &stop_signal, &score, e);
    if (!rc && score.n_tokens && !stop_signal)
        rc = print_score(o, &score, e);
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
    Bench b = {.n_prompt = o->bench_prompt, .n_generate = o->bench_generate, .depth = o->bench_depth,
               .n_runs = o->bench_runs};
    SessionParams p = {.max_batch = o->batch, .kv_type = o->kv_type, .exact = o->exact, .n_threads = choose_threads(o),
                       .kernels = kernels_select(getenv("RUN_CPU"), e)};
    if (!p.kernels || model_open(&m, o->model, e))
        return -1;
    int rc = bench_run(&m, p, &b, &stop_signal, e);
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

static void tokens_json(const Tokenizer *t, const TokenList *ids, Buf *out)
{
    buf_text(out, "{\"ids\": ");
    json_ints(out, ids->ids, (int)ids->n);
    buf_text(out, ", \"pieces\": [");
    for (size_t i = 0; i < ids->n; i++) {
        buf_add(out, ", ", i ? 2 : 0);
        json_string(out, tokenizer_piece(t, ids->ids[i]));
    }
    buf_add(out, "]}\n", 3);
}

static void tokens_text(const Tokenizer *t, const TokenList *ids, Buf *out)
{
    char shown[400], line[440];
    for (size_t i = 0; i < ids->n; i++) {
        Str piece = tokenizer_piece(t, ids->ids[i]);
        int n = snprintf(line, sizeof line, "%6d  \"%s\"\n", ids->ids[i], str_escape(piece, shown, sizeof shown));
        buf_add(out, line, (size_t)n);
    }
}

static int print_tokens(const Options *o, const Tokenizer *t, const TokenList *ids, Err *e)
{
    Buf out = {0};
    (o->json ? tokens_json : tokens_text)(t, ids, &out);
    int rc = out.failed ? err_set(e, EXIT_MEMORY, "out of memory for the tokens") : 0;
    if (!rc && out.len && (fwrite(out.ptr, 1, out.len, stdout) != out.len || fflush(stdout)))
        rc = stdout_failed(e);
    buf_free(&out);
    return rc;
}

static int tokenize_mode(const Options *o, Err *e)
{
    Gguf file;
    TokenList ids = {0};
    if (gguf_open(&file, o->model, e))
        return -1;
    Tokenizer *t = tokenizer_open(&file, e);
    int rc = t ? encode_prompt(o, t, &ids, e) || print_tokens(o, t, &ids, e) : err_prefix(e, o->model);
    tokens_free(&ids);
    tokenizer_close(t);
    gguf_close(&file);
    return rc ? -1 : 0;
}

/* ---- main -------------------------------------------------------------------------------------------------- */

static int text_mode(const Options *o, Err *e)
{
    if (o->mode == MODE_HELP)
        options_help(stdout);
    else if (o->mode == MODE_MAN)
        options_man(stdout);
    else if (o->mode == MODE_COMPLETION)
        options_completion(stdout);
    else
        printf("attn.c %s\n", RUN_VERSION);
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
        rc = o.mode == MODE_GENERATE ? generate_mode(&o, &e) : o.mode == MODE_TOKENIZE ? tokenize_mode(&o, &e)
           : o.mode == MODE_PERPLEXITY ? perplexity_mode(&o, &e) : o.mode == MODE_BENCH ? bench_mode(&o, &e)
           : o.mode == MODE_QUANTIZE ? quantize_mode(&o, &e) : text_mode(&o, &e);
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
