/* weights.c - from the tensors of a file to the fields of a Model.
 *
 * stack_bind() and bind_layer() are the binding table: name, field, shape, and whether the tensor
 * must be there. Matrices are views into the map in their own type; vectors (norms and biases) are
 * float, converted where the file has another type. A fused tensor (QKV, gate and up) becomes views
 * of its parts; the key matrices in older files of latent attention are copied, turned. A tensor
 * that no field claims is an error: it would be a part of the model that we leave out.
 */
#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

typedef struct {
    Model *m;
    Stack *s;
    const char *prefix; // of all names of the stack
    bool *used;         // (n_tensors)
    int layer;          // -1 outside the layers
    bool failed;
    Err *e;
} Binder;

enum { NAME_SIZE = 128 };

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

/* "attn_q" + "weight" -> PREFIX"blk.3.attn_q.weight" in a layer, PREFIX"attn_q.weight" outside. */
static char *full_name(const Binder *b, const char *name, const char *suffix, char out[NAME_SIZE])
{
    char layer[24] = "";
    if (b->layer >= 0)
        snprintf(layer, sizeof layer, "blk.%d.", b->layer);
    snprintf(out, NAME_SIZE, "%s%s%s.%s", b->prefix, layer, name, suffix);
    return out;
}

/* "(2, 3)", sizes outermost first. */
static const char *shape_text(const size_t *shape, int n_dims, char out[100])
{
    int at = 0;
    for (int i = 0; i < n_dims; i++)
        at += snprintf(out + at, 100 - (size_t)at, "%s%zu", i ? ", " : "(", shape[i]);
    snprintf(out + at, 100 - (size_t)at, ")");
    return out;
}

/* The tensor if it is there and has this shape. */
static const GgufTensor *find_shape(Binder *b, const char *name, const size_t *shape, int n_dims,
                                    Presence presence)
{
    char seen[100], want[100];
    const GgufTensor *t = presence == ABSENT || b->failed ? NULL : gguf_tensor(&b->m->file, name);
    if (!t) {
        if (presence == REQUIRED)
            fail(b, name, "missing, want shape %s", shape_text(shape, n_dims, want));
        return NULL;
    }
    int ones = 0; // outermost dimensions of 1 are dropped
    while (ones < n_dims - 1 && shape[ones] == 1)
        ones++;
    if (t->n_dims != n_dims - ones
        || memcmp(t->shape, shape + ones, (size_t)t->n_dims * sizeof *shape)) {
        fail(b, name, "got shape %s, want %s", shape_text(t->shape, t->n_dims, seen),
             shape_text(shape, n_dims, want));
        return NULL;
    }
    if (t->type >= TYPE_COUNT || !kernels_at(0)->dequantize[t->type]) {
        fail(b, name, "got type %s, which is not supported", type_info(t->type)->name);
        return NULL;
    }
    b->used[t - b->m->file.tensors] = true;
    return t;
}

/* A matrix; cols = 0 asks for a vector of `rows`. */
static const GgufTensor *find(Binder *b, const char *name, size_t rows, size_t cols,
                              Presence presence)
{
    return find_shape(b, name, (size_t[]){rows, cols}, cols ? 2 : 1, presence);
}

Tensor tensor_of(const GgufTensor *t)
{
    const TypeInfo *ti = type_info(t->type);
    int n = t->n_dims;
    size_t cols = t->shape[n - 1], rows = n > 1 ? t->shape[n - 2] : 1,
           row_bytes = cols / ti->block * ti->bytes;
    assert(n <= 3);
    return (Tensor){.data = t->data,
                    .type = (Type)t->type,
                    .rows = rows,
                    .cols = cols,
                    .row_bytes = row_bytes,
                    .n_matrices = n > 2 ? t->shape[0] : 1,
                    .matrix_bytes = rows * row_bytes};
}

Tensor tensor_view(const Tensor *t, size_t i)
{
    Tensor view = *t;
    assert(i < t->n_matrices);
    view.data = (const char *)t->data + i * t->matrix_bytes;
    view.n_matrices = 1;
    return view;
}

Tensor tensor_rows(const Tensor *t, size_t first, size_t n)
{
    Tensor view = *t;
    assert(t->n_matrices == 1 && first <= t->rows && n <= t->rows - first);
    view.data = (const char *)t->data + first * t->row_bytes;
    view.rows = n;
    return view;
}

