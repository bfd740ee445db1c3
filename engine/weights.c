/* weights.c - from the tensors of a file to the fields of a Model.
 *
 * bind_model() and bind_layer() are the binding table: name, field, shape, and whether it must be
 * there. Matrices are views into the map in their own type; vectors (norms and biases) are float,
 * converted where the file has another type. A fused tensor (QKV, gate and up) becomes views of its
 * parts. A tensor that no field claims is an error: it would be a part of the model that we leave
 * out.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef struct {
    Model *m;
    bool *used; // (n_tensors)
    int layer;  // -1 outside the layers
    bool failed;
    Err *e;
} Binder;

static void fail(Binder *b, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void fail(Binder *b, const char *name, const char *fmt, ...)
{
    char text[300];
    if (b->failed)
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    b->failed = true;
    err_set(b->e, EXIT_MODEL, "tensor %s: %s", name, text);
}

/* "attn_q" + "weight" -> "blk.3.attn_q.weight" inside a layer, "attn_q.weight" outside. */
static char *full_name(const Binder *b, const char *name, const char *suffix, char out[96])
{
    if (b->layer >= 0)
        snprintf(out, 96, "blk.%d.%s.%s", b->layer, name, suffix);
    else
        snprintf(out, 96, "%s.%s", name, suffix);
    return out;
}

/* The tensor if it is there and has this shape; cols = 0 asks for a vector of `rows`. */
static const GgufTensor *find(Binder *b, const char *name, size_t rows, size_t cols, Need need)
{
    const GgufTensor *t = need == NO || b->failed ? NULL : gguf_tensor(&b->m->file, name);
    if (!t) {
        if (need == YES)
            fail(b, name, "missing, want shape (%zu%s%.0zu)", rows, cols ? ", " : "", cols);
        return NULL;
    }
    bool one_row = cols && t->n_dims == 1; // outermost dimensions of 1 are dropped
    bool fits = one_row ? rows == 1 && t->shape[0] == cols
              : cols    ? t->n_dims == 2 && t->shape[0] == rows && t->shape[1] == cols
                        : t->n_dims == 1 && t->shape[0] == rows;
    if (!fits) {
        char seen[100] = "";
        for (int i = 0; i < t->n_dims; i++)
            snprintf(seen + strlen(seen), sizeof seen - strlen(seen), "%s%zu", i ? ", " : "",
                     t->shape[i]);
        if (cols)
            fail(b, name, "got shape (%s), want (%zu, %zu)", seen, rows, cols);
        else
            fail(b, name, "got shape (%s), want (%zu)", seen, rows);
        return NULL;
    }
    if (t->type >= TYPE_COUNT || !kernels_at(0)->dequantize[t->type]) {
        fail(b, name, "got type %s, which is not supported", type_info(t->type)->name);
        return NULL;
    }
    b->used[t - b->m->file.tensors] = true;
    return t;
}

static Tensor view(const GgufTensor *t, size_t first_row, size_t rows, size_t cols)
{
    const TypeInfo *ti = type_info(t->type);
    size_t row_bytes = cols / ti->block * ti->bytes;
    return (Tensor){(const char *)t->data + first_row * row_bytes, (Type)t->type, rows, cols,
                    row_bytes};
}

/* A (rows, cols) matrix; true if it is there. */
static bool bind_matrix(Binder *b, Tensor *out, const char *name, size_t rows, size_t cols,
                        Need need)
{
    char full[96];
    const GgufTensor *t = find(b, full_name(b, name, "weight", full), rows, cols, need);
    if (t)
        *out = view(t, 0, rows, cols);
    return t != NULL;
}

/* n floats of a tensor: the map's own where they are aligned floats, otherwise a converted copy
 * that the Model owns. */
static const float *floats(Binder *b, const GgufTensor *t, size_t n)
{
    Model *m = b->m;
    if (t->type == TYPE_F32 && (uintptr_t)t->data % sizeof(float) == 0)
        return t->data;
    float **owned = mem_grow(m->owned, m->n_owned + 1, sizeof *owned);
    float *copy = mem_alloc(n, sizeof *copy);
    if (owned)
        m->owned = owned;
    if (!owned || !copy) {
        free(copy);
        b->failed = true;
        err_set(b->e, EXIT_MEMORY, "out of memory for the weights");
        return NULL;
    }
    kernels_at(0)->dequantize[t->type](t->data, copy, n);
    return m->owned[m->n_owned++] = copy;
}

static const float *bind_vector(Binder *b, const char *name, const char *suffix, size_t n,
                                Need need)
{
    char full[96];
    const GgufTensor *t = find(b, full_name(b, name, suffix, full), n, 0, need);
    return t ? floats(b, t, n) : NULL;
}

