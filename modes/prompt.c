/* prompt.c - reads the prompt and makes its token ids. Contracts are in prompt.h. */
#include "modes/prompt.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "modes/modes.h"

void prompt_free(Prompt *p)
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
    return err_set(e, EXIT_USAGE, "no prompt given; usage: %s %s -i \"Once upon a time\"",
                   program_name(), model);
}

int prompt_read(const Options *o, Prompt *p, Err *e)
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

int prompt_encode(const Options *o, const Tokenizer *t, Prompt *p, TokenList *ids, Err *e)
{
    if (prompt_read(o, p, e))
        return -1;
    const char *text = p->text.ptr ? p->text.ptr : "";
    unsigned flags = o->load_session ? ENCODE_CONTINUE : modes_encode_flags(o);
    int rc = tokenizer_encode_parts(t, text, p->text.len, p->parts, p->n, flags, ids, e);
    if (rc && e->code == EXIT_MODEL)
        err_prefix(e, o->model); // its tables are built, and so checked, on first use
    return rc;
}

/* The context: -c, else the model's, at most USUAL_CONTEXT, grown to what the prompt and -n need.
 * -1 and an Err where the prompt is longer. */
static int choose_seq_len(const Options *o, const Config *c, size_t n_prompt, Err *e)
{
    size_t want = n_prompt + (size_t)(o->n_predict > 0 ? o->n_predict : 0);
    size_t model = (size_t)c->seq_len, n = model < USUAL_CONTEXT ? model : USUAL_CONTEXT;
    if (want > n)
        n = want < model ? want : model;
    if (o->seq_len)
        n = (size_t)o->seq_len;
    bool fixed = c->seq_limit || c->pos == POS_LEARNED;
    if (n_prompt > n)
        return err_set(e, EXIT_USAGE, "prompt: got %zu tokens, want at most the context's %zu (%s)",
                       n_prompt, n,
                       o->seq_len ? "-c"
                       : fixed    ? "the model's, which has no more positions"
                                  : "the model's; -c N allows more");
    return (int)n;
}

int prompt_start(const Options *o, const Model *m, Prompt *p, TokenList *ids, int *seq_len, Err *e)
{
    const Tokenizer *t = m->tokenizer;
    if (prompt_encode(o, t, p, ids, e))
        return -1;
    if (!ids->n && !o->no_bos && tokenizer_bos(t) >= 0 && tokens_add(ids, tokenizer_bos(t), e))
        return -1;
    if (!ids->n)
        return err_set(e, EXIT_USAGE, "the prompt is empty, want some text (%s)",
                       o->no_bos ? "--no-bos leaves nothing to start from"
                                 : "this model has no begin-of-text token");
    *seq_len = choose_seq_len(o, &m->decoder.config, ids->n, e);
    return *seq_len < 0 ? -1 : 0;
}