/* A (rows, cols) matrix; true if it is there. */
static bool bind_matrix(Binder *b, Tensor *out, const char *name, size_t rows, size_t cols,
                        Presence presence)
{
    char full[NAME_SIZE];
    const GgufTensor *t = find(b, full_name(b, name, "weight", full), rows, cols, presence);
    if (t)
        *out = tensor_of(t);
    return t != NULL;
}

/* n matrices of (rows, cols) in one tensor. */
static void bind_matrices(Binder *b, Tensor *out, const char *name, size_t n, size_t rows,
                          size_t cols)
{
    char full[NAME_SIZE];
    const GgufTensor *t = find_shape(b, full_name(b, name, "weight", full),
                                     (size_t[]){n, rows, cols}, 3, REQUIRED);
    if (!t)
        return;
    *out = tensor_of(t);
    out->n_matrices = n; // the tensor of one expert has two dimensions, or one
    out->rows = rows;
    out->matrix_bytes = rows * out->row_bytes;
}

/* n floats that the Model owns. */
static float *own_floats(Binder *b, size_t n)
{
    Model *m = b->m;
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
    return m->owned[m->n_owned++] = copy;
}

/* n floats of a tensor: the map's own where they are aligned floats, otherwise a converted copy
 * that the Model owns. */
static const float *floats(Binder *b, const GgufTensor *t, size_t n)
{
    if (t->type == TYPE_F32 && (uintptr_t)t->data % sizeof(float) == 0)
        return t->data;
    float *copy = own_floats(b, n);
    if (copy)
        kernels_at(0)->dequantize[t->type](t->data, copy, n);
    return copy;
}

static const float *bind_vector(Binder *b, const char *name, const char *suffix, size_t n,
                                Presence presence)
{
    char full[NAME_SIZE];
    const GgufTensor *t = find(b, full_name(b, name, suffix, full), n, 0, presence);
    return t ? floats(b, t, n) : NULL;
}

static void bind_linear(Binder *b, Linear *out, const char *name, size_t rows, size_t cols,
                        Presence presence, Presence bias)
{
    if (!bind_matrix(b, &out->w, name, rows, cols, presence))
        bias = bias == REQUIRED ? OPTIONAL : bias;
    out->b = bind_vector(b, name, "bias", rows, bias);
}

/* A norm over n values. ABSENT leaves it off; OPTIONAL turns it on where the weight is there. */
static void bind_norm(Binder *b, Norm *out, const char *name, size_t n, Presence presence)
{
    const Config *c = &b->s->config;
    if (c->norm_affine)
        out->w = bind_vector(b, name, "weight", n, presence);
    out->on = out->w || (presence == REQUIRED && !c->norm_affine);
    if (out->on)
        out->b = bind_vector(b, name, "bias", n, c->norm_bias);
}

/* The norm of queries or keys, whose weight has one of three shapes. */
static void bind_qk_norm(Binder *b, Norm *out, const char *name, int n_heads, int key_dim,
                         Presence presence)
{
    const Config *c = &b->s->config;
    size_t width = (size_t)key_dim, heads = (size_t)n_heads;
    char full[NAME_SIZE];
    if (c->qk_norm == QK_NORM_HEADS) {
        const GgufTensor *t = find(b, full_name(b, name, "weight", full), heads, width, presence);
        out->w = t ? floats(b, t, heads * width) : NULL;
    } else {
        out->w = bind_vector(b, name, "weight", c->qk_norm == QK_NORM_FULL ? heads * width : width,
                             presence);
    }
    out->on = out->w != NULL;
    if (out->on)
        out->b = bind_vector(b, name, "bias", c->qk_norm == QK_NORM_HEAD ? width : heads * width,
                             c->qk_norm_bias);
}

/* Queries, keys and values: three tensors, or one with their rows in this order. A layer that takes
 * another one's keys and values may have weights for its own, which it has no use for. */
