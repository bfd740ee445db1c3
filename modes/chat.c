/* chat.c - the mode --chat: one answer to -i, piped input or --messages, or a conversation on a
 * terminal.
 *
 * Each turn renders the whole conversation by the model's template and makes its tokens anew; what
 * these have in common with the tokens whose keys and values are in the cache stays there. So a
 * template may rewrite what was said (some drop earlier thinking), and nothing is added to what it
 * writes.
 */
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "modes/chat_format.h"
#include "modes/modes.h"
#include "modes/prompt.h"
#include "modes/result.h"

typedef struct {
    const Options *o;
    Engine engine;
    Session session;
    Sampler sampler;
    ChatFormat format;
    StreamParams params;
    uint64_t random; // the next turn's random numbers go on from here
    Buf *messages;   // (n_messages) JSON objects
    size_t n_messages, messages_cap;
    TokenList held; // the tokens whose keys and values are in the cache
    Stream stream;  // of the present turn
    Buf answer;     // what was printed of it
    double began, prompted, ended;
    char last; // byte that was printed
    int rc;
    Err *e;
} Chat;

/* ---- the conversation ------------------------------------------------------------------------ */

static Buf *new_message(Chat *c)
{
    if (!mem_room(&c->messages, c->n_messages + 1, &c->messages_cap, sizeof *c->messages)) {
        err_set(c->e, EXIT_MEMORY, "out of memory for the conversation");
        return NULL;
    }
    c->messages[c->n_messages] = (Buf){0};
    return &c->messages[c->n_messages++];
}

static int add_message(Chat *c, const char *role, Str content)
{
    Buf *m = new_message(c);
    if (!m)
        return -1;
    chat_format_message(m, role, content);
    return m->failed ? err_set(c->e, EXIT_MEMORY, "out of memory for the conversation") : 0;
}

static void drop_messages(Chat *c, size_t n)
{
    while (c->n_messages > n)
        buf_free(&c->messages[--c->n_messages]);
}

/* The messages of a file, a JSON list. */
static int add_file(Chat *c, const char *path)
{
    Buf text = {0};
    JsonDoc d = {0};
    int rc = modes_read_json(path, &text, &d, c->e);
    if (!rc && d.nodes[0].type != JSON_LIST)
        rc = err_set(c->e, EXIT_USAGE, "%s: want a list of messages", path);
    for (const JsonNode *n = rc ? NULL : json_first(&d, d.nodes); n && !rc;
         n = json_next(&d, d.nodes, n)) {
        Buf *m = new_message(c);
        if (m)
            buf_add(m, n->raw.ptr, n->raw.len);
        rc = m && !m->failed ? 0 : -1;
    }
    json_doc_free(&d);
    buf_free(&text);
    return rc;
}

/* The conversation's tokens as the template writes it. */
static int encode(Chat *c, TokenList *ids)
{
    Buf list = {0};
    Rendered text = {0};
    buf_text(&list, "[");
    for (size_t i = 0; i < c->n_messages; i++) {
        buf_text(&list, i ? "," : "");
        buf_add(&list, c->messages[i].ptr, c->messages[i].len);
    }
    buf_text(&list, "]");
    Conversation talk = {.messages = {list.ptr, list.len}};
    int rc = list.failed ? err_set(c->e, EXIT_MEMORY, "out of memory for the conversation")
                         : chat_format_read(&c->format, &talk, &text, c->e);
    rc = rc || chat_format_encode(c->engine.model.tokenizer, &text, ids, c->e);
    rendered_free(&text);
    buf_free(&list);
    if (rc && c->o->messages)
        err_prefix(c->e, file_shown(c->o->messages));
    return rc;
}

/* ---- a turn ---------------------------------------------------------------------------------- */

/* Print what is new of the answer; with --json it is printed at the end. */
static int print_new(Chat *c, size_t from)
{
    size_t n = c->answer.len - from;
    if (c->o->json || !n)
        return 0;
    c->last = c->answer.ptr[c->answer.len - 1];
    return modes_print(c->answer.ptr + from, n, c->e);
}

