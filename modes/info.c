/* info.c - the mode --info: what a file is. Only its header is read, so that a model which this
 * program does not run can be looked at too.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blocks.h"
#include "base/json.h"
#include "modes/modes.h"

/* What is told of a model of any architecture: a name for people and for JSON, and the key after
 * "ARCH." */
static const struct {
    const char *name, *key;
} sizes[] = {
    {"context", "context_length"},
    {"layers", "block_count"},
    {"dim", "embedding_length"},
    {"heads", "attention.head_count"},
    {"kv_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"hidden_dim", "feed_forward_length"},
    {"experts", "expert_count"},
    {"experts_used", "expert_used_count"},
    {"window", "attention.sliding_window"},
};

enum { N_SIZES = sizeof sizes / sizeof *sizes, LONG_ARRAY = 16 };

typedef struct {
    Gguf file;
    char arch[64]; // escaped
    double n_params, file_bytes, tensor_bytes;
    size_t n_of[TYPE_COUNT]; // tensors of each type, and their bytes
    double bytes_of[TYPE_COUNT];
    uint64_t vocab;
    char recurrent[200]; // as config_recurrent() says it, "" for an architecture that does not run
} Info;

static Str text_key(const Gguf *g, const char *name)
{
    Str s = {"", 0};
    Err none;
    if (gguf_str(g, name, &s, &none) != 1)
        s = (Str){"", 0};
    return s;
}

static void collect(Info *x)
{
    const Gguf *g = &x->file;
    const GgufKey *tokens = gguf_key(g, "tokenizer.ggml.tokens");
    str_escape(text_key(g, "general.architecture"), x->arch, sizeof x->arch);
    for (int i = 0; i < g->n_maps; i++)
        x->file_bytes += (double)g->maps[i].file.size;
    for (size_t i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        double n = 1;
        for (int d = 0; d < 4; d++)
            n *= (double)t->shape[d];
        x->n_params += n;
        x->tensor_bytes += (double)t->size;
        if (t->type < TYPE_COUNT) {
            x->n_of[t->type]++;
            x->bytes_of[t->type] += (double)t->size;
        }
    }
    Config c;
    Err e = {0};
    if (!config_read(&c, g, &e))
        config_recurrent(&c, x->recurrent, sizeof x->recurrent);
    config_free(&c);
    x->vocab = tokens && tokens->is_array ? tokens->n : 0;
}

/* The key of a size, NULL where it is absent or one number a layer. */
static const GgufKey *size_key(const Info *x, int i)
{
    char name[160];
    Str arch = text_key(&x->file, "general.architecture");
    snprintf(name, sizeof name, "%.*s.%s", (int)(arch.len < 64 ? arch.len : 64), arch.ptr,
             sizes[i].key);
    const GgufKey *k = gguf_key(&x->file, name);
    return k && k->type != GGUF_STRING && !k->is_array ? k : NULL;
}

/* ---- as JSON --------------------------------------------------------------------------------- */

static void add_item(Json *j, const GgufKey *k, const Str *texts, uint64_t i)
{
    double v = k->type == GGUF_STRING ? 0 : gguf_number(k, i);
    if (k->type == GGUF_STRING)
        json_string(j, texts[i]);
    else if (k->type == GGUF_BOOL)
        json_bool(j, v != 0);
    else if (v == floor(v) && fabs(v) < 0x1p53)
        json_int(j, (int64_t)v);
    else
        json_number(j, v);
}

/* A key's value; of a long array its length, type and first items would say little: its length. */
static void add_value(Json *j, const GgufKey *k)
{
    if (k->is_array && k->n > LONG_ARRAY) {
        json_object(j);
        json_int(json_key(j, "length"), (int64_t)k->n);
        json_end(j);
        return;
    }
    Str *texts = k->type == GGUF_STRING ? gguf_strings(k) : NULL;
    if (k->type == GGUF_STRING && !texts) {
        j->out->failed = true;
        return;
    }
    if (k->is_array)
        json_list(j);
    for (uint64_t i = 0; i < (k->is_array ? k->n : 1); i++)
        add_item(j, k, texts, i);
    if (k->is_array)
        json_end(j);
    free(texts);
}

static void info_json(const Info *x, Buf *out)
{
    const Gguf *g = &x->file;
    Json j = {.out = out};
    json_object(&j);
    json_string(json_key(&j, "name"), text_key(g, "general.name"));
    json_string(json_key(&j, "arch"), text_key(g, "general.architecture"));
    json_int(json_key(&j, "parameters"), (int64_t)x->n_params);
    json_int(json_key(&j, "bytes"), (int64_t)x->file_bytes);
    for (int i = 0; i < N_SIZES; i++)
        if (size_key(x, i))
            json_int(json_key(&j, sizes[i].name), (int64_t)gguf_number(size_key(x, i), 0));
    if (*x->recurrent)
        json_string(json_key(&j, "recurrent"), (Str){x->recurrent, strlen(x->recurrent)});
    json_object(json_key(&j, "types"));
    for (uint32_t t = 0; t < TYPE_COUNT; t++)
        if (x->n_of[t])
            json_int(json_key(&j, type_info(t)->name), (int64_t)x->n_of[t]);
    json_end(&j);
    json_int(json_key(&j, "vocab_size"), (int64_t)x->vocab);
    json_string(json_key(&j, "tokenizer"), text_key(g, "tokenizer.ggml.model"));
    json_bool(json_key(&j, "chat_template"), gguf_key(g, "tokenizer.chat_template") != NULL);
    json_object(json_key(&j, "metadata"));
    for (size_t i = 0; i < g->n_keys; i++) {
        json_key_str(&j, g->keys[i].name);
        add_value(&j, &g->keys[i]);
    }
    json_end(&j);
    json_end(&j);
    buf_text(out, "\n");
}

/* ---- for people ------------------------------------------------------------------------------ */

static void add_line(Buf *out, const char *name, const char *text)
{
    char line[700];
    buf_add(out, line, (size_t)snprintf(line, sizeof line, "%-14s %s\n", name, text));
}

static void add_text_key(const Info *x, Buf *out, const char *name, const char *key)
{
    char text[300];
    Str s = text_key(&x->file, key);
    if (s.len)
        add_line(out, name, str_escape(s, text, sizeof text));
}

static void info_text(const Info *x, Buf *out)
{
    char text[600] = "";
    size_t n = 0;
    add_text_key(x, out, "name", "general.name");
    add_line(out, "architecture", x->arch);
    snprintf(text, sizeof text, "%.1f M", x->n_params / 1e6);
    add_line(out, "parameters", text);
    snprintf(text, sizeof text, "%.1f MB, %.2f bits a parameter", x->file_bytes / 1e6,
             x->n_params > 0 ? 8 * x->tensor_bytes / x->n_params : 0);
    add_line(out, "file", text);
    for (uint32_t t = 0; t < TYPE_COUNT && n < sizeof text - 40; t++)
        if (x->n_of[t])
            n += (size_t)snprintf(text + n, sizeof text - n, "%s%s x %zu", n ? ", " : "",
                                  type_info(t)->name, x->n_of[t]);
    add_line(out, "tensors", n ? text : "none");
    for (int i = 0; i < N_SIZES; i++)
        if (size_key(x, i)) {
            snprintf(text, sizeof text, "%.0f", gguf_number(size_key(x, i), 0));
            add_line(out, sizes[i].name, text);
        }
    if (*x->recurrent)
        add_line(out, "recurrent", x->recurrent);
    add_text_key(x, out, "tokenizer", "tokenizer.ggml.model");
    add_text_key(x, out, "pre-tokenizer", "tokenizer.ggml.pre");
    snprintf(text, sizeof text, "%" PRIu64 " tokens", x->vocab);
    add_line(out, "vocabulary", text);
    add_line(out, "chat template", gguf_key(&x->file, "tokenizer.chat_template") ? "yes" : "no");
    snprintf(text, sizeof text, "%zu keys (--json shows them)", x->file.n_keys);
    add_line(out, "metadata", text);
}

int info_mode(const Options *o, Err *e)
{
    Info x = {0};
    Buf out = {0};
    if (gguf_open(&x.file, o->model, e))
        return -1;
    collect(&x);
    (o->json ? info_json : info_text)(&x, &out);
    int rc = out.failed ? err_set(e, EXIT_MEMORY, "out of memory")
                        : modes_print(out.ptr, out.len, e);
    buf_free(&out);
    gguf_close(&x.file);
    return rc;
}