static void bind_qkv(Binder *b, Layer *l, int i)
{
    const Config *c = &b->s->config;
    const LayerConfig *lc = &c->layers[i];
    size_t dim = (size_t)c->dim, nq = (1 + c->attn_gate) * q_width(lc), nk = k_width(lc),
           nv = lc->values_are_keys ? 0 : v_width(lc);
    Presence own = has_own_kv(c, i) ? REQUIRED : OPTIONAL;
    char full[NAME_SIZE];
    if (!gguf_tensor(&b->m->file, full_name(b, "attn_qkv", "weight", full))) {
        bind_linear(b, &l->wq, "attn_q", nq, dim, REQUIRED, c->qkv_bias);
        bind_linear(b, &l->wk, "attn_k", nk, dim, own, c->qkv_bias);
        if (nv)
            bind_linear(b, &l->wv, "attn_v", nv, dim, own, c->qkv_bias);
        return;
    }
    const GgufTensor *t = find(b, full, nq + nk + nv, dim, REQUIRED);
    const float *bias = bind_vector(b, "attn_qkv", "bias", nq + nk + nv, c->qkv_bias);
    if (!t)
        return;
    Tensor qkv = tensor_of(t);
    l->wq = (Linear){tensor_rows(&qkv, 0, nq), bias};
    l->wk = (Linear){tensor_rows(&qkv, nq, nk), bias ? bias + nq : NULL};
    l->wv = (Linear){tensor_rows(&qkv, nq + nk, nv), bias ? bias + nq + nk : NULL};
}

/* The matrices (rows, cols) of `t`, each turned to (cols, rows) and kept in a type of floats: its
 * own or, of quantised ones, f16, whose rounding is a sixteenth of Q8_0's and less of all others'.
 */
static Tensor turned_matrices(Binder *b, const Tensor *t)
{
    bool is_float = type_info(t->type)->block == 1;
    Type type = is_float ? t->type : TYPE_F16;
    size_t item = type_info(type)->bytes, n = t->n_matrices * t->rows * t->cols;
    Tensor out = {.type = type, .rows = t->cols, .cols = t->rows, .n_matrices = t->n_matrices};
    float *row = mem_alloc(2 * t->cols, sizeof *row), *copy = own_floats(b, (n * item + 3) / 4);
    if (!row && copy) {
        b->failed = true;
        err_set(b->e, EXIT_MEMORY, "out of memory for the weights");
    }
    out.data = copy;
    out.row_bytes = out.cols * item;
    out.matrix_bytes = out.rows * out.row_bytes;
    for (size_t i = 0; row && copy && i < t->n_matrices * t->rows; i++) {
        const char *from = (const char *)t->data + i / t->rows * t->matrix_bytes
                         + i % t->rows * t->row_bytes;
        char *to = (char *)copy + i / t->rows * out.matrix_bytes + i % t->rows * item;
        if (!is_float) {
            kernels_at(0)->dequantize[t->type](from, row, t->cols);
            from = (const char *)(row + t->cols);
            kernels_at(0)->f32_to_f16(row, (uint16_t *)(row + t->cols), t->cols);
        }
        for (size_t j = 0; j < t->cols; j++)
            memcpy(to + j * out.row_bytes, from + j * item, item);
    }
    free(row);
    return out;
}

/* Latent attention. Older files have the rows of a head's key and value matrices in one, attn_kv_b
 * (n_heads * (key_dim + value_dim), rank). There the key matrices are turned, and copied for it. */
static void bind_latent(Binder *b, Layer *l, const LayerConfig *lc)
{
    const Config *c = &b->s->config;
    const Latent *x = &lc->latent;
    size_t dim = (size_t)c->dim, heads = (size_t)lc->n_heads, rank = (size_t)x->rank,
           key = (size_t)x->key_dim, value = (size_t)x->value_dim,
           queries = heads * head_key_width(lc), q_rank = (size_t)x->q_rank;
    char full[NAME_SIZE];
    if (q_rank) {
        bind_linear(b, &l->q_down, "attn_q_a", q_rank, dim, REQUIRED, c->qkv_bias);
        bind_norm(b, &l->q_latent_norm, "attn_q_a_norm", q_rank, REQUIRED);
        bind_linear(b, &l->wq, "attn_q_b", queries, q_rank, REQUIRED, ABSENT);
    } else {
        bind_linear(b, &l->wq, "attn_q", queries, dim, REQUIRED, ABSENT);
    }
    bind_linear(b, &l->kv_down, "attn_kv_a_mqa", k_width(lc), dim, REQUIRED, c->qkv_bias);
    bind_norm(b, &l->kv_latent_norm, "attn_kv_a_norm", rank, REQUIRED);
    if (!gguf_tensor(&b->m->file, full_name(b, "attn_kv_b", "weight", full))) {
        bind_matrices(b, &l->key_up, "attn_k_b", heads, rank, key);
        bind_matrices(b, &l->value_up, "attn_v_b", heads, value, rank);
        return;
    }
    const GgufTensor *t = find(b, full, heads * (key + value), rank, REQUIRED);
    if (!t)
        return;
    Tensor keys = tensor_of(t);
    keys.n_matrices = heads;
    keys.rows = key;
    keys.matrix_bytes = (key + value) * keys.row_bytes;
    l->value_up = keys;
    l->value_up.rows = value;
    l->value_up.data = (const char *)keys.data + key * keys.row_bytes;
    l->key_up = turned_matrices(b, &keys);
}

