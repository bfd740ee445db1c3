/* score.c - the mode --score: how likely given texts are, a JSON object for each line.
 * docs/batches.md describes the lines.
 *
 * A line is a prompt with its completions, or a text, which is judged from its second token on. The
 * tokens of a completion are found as EleutherAI's lm-evaluation-harness finds them
 * (TemplateLM._encode_pair): white space at the prompt's end goes to the completion, and what the
 * prompt and the completion have as one text, past as many tokens as the prompt has alone, is the
 * completion's. A conversation is a prompt too, whose white space stays with it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "modes/conversation.h"
#include "modes/requests.h"
#include "text/unicode.h"

enum { LOGIT_ROWS = 32 };
enum { OWN, LIKELIEST, N_LOGPROBS }; // what is kept of each token

typedef struct Scored Scored;

typedef struct {
    Scored *line;
    Str text;          // in the line, or in its strings
    TokenList ids;     // where it is given as ids
    bool is_ids;       //
    ParallelText *run; // owned; NULL before it is prepared and after it is done
    Logprob *logprobs; // (n, N_LOGPROBS) owned
    size_t n;          // tokens
} Completion;

/* A line whose texts are given. */
struct Scored {
    Request base;
    Buf strings;    // of the line's JSON
    Str prompt;     // its text; empty where it is given as ids
    Rendered talk;  // the prompt where it is a conversation, with room for one more part
    TokenList ids;  // its tokens
    size_t n_alone; // that its text has; 0 where it is empty and ids has what stands for it
    Completion *completions;
    size_t n, n_started, n_running;
};

typedef struct {
    Requests q;
    StreamParams params;
    Conversations talks;
} ScoreRun;

/* ---- reading a line -------------------------------------------------------------------------- */

static const char *const own[] = {
    "prompt", "ids",        "messages",   "tools", "chat_template_kwargs",
    "text",   "completion", "completions"};
static const char *const results[] = {"scores", "prompt_ids", "n_prompt"};

#define COUNT(list) (sizeof list / sizeof *list)

/* The text without the white space at its end, as Python's str.rstrip() gives it. */
static Str without_space(Str s)
{
    size_t end = 0;
    uint32_t c;
    for (size_t i = 0; i < s.len;) {
        i += utf8_decode(s.ptr + i, s.ptr + s.len, &c);
        end = unicode_space(c) ? end : i;
    }
    return (Str){s.ptr, end};
}

/* The tokens that a text begins with where the prompt is empty: the begin-of-text token or, as in
 * the harness, the end-of-text token of a model that has no other. */
static int add_prefix(const Requests *q, TokenList *out, Err *e)
{
    const Tokenizer *t = q->engine.model.tokenizer;
    int id = tokenizer_bos(t) >= 0 ? tokenizer_bos(t) : tokenizer_eos(t);
    if (q->o->no_bos || id < 0)
        return err_set(e, EXIT_USAGE, "the prompt is empty, want some text");
    return tokens_add(out, id, e);
}

static int read_completion(const Requests *q, const JsonDoc *d, const JsonNode *n, Completion *c,
                           Err *e)
{
    bool after_ids = json_field(d, "ids") != NULL;
    c->is_ids = n->type == JSON_LIST;
    if (!c->is_ids && (after_ids || n->type != JSON_STRING))
        return err_set(e, EXIT_USAGE,
                       after_ids ? "completion: want a list of token ids after \"ids\""
                                 : "completion: want a string or a list of token ids");
    c->text = n->string;
    return c->is_ids ? requests_read_ids(q, d, n, "completion", &c->ids, e) : 0;
}

/* Room for n completions. */
static int make_completions(Scored *r, size_t n, Err *e)
{
    r->completions = mem_zalloc(n, sizeof *r->completions);
    if (!r->completions)
        return err_set(e, EXIT_MEMORY, "out of memory for the line");
    r->n = n;
    for (size_t i = 0; i < n; i++)
        r->completions[i].line = r;
    return 0;
}