static void bind_linear(Binder *b, Linear *out, const char *name, size_t rows, size_t cols,
                        Need bias)
{
    bind_matrix(b, &out->w, name, rows, cols, YES);
    out->b = bind_vector(b, name, "bias", rows, bias);
}

/* A norm over n values. need = NO leaves it off; MAYBE turns it on where the weight is there. */
static void bind_norm(Binder *b, Norm *out, const char *name, size_t n, Need need)
{
    const Config *c = &b->m->config;
    if (c->norm_affine == YES)
        out->w = bind_vector(b, name, "weight", n, need);
    out->on = out->w || (need == YES && c->norm_affine == NO);
    if (out->on)
        out->b = bind_vector(b, name, "bias", n, c->norm_bias);
}

/* The norm of queries or keys, whose weight has one of three shapes. */
static void bind_qk_norm(Binder *b, Norm *out, const char *name, int n_heads)
{
    const Config *c = &b->m->config;
    size_t width = (size_t)c->key_dim, heads = (size_t)n_heads;
    char full[96];
    if (c->qk_norm == QK_NORM_HEADS) {
        const GgufTensor *t = find(b, full_name(b, name, "weight", full), heads, width,
                                   c->qk_norm_need);
        out->w = t ? floats(b, t, heads * width) : NULL;
    } else {
        out->w = bind_vector(b, name, "weight", c->qk_norm == QK_NORM_FULL ? heads * width : width,
                             c->qk_norm_need);
    }
    out->on = out->w != NULL;
    if (out->on)
        out->b = bind_vector(b, name, "bias", c->qk_norm == QK_NORM_HEAD ? width : heads * width,
                             c->qk_norm_bias);
}

/* Queries, keys and values: three tensors, or one with their rows in this order. */
static void bind_qkv(Binder *b, Layer *l, const LayerConfig *lc)
{
    const Config *c = &b->m->config;
    size_t dim = (size_t)c->dim, nq = (size_t)lc->n_heads * (size_t)c->key_dim;
    size_t nk = (size_t)lc->n_kv_heads * (size_t)c->key_dim,
           nv = (size_t)lc->n_kv_heads * (size_t)c->value_dim;
    char full[96];
    if (!gguf_tensor(&b->m->file, full_name(b, "attn_qkv", "weight", full))) {
        bind_linear(b, &l->wq, "attn_q", nq, dim, c->qkv_bias);
        bind_linear(b, &l->wk, "attn_k", nk, dim, c->qkv_bias);
        bind_linear(b, &l->wv, "attn_v", nv, dim, c->qkv_bias);
        return;
    }
    const GgufTensor *t = find(b, full, nq + nk + nv, dim, YES);
    const float *bias = bind_vector(b, "attn_qkv", "bias", nq + nk + nv, c->qkv_bias);
    if (!t)
        return;
    l->wq = (Linear){view(t, 0, nq, dim), bias};
    l->wk = (Linear){view(t, nq, nk, dim), bias ? bias + nq : NULL};
    l->wv = (Linear){view(t, nq + nk, nv, dim), bias ? bias + nq + nk : NULL};
}

static void bind_ffn(Binder *b, Layer *l, size_t hidden)
{
    const Config *c = &b->m->config;
    size_t dim = (size_t)c->dim;
    char full[96];
    bind_linear(b, &l->w_down, "ffn_down", dim, hidden, c->ffn_bias);
    if (c->gated && c->fused_gate_up) {
        const GgufTensor *t = find(b, full_name(b, "ffn_up", "weight", full), 2 * hidden, dim, YES);
        if (t) {
            l->w_gate.w = view(t, 0, hidden, dim);
            l->w_up.w = view(t, hidden, hidden, dim);
        }
        return;
    }
    bind_linear(b, &l->w_up, "ffn_up", hidden, dim, c->ffn_bias);
    if (c->gated)
        bind_linear(b, &l->w_gate, "ffn_gate", hidden, dim, c->ffn_bias);
}

static void bind_layer(Binder *b, int i)
{
    const Config *c = &b->m->config;
    const LayerConfig *lc = &c->layers[i];
    Layer *l = &b->m->layers[i];
    size_t dim = (size_t)c->dim;
    b->layer = i;

    bind_norm(b, &l->attn_norm, "attn_norm", dim, c->pre_norm ? YES : NO);
    bind_qkv(b, l, lc);
    if (c->qk_norm != QK_NORM_NONE) {
        bind_qk_norm(b, &l->q_norm, "attn_q_norm", lc->n_heads);
        bind_qk_norm(b, &l->k_norm, "attn_k_norm", lc->n_kv_heads);
    }
    bind_linear(b, &l->wo, "attn_output", dim, (size_t)lc->n_heads * (size_t)c->value_dim,
                c->wo_bias);
    bind_norm(b, &l->attn_post_norm, "post_attention_norm", dim, c->post_norm ? YES : NO);
    bind_norm(b, &l->ffn_norm, "ffn_norm", dim, c->pre_norm && c->shared_norm == NO ? YES : NO);
    bind_ffn(b, l, (size_t)lc->hidden_dim);
    bind_norm(b, &l->ffn_post_norm, "post_ffw_norm", dim, c->post_norm ? YES : NO);
    if (c->attn_norm_2) { // Falcon 40B: this one feeds attention, attn_norm the FFN
        Norm second = {0};
        bind_norm(b, &second, "attn_norm_2", dim, MAYBE);
        if (second.on) {
            l->ffn_norm = l->attn_norm;
            l->attn_norm = second;
        }
    }
}