/* The weights of a convolution (width, taps) are turned, so that those of a row are neighbours. */
static void bind_conv(Binder *b, Layer *l, const char *name, const Recurrence *r)
{
    size_t width = (size_t)r->conv_dim, taps = (size_t)r->taps;
    char full[NAME_SIZE];
    const GgufTensor *t = find(b, full_name(b, name, "weight", full), width, taps, REQUIRED);
    const float *w = t ? floats(b, t, width * taps) : NULL;
    float *turned = w ? own_floats(b, width * taps) : NULL;
    for (size_t i = 0; turned && i < width; i++)
        for (size_t j = 0; j < taps; j++)
            turned[j * width + i] = w[i * taps + j];
    l->conv = turned;
}

static void bind_short_conv(Binder *b, Layer *l, const LayerConfig *lc)
{
    size_t dim = (size_t)b->s->config.dim;
    bind_linear(b, &l->conv_in, "shortconv.in_proj", conv_in_width(lc), dim, REQUIRED, ABSENT);
    bind_conv(b, l, "shortconv.conv", &lc->rec);
    bind_linear(b, &l->wo, "shortconv.out_proj", dim, heads_width(lc), REQUIRED, ABSENT);
}

/* A number for each head, whose tensor has no suffix; Mamba's have a dimension of 1 beside. */
static const float *bind_numbers(Binder *b, const char *name, const LayerConfig *lc)
{
    char full[NAME_SIZE];
    size_t n = (size_t)lc->rec.n_heads;
    bool across = lc->mixer == MIX_MAMBA && n > 1;
    full_name(b, name, "", full)[strlen(full) - 1] = '\0';
    const GgufTensor *t = find(b, full, n, across, REQUIRED);
    return t ? floats(b, t, n) : NULL;
}

static void bind_delta_net(Binder *b, Layer *l, const LayerConfig *lc)
{
    size_t dim = (size_t)b->s->config.dim, n = (size_t)lc->rec.n_heads, inner = heads_width(lc);
    bind_linear(b, &l->conv_in, "attn_qkv", conv_in_width(lc), dim, REQUIRED, ABSENT);
    bind_conv(b, l, "ssm_conv1d", &lc->rec);
    bind_linear(b, &l->mix_gate, "attn_gate", inner, dim, REQUIRED, ABSENT);
    bind_linear(b, &l->mix_beta, "ssm_beta", n, dim, REQUIRED, ABSENT);
    bind_linear(b, &l->mix_dt, "ssm_alpha", n, dim, REQUIRED, ABSENT);
    l->mix_dt.b = bind_vector(b, "ssm_dt", "bias", n, REQUIRED);
    l->decay = bind_numbers(b, "ssm_a", lc);
    bind_norm(b, &l->mix_norm, "ssm_norm", (size_t)lc->rec.value_dim, REQUIRED);
    bind_linear(b, &l->wo, "ssm_out", dim, inner, REQUIRED, ABSENT);
}