static int read_completions(const Requests *q, const JsonDoc *d, Scored *r, Err *e)
{
    const JsonNode *one = json_field(d, "completion");
    const JsonNode *many = json_field(d, "completions");
    size_t n = 0, i = 0;
    if (!one == !many)
        return err_set(e, EXIT_USAGE, "want either \"completion\" or \"completions\"");
    if (one)
        return make_completions(r, 1, e) ? -1 : read_completion(q, d, one, r->completions, e);
    if (many->type != JSON_LIST)
        return err_set(e, EXIT_USAGE, "completions: want a list");
    for (const JsonNode *c = json_first(d, many); c; c = json_next(d, many, c))
        n++;
    if (make_completions(r, n, e))
        return -1;
    for (const JsonNode *c = json_first(d, many); c; c = json_next(d, many, c))
        if (read_completion(q, d, c, &r->completions[i++], e))
            return -1;
    return 0;
}

/* The prompt's own tokens: without the white space that goes to the completions. */
static int encode_prompt(const Requests *q, Scored *r, Err *e)
{
    Str text = r->n ? without_space(r->prompt) : r->prompt;
    if (requests_encode(q, text, &r->ids, e))
        return -1;
    r->n_alone = r->ids.n;
    return r->n_alone ? 0 : add_prefix(q, &r->ids, e);
}

/* The last token is not run, so it may lie beyond the context. */
static int check_length(const Requests *q, size_t n, const char *tokens, Err *e)
{
    if (n <= (size_t)q->seq_len + 1)
        return 0;
    return err_set(e, EXIT_USAGE, "got %zu %s, want at most %d, one more than the context (-c)", n,
                   tokens, q->seq_len + 1);
}

/* r->ids are those of a whole text: the first is its prompt, the others are its completion. */
static int split_text(const Requests *q, Scored *r, Err *e)
{
    if (!r->ids.n)
        return err_set(e, EXIT_USAGE, "the text is empty, want some");
    if (check_length(q, r->ids.n, "tokens", e))
        return err_prefix(e, "text");
    if (make_completions(r, 1, e))
        return -1;
    Completion *c = r->completions;
    c->is_ids = true;
    for (size_t i = 1; i < r->ids.n; i++)
        if (tokens_add(&c->ids, r->ids.ids[i], e))
            return -1;
    r->ids.n = 1;
    return 0;
}

static int read_text(const Requests *q, Scored *r, Str text, Err *e)
{
    return requests_encode(q, text, &r->ids, e) || split_text(q, r, e) ? -1 : 0;
}

/* What the model gets before its answer; that is where completions begin. */
static int read_conversation(Requests *q, const JsonDoc *d, Scored *r, Err *e)
{
    Conversations *talks = &((ScoreRun *)(void *)q)->talks;
    Rendered *t = &r->talk;
    if (conversations_render(talks, d, (Str){"", 0}, t, e)
        || chat_format_encode(q->engine.model.tokenizer, t, &r->ids, e))
        return -1;
    if (!mem_room(&t->parts, t->n_parts + 1, &t->cap, sizeof *t->parts))
        return err_set(e, EXIT_MEMORY, "out of memory for the line");
    r->prompt = (Str){t->text.ptr, t->text.len};
    r->n_alone = r->ids.n;
    return 0;
}

static int read_object(Requests *q, const JsonDoc *d, Scored *r, Err *e)
{
    const JsonNode *text = json_field(d, "text");
    const JsonNode *prompt = json_field(d, "prompt");
    const JsonNode *ids = json_field(d, "ids");
    bool completions = json_field(d, "completion") || json_field(d, "completions");
    int talk = conversations_wanted(&((ScoreRun *)(void *)q)->talks, d, e);
    if (talk < 0)
        return -1;
    if (talk + !!text + !!prompt + !!ids != 1)
        return err_set(e, EXIT_USAGE, "want one of \"prompt\", \"messages\", \"text\" and \"ids\"");
    if (text && completions)
        return err_set(e, EXIT_USAGE, "text: want it alone, completions follow a \"prompt\"");
    if ((text && text->type != JSON_STRING) || (prompt && prompt->type != JSON_STRING))
        return err_set(e, EXIT_USAGE, "%s: want a string", text ? "text" : "prompt");
    if (text)
        return read_text(q, r, text->string, e);
    if (ids && requests_read_ids(q, d, ids, "ids", &r->ids, e))
        return -1;
    if (ids && !completions)
        return split_text(q, r, e);
    if (ids && !r->ids.n)
        return err_set(e, EXIT_USAGE, "the prompt is empty, want some ids");
    if (read_completions(q, d, r, e))
        return -1;
    if (talk)
        return read_conversation(q, d, r, e);
    r->prompt = prompt ? prompt->string : (Str){"", 0};
    return prompt ? encode_prompt(q, r, e) : 0;
}