/* Run the text's tokens that are not in the cache; logits of the last one. */
static int run_text(Chat *c)
{
    Session *s = &c->session;
    const TokenList *text = &c->stream.text;
    int first = cache_expect(&s->cache, 0, (int)text->n);
    c->held.n = (size_t)first < c->held.n ? (size_t)first : c->held.n;
    while (c->held.n < text->n && !stop_signal) {
        size_t left = text->n - c->held.n, most = (size_t)s->params.max_batch;
        Span span = {.n = (int)(left < most ? left : most), .tokens = text->ids + c->held.n};
        span.want = (size_t)span.n == left ? WANT_LAST : WANT_NONE;
        if (!mem_room(&c->held.ids, text->n, &c->held.cap, sizeof *c->held.ids))
            return err_set(c->e, EXIT_MEMORY, "out of memory for the conversation");
        if (forward_span(s, &span, c->e) < 0)
            return stop_signal ? 0 : -1;
        memcpy(c->held.ids + c->held.n, span.tokens, (size_t)span.n * sizeof *c->held.ids);
        c->held.n += (size_t)span.n;
    }
    return 0;
}

/* Keep what the cache has in common with the text; its last token is always run. */
static void keep_common(Chat *c)
{
    const TokenList *text = &c->stream.text;
    size_t n = tokens_common(text->ids, text->n - 1, c->held.ids, c->held.n);
    c->held.n = (size_t)cache_truncate(&c->session.cache, 0, (int)n);
}

static void answer(void *context)
{
    Chat *c = context;
    Stream *s = &c->stream;
    size_t printed = 0;
    keep_common(c);
    c->rc = run_text(c);
    c->prompted = clock_seconds();
    while (!c->rc && !s->end && !stop_signal) {
        c->rc = stream_next(s, &c->sampler, c->session.logits, &c->answer, c->e)
                     || print_new(c, printed)
                  ? -1
                  : 0;
        printed = c->answer.len;
        if (!c->rc && !s->end)
            c->rc = run_text(c);
    }
    if (!c->rc && (stream_finish(s, &c->answer, c->e) || print_new(c, printed)))
        c->rc = -1;
}

static int print_object(Chat *c)
{
    Result r = {&c->stream, &c->answer, c->params.sampling.seed, c->prompted - c->began,
                c->ended - c->prompted};
    return result_print(&r, c->e);
}

/* Answer the conversation and add the answer to it. */
static int turn(Chat *c)
{
    TokenList ids = {0};
    if (encode(c, &ids)) {
        tokens_free(&ids);
        return -1;
    }
    if (ids.n > (size_t)c->params.seq_len) {
        int rc = err_set(c->e, EXIT_USAGE,
                         "the conversation has %zu tokens, want at most the context's %d (-c)",
                         ids.n, c->params.seq_len);
        tokens_free(&ids);
        return rc;
    }
    stream_free(&c->stream);
    stream_init(&c->stream, &c->params, c->random, ids);
    c->answer.len = 0;
    c->began = clock_seconds();
    c->rc = 0;
    threads_team(&c->engine.threads, answer, c);
    c->ended = clock_seconds();
    c->random = c->stream.random;
    if (!c->rc && c->o->json)
        c->rc = print_object(c);
    if (!c->rc && c->stream.end == END_CONTEXT)
        fprintf(stderr, "%s%s: the context of %d tokens is full (-c), the answer is cut off\n",
                c->last != '\n' && isatty(STDERR_FILENO) ? "\n" : "", program_name(),
                c->params.seq_len);
    Str text = {c->answer.len ? c->answer.ptr : "", c->answer.len};
    return c->rc ? -1 : add_message(c, "assistant", text);
}

/* ---- a conversation on a terminal ------------------------------------------------------------ */

static const char help[] = "/reset  forget the conversation\n"
                           "/undo   take back the last question and its answer\n"
                           "/help   this text\n"
                           "Ctrl-C stops an answer, Ctrl-D ends. A line that begins with a space "
                           "is a question.\n";

/* Whether a line is a command and not a question: a slash and at most one word. */
static bool is_command(Str line)
{
    size_t i = 1;
    while (i < line.len && line.ptr[i] >= 'a' && line.ptr[i] <= 'z')
        i++;
    return line.len && *line.ptr == '/' && i == line.len;
}

/* Number of messages before the last question. */
static size_t before_last(const Chat *c, size_t n_fixed)
{
    return c->n_messages >= n_fixed + 2 ? c->n_messages - 2 : n_fixed;
}

static void obey(Chat *c, Str command, size_t n_fixed)
{
    bool empty = c->n_messages == n_fixed;
    if (str_eq(command, "/reset")) {
        drop_messages(c, n_fixed);
        printf("The conversation is forgotten.\n");
    } else if (str_eq(command, "/undo")) {
        drop_messages(c, before_last(c, n_fixed));
        printf(empty ? "There is nothing to take back.\n"
                     : "The last question and its answer are taken back.\n");
    } else if (str_eq(command, "/help")) {
        fputs(help, stdout);
    } else {
        printf("%.*s is no command, /help lists them.\n", (int)command.len, command.ptr);
    }
}