/* One matrix makes gates, the convolution's input and dt. */
static void bind_mamba(Binder *b, Layer *l, const LayerConfig *lc)
{
    size_t dim = (size_t)b->s->config.dim, n = (size_t)lc->rec.n_heads, inner = heads_width(lc),
           conv = conv_in_width(lc), groups = (size_t)lc->rec.n_key_heads;
    char full[NAME_SIZE];
    Tensor in = {0};
    if (bind_matrix(b, &in, "ssm_in", inner + conv + n, dim, REQUIRED)) {
        l->mix_gate.w = tensor_rows(&in, 0, inner);
        l->conv_in.w = tensor_rows(&in, inner, conv);
        l->mix_dt.w = tensor_rows(&in, inner + conv, n);
    }
    bind_conv(b, l, "ssm_conv1d", &lc->rec);
    l->conv_bias = bind_vector(b, "ssm_conv1d", "bias", conv, b->s->config.conv_bias);
    l->mix_dt.b = bind_vector(b, "ssm_dt", "bias", n, REQUIRED);
    l->decay = bind_numbers(b, "ssm_a", lc);
    l->skip = bind_numbers(b, "ssm_d", lc);
    const GgufTensor *t = find(b, full_name(b, "ssm_norm", "weight", full), groups, inner / groups,
                               REQUIRED);
    l->mix_norm = (Norm){.on = t, .w = t ? floats(b, t, inner) : NULL};
    bind_linear(b, &l->wo, "ssm_out", dim, inner, REQUIRED, ABSENT);
}

static void bind_ffn(Binder *b, Layer *l, size_t hidden)
{
    const Config *c = &b->s->config;
    size_t dim = (size_t)c->dim;
    char full[NAME_SIZE];
    bind_linear(b, &l->w_down, "ffn_down", dim, hidden, REQUIRED, c->ffn_bias);
    if (c->gated && c->fused_gate_up) {
        const GgufTensor *t = find(b, full_name(b, "ffn_up", "weight", full), 2 * hidden, dim,
                                   REQUIRED);
        if (t) {
            Tensor both = tensor_of(t);
            l->w_gate.w = tensor_rows(&both, 0, hidden);
            l->w_up.w = tensor_rows(&both, hidden, hidden);
        }
        return;
    }
    bind_linear(b, &l->w_up, "ffn_up", hidden, dim, REQUIRED, c->ffn_bias);
    if (c->gated)
        bind_linear(b, &l->w_gate, "ffn_gate", hidden, dim, REQUIRED, c->ffn_bias);
}

/* The biases of n matrices: (n, rows) floats. */
static const float *bind_table(Binder *b, const char *name, size_t n, size_t rows)
{
    char full[NAME_SIZE];
    const GgufTensor *t = find_shape(b, full_name(b, name, "bias", full), (size_t[]){n, rows}, 2,
                                     REQUIRED);
    return t ? floats(b, t, n * rows) : NULL;
}

/* The router, the experts' matrices and the expert that all rows share. Newer files of llama.cpp
 * may hold gate and up of an expert in one matrix. */
static void bind_experts(Binder *b, Layer *l, const LayerConfig *lc)
{
    const Config *c = &b->s->config;
    size_t dim = (size_t)c->dim, n = (size_t)c->experts.n, hidden = (size_t)lc->expert_dim,
           shared = c->experts.beside ? 0 : (size_t)lc->hidden_dim;
    char full[NAME_SIZE];
    bool fused = c->gated
              && gguf_tensor(&b->m->file, full_name(b, "ffn_gate_up_exps", "weight", full));
    bind_linear(b, &l->router, "ffn_gate_inp", n, dim, REQUIRED, c->experts.bias);
    l->choice_bias = bind_vector(b, "exp_probs_b", "bias", n, c->experts.choice_bias);
    bind_matrices(b, &l->down_exps, "ffn_down_exps", n, dim, hidden);
    if (fused)
        bind_matrices(b, &l->gate_exps, "ffn_gate_up_exps", n, 2 * hidden, dim);
    else
        bind_matrices(b, &l->up_exps, "ffn_up_exps", n, hidden, dim);
    if (c->gated && !fused)
        bind_matrices(b, &l->gate_exps, "ffn_gate_exps", n, hidden, dim);
    if (c->experts.bias == REQUIRED) {
        l->down_exps_b = bind_table(b, "ffn_down_exps", n, dim);
        l->up_exps_b = fused ? NULL : bind_table(b, "ffn_up_exps", n, hidden);
        if (c->gated)
            l->gate_exps_b = fused ? bind_table(b, "ffn_gate_up_exps", n, 2 * hidden)
                                   : bind_table(b, "ffn_gate_exps", n, hidden);
    }
    if (!shared)
        return;
    bind_linear(b, &l->w_up, "ffn_up_shexp", shared, dim, REQUIRED, ABSENT);
    if (c->gated)
        bind_linear(b, &l->w_gate, "ffn_gate_shexp", shared, dim, REQUIRED, ABSENT);
    bind_linear(b, &l->w_down, "ffn_down_shexp", dim, shared, REQUIRED, ABSENT);
    if (c->experts.shared_gate)
        bind_linear(b, &l->shared_gate, "ffn_gate_inp_shexp", 1, dim, REQUIRED, ABSENT);
}