static int read_request(Requests *q, JsonDoc *d, Request *base, Err *e)
{
    Scored *r = (Scored *)(void *)base;
    if (!base->is_json)
        return read_text(q, r, d ? d->nodes[0].string : base->json, e);
    int rc = read_object(q, d, r, e);
    r->strings = d->strings;
    d->strings = (Buf){0};
    return rc;
}

/* ---- running --------------------------------------------------------------------------------- */

/* Append the tokens of a line's prompt with a completion as one text. */
static int encode_both(const Requests *q, Scored *r, Str text, TokenList *out, Err *e)
{
    Rendered *t = &r->talk;
    if (!t->n_parts)
        return requests_encode(q, text, out, e);
    t->parts[t->n_parts] = (TextPart){text.len, q->o->special_files};
    return tokenizer_encode_parts(q->engine.model.tokenizer, text.ptr, text.len, t->parts,
                                  t->n_parts + 1, 0, out, e);
}

/* Append the tokens of a completion that is a text. */
static int encode_completion(const Requests *q, const Completion *c, TokenList *out, Err *e)
{
    Scored *r = c->line;
    Buf text = {0};
    TokenList whole = {0};
    size_t n = r->n_alone;
    buf_add(&text, r->prompt.ptr, r->prompt.len);
    buf_add(&text, c->text.ptr, c->text.len);
    int rc = text.failed ? err_set(e, EXIT_MEMORY, "out of memory for the line")
                         : encode_both(q, r, (Str){text.ptr ? text.ptr : "", text.len}, &whole, e);
    if (!n && whole.n && whole.ids[0] == r->ids.ids[0]) // a begin-of-text token that is written out
        n = 1;
    if (!rc && c->text.len && whole.n <= n)
        rc = err_set(e, EXIT_USAGE, "has no token of its own, the prompt's last token holds it");
    for (size_t i = n; !rc && i < whole.n; i++)
        rc = tokens_add(out, whole.ids[i], e);
    buf_free(&text);
    tokens_free(&whole);
    return rc;
}

/* The tokens of a completion after those of its prompt -> its stream. */
static int prepare(Requests *q, Completion *c, Err *e)
{
    const Scored *r = c->line;
    TokenList ids = {0};
    int rc = 0;
    for (size_t i = 0; !rc && i < r->ids.n; i++)
        rc = tokens_add(&ids, r->ids.ids[i], e);
    for (size_t i = 0; !rc && i < c->ids.n; i++)
        rc = tokens_add(&ids, c->ids.ids[i], e);
    if (!rc && !c->is_ids)
        rc = encode_completion(q, c, &ids, e);
    rc = rc || check_length(q, ids.n, "tokens with its prompt", e);
    c->run = rc ? NULL : mem_zalloc(1, sizeof *c->run);
    if (!c->run) {
        tokens_free(&ids);
        return rc ? rc : err_set(e, EXIT_MEMORY, "out of memory for the line");
    }
    c->run->owner = c;
    tokens_free(&c->ids);
    return stream_init_given(&c->run->stream, &((ScoreRun *)(void *)q)->params, ids, r->ids.n, e);
}

/* The error of a completion is its line's. */
static void fail(Completion *c, const Err *e)
{
    Scored *r = c->line;
    char name[48];
    snprintf(name, sizeof name, "completions[%zu]", (size_t)(c - r->completions));
    r->base.err = *e;
    err_prefix(&r->base.err, r->n > 1 ? name : "completion");
}

/* A line is done when all of its texts are or, after an error, those that had begun. */
static void check_done(Scored *r)
{
    if (!r->n_running && (r->n_started == r->n || r->base.err.code))
        r->base.state = DONE;
}

static bool start(Requests *q, Request *base)
{
    Scored *r = (Scored *)(void *)base;
    while (r->n_started < r->n && !base->err.code) {
        Completion *c = &r->completions[r->n_started];
        Err e = {0};
        if (!c->run && prepare(q, c, &e)) {
            fail(c, &e);
            break;
        }
        r->n_running++; // it may be done at once
        if (!parallel_add(&q->texts, c->run)) {
            r->n_running--;
            return false;
        }
        r->n_started++;
    }
    base->state = RUNNING;
    check_done(r);
    return true;
}

