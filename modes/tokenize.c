/* tokenize.c - the mode --tokenize: the prompt's ids and their texts, as lines or as JSON. */
#include "base/json.h"
#include "modes/modes.h"
#include "modes/prompt.h"

enum { PRINTED_AT_ONCE = 65536 }; // bytes

/* Print the buffer and empty it, if it holds `size` bytes. */
static int print_buffer(Buf *out, size_t size, Err *e)
{
    if (out->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the tokens");
    if (out->len < size)
        return 0;
    if (modes_print(out->ptr, out->len, e))
        return -1;
    out->len = 0;
    return 0;
}

static void add_id(const Tokenizer *t, int id, Json *j)
{
    (void)t;
    json_int(j, id);
}

static void add_piece(const Tokenizer *t, int id, Json *j)
{
    json_string(j, tokenizer_piece(t, id));
}

static void add_text(const Tokenizer *t, int id, Json *j)
{
    Buf text = {0};
    tokenizer_text(t, id, &text);
    json_buf(j, &text);
    buf_free(&text);
}

static void add_bytes(const Tokenizer *t, int id, Json *j)
{
    Buf bytes = {0};
    tokenizer_bytes(t, id, false, &bytes);
    json_hex(j, &bytes);
    buf_free(&bytes);
}

/* The lists of --tokenize --json, a value a token. */
static const struct {
    const char *name;
    void (*add)(const Tokenizer *t, int id, Json *j);
} token_lists[] = {
    {"ids", add_id}, {"pieces", add_piece}, {"text", add_text}, {"bytes", add_bytes}};

static int tokens_json(const Tokenizer *t, const TokenList *ids, Buf *out, Err *e)
{
    int rc = 0;
    Json j = {.out = out};
    json_object(&j);
    for (size_t k = 0; k < sizeof token_lists / sizeof *token_lists; k++) {
        json_list(json_key(&j, token_lists[k].name));
        for (size_t i = 0; i < ids->n && !rc; i++) {
            token_lists[k].add(t, ids->ids[i], &j);
            rc = print_buffer(out, PRINTED_AT_ONCE, e);
        }
        json_end(&j);
    }
    json_end(&j);
    buf_text(out, "\n");
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
    buf_free(&out);
    return rc;
}

int tokenize_mode(const Options *o, Err *e)
{
    Gguf file;
    TokenList ids = {0};
    Prompt prompt = {0};
    if (gguf_open(&file, o->model, e))
        return -1;
    Tokenizer *t = model_tokenizer(&file, e);
    int rc = t ? prompt_encode(o, t, &prompt, &ids, e) || print_tokens(o, t, &ids, e)
               : err_prefix(e, o->model);
    prompt_free(&prompt);
    tokens_free(&ids);
    tokenizer_close(t);
    gguf_close(&file);
    return rc ? -1 : 0;
}