/* The parts of a layer whose experts stand beside its dense FFN, apart from both. */
static void bind_beside(Binder *b, Layer *l)
{
    size_t dim = (size_t)b->s->config.dim, n = (size_t)b->s->config.experts.n;
    bind_norm(b, &l->dense_post_norm, "post_ffw_norm_1", dim, REQUIRED);
    bind_norm(b, &l->experts_norm, "pre_ffw_norm_2", dim, REQUIRED);
    bind_norm(b, &l->experts_post_norm, "post_ffw_norm_2", dim, REQUIRED);
    l->router_norm = (Norm){.on = true,
                            .w = bind_vector(b, "ffn_gate_inp", "scale", dim, REQUIRED)};
    l->expert_scale = bind_vector(b, "ffn_down_exps", "scale", n, OPTIONAL);
}

/* What a layer makes of its part of the token's embedding. */
static void bind_per_layer(Binder *b, Layer *l)
{
    size_t dim = (size_t)b->s->config.dim, width = (size_t)b->s->config.per_layer_dim;
    bind_linear(b, &l->per_layer_gate, "inp_gate", width, dim, REQUIRED, ABSENT);
    bind_linear(b, &l->per_layer_proj, "proj", dim, width, REQUIRED, ABSENT);
    bind_norm(b, &l->per_layer_post_norm, "post_norm", dim, REQUIRED);
}

/* Some of llama.cpp's architectures call a tensor differently: the name that the file has, `usual`
 * where it has both or neither. */
static const char *name_of(Binder *b, const char *usual, const char *other)
{
    char full[NAME_SIZE];
    bool has_usual = gguf_tensor(&b->m->file, full_name(b, usual, "weight", full));
    return !has_usual && gguf_tensor(&b->m->file, full_name(b, other, "weight", full)) ? other
                                                                                       : usual;
}

static void bind_attention(Binder *b, Layer *l, int i)
{
    const Config *c = &b->s->config;
    const LayerConfig *lc = &c->layers[i];
    char full[NAME_SIZE];
    if (lc->latent.rank)
        bind_latent(b, l, lc);
    else
        bind_qkv(b, l, i);
    if (c->qk_norm != QK_NORM_NONE) {
        bind_qk_norm(b, &l->q_norm, "attn_q_norm", lc->n_heads, lc->key_dim, c->qk_norm_weight);
        bind_qk_norm(b, &l->k_norm, "attn_k_norm", lc->n_kv_heads, lc->key_dim,
                     has_own_kv(c, i) ? c->qk_norm_weight : OPTIONAL);
    }
    if (c->bias == BIAS_TABLE) {
        size_t heads = (size_t)lc->n_heads, distances = 2 * (size_t)c->bias_reach + 1;
        const GgufTensor *t = find(b, full_name(b, "attn_rel_b", "weight", full), heads, distances,
                                   REQUIRED);
        l->bias = t ? floats(b, t, heads * distances) : NULL;
    }
    if (c->sinks)
        l->sinks = bind_vector(b, "attn_sinks", "weight", (size_t)lc->n_heads, REQUIRED);
    bind_linear(b, &l->wo, "attn_output", (size_t)c->dim, wo_width(lc), REQUIRED, c->wo_bias);
}