static void free_run(Completion *c)
{
    if (!c->run)
        return;
    stream_free(&c->run->stream);
    buf_free(&c->run->shown);
    free(c->run);
    c->run = NULL;
}

static void text_done(Requests *q, ParallelText *text)
{
    (void)q;
    Completion *c = text->owner;
    if (text->err.code)
        fail(c, &text->err);
    c->n = text->stream.text.n - text->stream.n_prompt;
    c->logprobs = text->stream.logprobs;
    text->stream.logprobs = NULL;
    free_run(c);
    c->line->n_running--;
    if (c->line->base.state == RUNNING)
        check_done(c->line);
}

/* ---- writing a line -------------------------------------------------------------------------- */

static bool is_own(Str name)
{
    return requests_is_one_of(name, own, COUNT(own))
        || requests_is_one_of(name, results, COUNT(results));
}

static void write_score(const Tokenizer *t, const Completion *c, Json *j)
{
    const Logprob *l = c->logprobs;
    Buf bytes = {0};
    double sum = 0;
    bool greedy = true;
    for (size_t i = 0; i < c->n; i++) {
        sum += l[i * N_LOGPROBS + OWN].logprob;
        greedy = greedy && l[i * N_LOGPROBS + OWN].id == l[i * N_LOGPROBS + LIKELIEST].id;
        tokenizer_bytes(t, l[i * N_LOGPROBS + OWN].id, false, &bytes);
    }
    json_object(j);
    json_number(json_key(j, "logprob"), sum);
    json_list(json_key(j, "token_logprobs"));
    for (size_t i = 0; i < c->n; i++)
        json_number(j, l[i * N_LOGPROBS + OWN].logprob);
    json_end(j);
    json_list(json_key(j, "ids"));
    for (size_t i = 0; i < c->n; i++)
        json_int(j, l[i * N_LOGPROBS + OWN].id);
    json_end(j);
    json_int(json_key(j, "n_tokens"), (int64_t)c->n);
    json_int(json_key(j, "n_bytes"), (int64_t)bytes.len);
    json_bool(json_key(j, "greedy"), greedy);
    json_end(j);
    j->out->failed |= bytes.failed;
    buf_free(&bytes);
}

static void write_line(Requests *q, const Request *base, Json *j)
{
    const Scored *r = (const Scored *)(const void *)base;
    json_ints(json_key(j, "prompt_ids"), r->ids.ids, (int)r->ids.n);
    json_int(json_key(j, "n_prompt"), (int64_t)r->ids.n);
    json_list(json_key(j, "scores"));
    for (size_t i = 0; i < r->n; i++)
        write_score(q->engine.model.tokenizer, &r->completions[i], j);
    json_end(j);
}

static void free_line(Requests *q, Request *base)
{
    (void)q;
    Scored *r = (Scored *)(void *)base;
    for (size_t i = 0; i < r->n; i++) {
        free_run(&r->completions[i]);
        free(r->completions[i].logprobs);
        tokens_free(&r->completions[i].ids);
    }
    free(r->completions);
    tokens_free(&r->ids);
    rendered_free(&r->talk);
    buf_free(&r->strings);
}

static const RequestKind kind = {.size = sizeof(Scored),
                                 .read = read_request,
                                 .is_own = is_own,
                                 .start = start,
                                 .text_done = text_done,
                                 .write = write_line,
                                 .free = free_line};

int score_mode(const Options *o, Err *e)
{
    ScoreRun s = {.talks = {.o = o, .file = &s.q.engine.model.file}};
    uint64_t no_seed = 0;
    Requests *q = &s.q;
    int rc = conversations_check_flags(o, e) || requests_open(q, o, &kind, &no_seed, e)
          || requests_start(q, modes_context(o, &q->engine.model.decoder.config), LOGIT_ROWS);
    if (!rc) {
        s.params = modes_stream_params(o, &q->engine, q->seq_len);
        s.params.logprobs = LIKELIEST;
        requests_run(q);
    }
    conversations_close(&s.talks);
    return requests_close(q, rc);
}