static void bind_model(Binder *b)
{
    Model *m = b->m;
    const Config *c = &m->config;
    size_t dim = (size_t)c->dim, vocab = (size_t)c->vocab_size, half = (size_t)c->rope_dim / 2;
    b->layer = -1;

    bind_matrix(b, &m->token_embd, "token_embd", vocab, dim, YES);
    if (c->pos == POS_LEARNED)
        bind_matrix(b, &m->pos_embd, "position_embd", (size_t)c->seq_len + (size_t)c->pos_offset,
                    dim, YES);
    bind_norm(b, &m->embd_norm, "token_embd_norm", dim, c->embd_norm ? YES : NO);
    bind_norm(b, &m->final_norm, "output_norm", dim, c->final_norm ? YES : NO);
    if (!bind_matrix(b, &m->output.w, "output", vocab, dim,
                     c->tied == YES  ? NO
                     : c->tied == NO ? YES
                                     : MAYBE))
        m->output.w = m->token_embd;
    m->output.b = bind_vector(b, "output", "bias", vocab, c->output_bias);
    if (c->pos == POS_ROPE) {
        bool is_long = c->ropes[0].scaling == ROPE_LONGROPE;
        m->rope_factors[0] = bind_vector(b, is_long ? "rope_factors_short" : "rope_freqs", "weight",
                                         half, is_long ? YES : MAYBE);
        if (is_long)
            m->rope_factors[1] = bind_vector(b, "rope_factors_long", "weight", half, YES);
        for (int f = 0; f < 2; f++)
            for (size_t i = 0; m->rope_factors[f] && i < half; i++)
                if (!(m->rope_factors[f][i] > 0))
                    fail(b, "rope factors", "got %g, want numbers above 0", m->rope_factors[f][i]);
    }
    for (int i = 0; i < c->n_layers; i++)
        bind_layer(b, i);

    for (size_t i = 0; i < m->file.n_tensors && !b->failed; i++) {
        char shown[96];
        if (!b->used[i])
            fail(b, str_escape(m->file.tensors[i].name, shown, sizeof shown),
                 "the architecture %s has no place for it", c->arch);
        m->n_params += m->file.tensors[i].shape[0] * m->file.tensors[i].shape[1]
                     * m->file.tensors[i].shape[2] * m->file.tensors[i].shape[3];
    }
}

int model_open(Model *m, const char *path, Err *e)
{
    *m = (Model){0};
    if (gguf_open(&m->file, path, e))
        return -1;
    Binder b = {.m = m, .e = e};
    if (!config_read(&m->config, &m->file, e)) {
        b.used = mem_zalloc(m->file.n_tensors, sizeof *b.used);
        m->layers = mem_zalloc((size_t)m->config.n_layers, sizeof *m->layers);
        if (!b.used || !m->layers) {
            b.failed = true;
            err_set(e, EXIT_MEMORY, "out of memory for %d layers", m->config.n_layers);
        }
        if (!b.failed)
            bind_model(&b);
        if (!b.failed)
            m->tokenizer = tokenizer_open(&m->file, e);
        if (m->tokenizer && tokenizer_vocab_size(m->tokenizer) > m->config.vocab_size) {
            err_set(e, EXIT_MODEL,
                    "tokenizer.ggml.tokens: got %d tokens, want at most the %d rows of "
                    "token_embd.weight",
                    tokenizer_vocab_size(m->tokenizer), m->config.vocab_size);
            tokenizer_close(m->tokenizer);
            m->tokenizer = NULL;
        }
        free(b.used);
    }
    if (m->tokenizer)
        return 0;
    err_prefix(e, path);
    model_close(m);
    return -1;
}

void model_close(Model *m)
{
    tokenizer_close(m->tokenizer);
    for (size_t i = 0; i < m->n_owned; i++)
        free(m->owned[i]);
    free(m->owned);
    free(m->layers);
    config_free(&m->config);
    gguf_close(&m->file);
    *m = (Model){0};
}