static void bind_layer(Binder *b, int i)
{
    const Config *c = &b->s->config;
    const LayerConfig *lc = &c->layers[i];
    Layer *l = &b->s->layers[i];
    size_t dim = (size_t)c->dim;
    b->layer = i;

    bind_norm(b, &l->attn_norm, "attn_norm", dim,
              !c->pre_norm               ? ABSENT
              : c->plain_first && i == 0 ? OPTIONAL
                                         : REQUIRED);
    switch (lc->mixer) {
    case MIX_SHORT_CONV: bind_short_conv(b, l, lc); break;
    case MIX_DELTA_NET: bind_delta_net(b, l, lc); break;
    case MIX_MAMBA: bind_mamba(b, l, lc); break;
    default: bind_attention(b, l, i);
    }
    bind_norm(b, &l->attn_post_norm, name_of(b, "post_attention_norm", "attn_output_norm"), dim,
              c->post_norm ? REQUIRED : ABSENT);
    bind_norm(b, &l->ffn_norm,
              c->post_norm ? "ffn_norm" : name_of(b, "ffn_norm", "post_attention_norm"), dim,
              c->pre_norm && !c->shared_norm ? REQUIRED : ABSENT);
    if (lc->expert_dim)
        bind_experts(b, l, lc);
    if (lc->expert_dim && c->experts.beside)
        bind_beside(b, l);
    if (!lc->expert_dim || c->experts.beside)
        bind_ffn(b, l, (size_t)lc->hidden_dim);
    if (c->per_layer_dim)
        bind_per_layer(b, l);
    l->out_scale = bind_vector(b, "layer_output_scale", "weight", 1, c->out_scale);
    bind_norm(b, &l->ffn_post_norm, name_of(b, "post_ffw_norm", "layer_output_norm"), dim,
              c->post_norm ? REQUIRED : ABSENT);
    if (c->attn_norm_2) { // Falcon 40B: this one feeds attention, attn_norm the FFN
        Norm second = {0};
        bind_norm(b, &second, "attn_norm_2", dim, OPTIONAL);
        if (second.on) {
            l->ffn_norm = l->attn_norm;
            l->attn_norm = second;
        }
    }
}

/* Factors by which the rotation frequencies are divided: one set, or longrope's two. */
static void bind_rope_factors(Binder *b)
{
    Stack *s = b->s;
    const Rope *r = s->config.ropes;
    bool is_long = r->scaling == ROPE_LONGROPE;
    size_t half = (size_t)r->dim / 2;
    s->rope_factors[0] = bind_vector(b, is_long ? "rope_factors_short" : "rope_freqs", "weight",
                                     half, is_long || r->needs_factors ? REQUIRED : OPTIONAL);
    if (is_long)
        s->rope_factors[1] = bind_vector(b, "rope_factors_long", "weight", half, REQUIRED);
    for (int f = 0; f < 2; f++)
        for (size_t i = 0; s->rope_factors[f] && i < half; i++)
            if (!(s->rope_factors[f][i] > 0))
                fail(b, "rope factors", "got %g, want numbers above 0", s->rope_factors[f][i]);
    if (s->rope_factors[0] && s->config.n_ropes > 1 && r[1].use_factors && r[1].dim != r[0].dim)
        fail(b, "rope factors", "windowed layers rotate %d values and not %d, want the same",
             r[1].dim, r[0].dim);
}

/* Row 0 of the table of token types. */
static void bind_token_type(Binder *b)
{
    const GgufTensor *t = gguf_tensor(&b->m->file, "token_types.weight");
    size_t rows = t && t->n_dims > 1 ? t->shape[t->n_dims - 2] : 1;
    Tensor table = {0};
    if (!bind_matrix(b, &table, "token_types", rows, (size_t)b->s->config.dim,
                     b->s->config.token_types))
        return;
    float *row = own_floats(b, table.cols);
    if (row)
        kernels_at(0)->dequantize[table.type](table.data, row, table.cols);
    b->s->token_type = row;
}