static int take_line(Chat *c, Str line, size_t n_fixed)
{
    Str word = line;
    while (word.len && word.ptr[word.len - 1] == ' ')
        word.len--;
    if (is_command(word)) {
        obey(c, word, n_fixed);
    } else if (line.len) {
        size_t n = c->n_messages;
        if (add_message(c, "user", line))
            return -1;
        if (turn(c)) {
            bool full = c->e->code == EXIT_USAGE;
            if (!full && stop_signal != SIGINT)
                return -1;
            drop_messages(c, n);
            if (full)
                fprintf(stderr, "%s: %s; /undo or /reset makes room\n", program_name(), c->e->text);
        }
        if (stop_signal == SIGINT)
            stop_signal = 0;
        putchar('\n');
    }
    return 0;
}

/* Wait until standard input has a line or its end, or a signal has come. That may come at any time
 * and to any thread, so that it need not end a waiting system call: look again and again. */
static void wait_for_line(void)
{
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    while (!stop_signal && poll(&in, 1, 100) == 0)
        ;
}

static int converse(Chat *c)
{
    char *line = NULL;
    size_t cap = 0, n_fixed = c->n_messages;
    int rc = 0;
    printf("/help says what there is; Ctrl-D ends.\n");
    while (!rc && (!stop_signal || stop_signal == SIGINT)) {
        if (stop_signal) // at the prompt
            putchar('\n');
        stop_signal = 0;
        fputs("> ", stdout);
        fflush(stdout);
        wait_for_line();
        if (stop_signal)
            continue;
        ssize_t n = getline(&line, &cap, stdin);
        if (stop_signal) { // takes back a line that had no end yet
            clearerr(stdin);
            continue;
        }
        if (n < 0)
            break;
        while (n && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            n--;
        rc = take_line(c, (Str){line, (size_t)n}, n_fixed);
    }
    if (!rc && !stop_signal)
        putchar('\n');
    free(line);
    return rc;
}

/* ---- the mode -------------------------------------------------------------------------------- */

static int prepare(Chat *c)
{
    const Options *o = c->o;
    if (modes_open(&c->engine, o, true, c->e)
        || chat_format_open(&c->format, o, &c->engine.model.file, c->e)
        || modes_check_biases(o, &c->engine.model.decoder.config, c->e))
        return -1;
    const Config *config = &c->engine.model.decoder.config;
    SessionParams p = c->engine.params;
    int seq_len = modes_context(o, config);
    c->params = modes_stream_params(o, &c->engine, seq_len);
    c->params.sampling = modes_sampler_params(o);
    c->random = c->params.sampling.seed;
    modes_sizes(&p, seq_len, o->batch < seq_len ? o->batch : seq_len, 1);
    modes_note_context(o, config, seq_len);
    return session_init(&c->session, &c->engine.model.decoder, &p, c->e)
                || sampler_init(&c->sampler, config->vocab_size, p.kernels, c->e)
             ? -1
             : 0;
}

/* The conversation that the flags give; *talks: there is nothing to answer yet, and a terminal. */
static int begin(Chat *c, bool *talks)
{
    const Options *o = c->o;
    Prompt prompt = {0};
    *talks = !o->n_parts && !o->messages && isatty(STDIN_FILENO);
    if (o->system && add_message(c, "system", (Str){o->system, strlen(o->system)}))
        return -1;
    if (o->messages && add_file(c, o->messages))
        return -1;
    if (*talks || (o->messages && !o->n_parts))
        return 0;
    int rc = prompt_read(o, &prompt, c->e);
    if (!rc)
        rc = add_message(c, "user", (Str){prompt.text.ptr ? prompt.text.ptr : "", prompt.text.len});
    prompt_free(&prompt);
    return rc;
}

int chat_mode(const Options *o, Err *e)
{
    Chat c = {.o = o, .e = e, .last = '\n'};
    bool talks = false;
    int rc = prepare(&c) || begin(&c, &talks) || (talks ? converse(&c) : turn(&c));
    if (!rc && !talks && c.last != '\n' && isatty(STDOUT_FILENO))
        putchar('\n');
    if (!rc && fflush(stdout))
        rc = modes_print_failed(e);
    drop_messages(&c, 0);
    free(c.messages);
    tokens_free(&c.held);
    stream_free(&c.stream);
    buf_free(&c.answer);
    sampler_free(&c.sampler);
    session_free(&c.session);
    chat_format_close(&c.format);
    return modes_close(&c.engine, rc ? -1 : 0);
}