int stack_bind(Model *m, Stack *s, const char *prefix, bool *used, Err *e)
{
    Binder binder = {m, s, prefix, used, -1, false, e}, *b = &binder;
    const Config *c = &s->config;
    size_t dim = (size_t)c->dim, vocab = (size_t)c->vocab_size;
    s->layers = mem_zalloc((size_t)c->n_layers, sizeof *s->layers);
    if (!s->layers)
        return err_set(e, EXIT_MEMORY, "out of memory for %d layers", c->n_layers);
    bind_matrix(b, &s->token_embd, "token_embd", vocab, dim, REQUIRED);
    if (c->pos == POS_LEARNED)
        bind_matrix(b, &s->pos_embd, "position_embd", (size_t)c->seq_len + (size_t)c->pos_offset,
                    dim, REQUIRED);
    bind_token_type(b);
    if (c->per_layer_dim) {
        size_t width = (size_t)c->per_layer_dim, all = (size_t)c->n_layers * width;
        bind_matrix(b, &s->per_layer_embd, "per_layer_token_embd", vocab, all, REQUIRED);
        bind_linear(b, &s->per_layer_proj, "per_layer_model_proj", all, dim, REQUIRED, ABSENT);
        bind_norm(b, &s->per_layer_norm, "per_layer_proj_norm", width, REQUIRED);
    }
    bind_norm(b, &s->embd_norm, "token_embd_norm", dim, c->embd_norm ? REQUIRED : ABSENT);
    bind_norm(b, &s->final_norm, // LFM2's files call it as others do that of the embeddings
              c->embd_norm ? "output_norm" : name_of(b, "output_norm", "token_embd_norm"), dim,
              c->final_norm ? REQUIRED : ABSENT);
    if (!bind_matrix(b, &s->output.w, "output", vocab, dim, c->output_weight))
        s->output.w = s->token_embd;
    s->output.b = bind_vector(b, "output", "bias", vocab, c->output_bias);
    if (c->pos == POS_ROPE)
        bind_rope_factors(b);
    for (int i = 0; i < c->n_layers; i++)
        bind_layer(b, i);
    return b->failed ? -1 : 0;
}

/* The tensors of layers that do not run. */
static void skip_layers(const Model *m, const Config *c, bool *used)
{
    char begin[24];
    for (int layer = c->n_layers; layer < c->n_layers + c->n_skipped; layer++) {
        size_t n = (size_t)snprintf(begin, sizeof begin, "blk.%d.", layer);
        for (size_t i = 0; i < m->file.n_tensors; i++) {
            Str name = m->file.tensors[i].name;
            used[i] = used[i] || (name.len >= n && !memcmp(name.ptr, begin, n));
        }
    }
}

/* Every tensor must have been used; with this the parameters are counted. */
static int check_used(Model *m, const bool *used, Err *e)
{
    char shown[96];
    for (size_t i = 0; i < m->file.n_tensors; i++) {
        const GgufTensor *t = &m->file.tensors[i];
        if (!used[i])
            return err_set(e, EXIT_MODEL, "tensor %s: the architecture %s has no place for it",
                           str_escape(t->name, shown, sizeof shown), model_stack(m)->config.arch);
        m->n_params += t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
    }
    return 0;
}

/* The tokenizer, unless the file has none and none is needed. Each token must have an embedding. */
static int open_tokenizer(Model *m, bool needed, Err *e)
{
    int n_rows = model_stack(m)->config.vocab_size;
    if (!needed && !gguf_key(&m->file, "tokenizer.ggml.model"))
        return 0;
    m->tokenizer = model_tokenizer(&m->file, e);
    if (!m->tokenizer)
        return -1;
    int n = tokenizer_vocab_size(m->tokenizer);
    if (n > n_rows)
        return err_set(e, EXIT_MODEL,
                       "tokenizer.ggml.tokens: got %d tokens, want at most the %d rows of "
                       "token_embd.weight",
                       n, n_rows);
    return 0;
}

int model_open(Model *m, const char *path, bool needs_tokenizer, Err *e)
{
    *m = (Model){0};
    if (gguf_open(&m->file, path, e))
        return -1;
    bool *used = NULL;
    Config config;
    int rc = config_read(&config, &m->file, e);
    Stack *s = config.encoder ? &m->encoder : &m->decoder;
    s->config = config;
    if (!rc && !(used = mem_zalloc(m->file.n_tensors, sizeof *used)))
        rc = err_set(e, EXIT_MEMORY, "out of memory for %zu tensors", m->file.n_tensors);
    if (!rc)
        skip_layers(m, &s->config, used);
    rc = rc || stack_bind(m, s, "", used, e) || check_used(m, used, e)
      || open_tokenizer(m, needs_tokenizer, e);
    free(used);
    if (!rc)
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
    for (Stack *s = &m->encoder; s; s = s == &m->encoder ? &m->decoder : NULL) {
        free(s->layers);
        config_free(&s->config);
    }
    gguf_close(&m->file);
    *m = (Model){0};
}
