/* session.c - one arena for scratch and KV cache; sequences made of reference-counted blocks of 64 positions.
 *
 * A block holds, for every layer and key/value head, the keys (key_dim, 64) and then the values (64, value_dim) of 64
 * positions of one sequence, in halves, floats or signed bytes; behind bytes stand the scales (1 + groups, 64): one of
 * each position's values, then one of each KV_GROUP of its key. Keys lie with the position innermost, so that both
 * products of attention run along contiguous memory, scales beside scores. Only this file knows the layout. Forking shares full blocks; a block that
 * somebody else holds too is copied before it is written. Pages of the arena are touched when they are first used, so
 * a long context costs memory only as it fills.
 */
#include <math.h>
#include <string.h>

#include "model.h"
#include "quants.h"

static size_t max_of(const Model *m, size_t (*get)(const Config *, const LayerConfig *))
{
    size_t max = 0;
    for (int i = 0; i < m->config.n_layers; i++) {
        size_t v = get(&m->config, &m->config.layers[i]);
        max = v > max ? v : max;
    }
    return max;
}

static size_t ffn_width(const Config *c, const LayerConfig *l) { (void)c; return (size_t)l->hidden_dim; }
static size_t head_count(const Config *c, const LayerConfig *l) { (void)c; return (size_t)l->n_heads; }

/* Reserve everything; run once to add up the sizes and once to receive the pieces. */
static void plan(Session *s)
{
    const Model *m = s->model;
    const Config *c = &m->config;
    const SessionParams *p = &s->params;
    Arena *a = &s->arena;
    size_t T = (size_t)p->max_batch, R = (size_t)p->max_rows, n_logits = (size_t)p->max_logits, dim = (size_t)c->dim, half = (size_t)c->rope_dim / 2;
    size_t n_seqs = (size_t)p->n_seqs, n_layers = (size_t)c->n_layers, f = sizeof(float);

    s->seqs = arena_reserve(a, n_seqs, sizeof *s->seqs);
    int *blocks = arena_reserve(a, n_seqs * (size_t)s->max_blocks, sizeof *blocks);
    s->refs = arena_reserve(a, (size_t)s->n_blocks, sizeof *s->refs);
    s->layer_offset = arena_reserve(a, n_layers, sizeof *s->layer_offset);
    s->pool = arena_reserve(a, (size_t)s->n_blocks, s->block_bytes);
    if (a->base)
        for (int i = 0; i < p->n_seqs; i++)
            s->seqs[i].blocks = blocks + (size_t)i * (size_t)s->max_blocks;

    size_t hidden = max_of(m, ffn_width), cols = hidden > dim ? hidden : dim, att = max_of(m, att_width);
    s->pos = arena_reserve(a, T, sizeof *s->pos);
    s->x = arena_reserve(a, T * dim, f);
    s->xn = arena_reserve(a, (R > n_logits ? R : n_logits) * dim, f);
    s->q = arena_reserve(a, T * max_of(m, q_width), f);
    s->k_new = arena_reserve(a, R * max_of(m, k_width), f);
    s->v_new = arena_reserve(a, R * max_of(m, v_width), f);
    s->att = arena_reserve(a, R * att, f);
    s->attn_out = arena_reserve(a, R * dim, f);
    s->hidden = arena_reserve(a, R * hidden, f);
    s->gate = arena_reserve(a, R * hidden, f);
    s->logits = arena_reserve(a, n_logits * (size_t)c->vocab_size, f);
    if (p->keep_soft)
        s->soft = arena_reserve(a, T * max_of(m, head_count) * 2, f);
    s->inv_freq = arena_reserve(a, 2 * 2 * half, f);
    s->cos_sin = arena_reserve(a, 2 * T * half * 2, f);
    s->rope_scale = arena_reserve(a, 2, f);
    s->alibi_slopes = arena_reserve(a, n_layers * max_of(m, head_count), f);
    s->partial = arena_reserve(a, attention_partial(c, p->seq_len), f);

    cols = att > cols ? att : cols;
    s->x8 = arena_reserve(a, (R > n_logits ? R : n_logits) * (cols / 32), sizeof *s->x8);
    s->x16 = arena_reserve(a, (R > n_logits ? R : n_logits) * cols, sizeof *s->x16);
    size_t for_matmul = GEMM_ROWS * (cols + PANEL_PAD), for_attention = attention_scratch(c);
    s->scratch_floats = (for_matmul > for_attention ? for_matmul : for_attention) + 16;
    s->scratch = arena_reserve(a, (size_t)p->n_threads * s->scratch_floats, f);
}

const char *const kv_names[] = {[KV_F16] = "f16", [KV_F32] = "f32", [KV_Q8] = "q8", NULL};

/* Of so many elements of each of a block's positions. */
static size_t items_bytes(KvType t, int width)
{
    static const size_t item[] = {[KV_F16] = 2, [KV_F32] = 4, [KV_Q8] = 1};
    return (size_t)width * KV_BLOCK * item[t];
}

/* A head's part of a block, and a layer's. */
static size_t head_bytes(const Config *c, KvType t)
{
    size_t groups = ((size_t)c->key_dim + KV_GROUP - 1) / KV_GROUP;
    return items_bytes(t, c->key_dim + c->value_dim) + (t == KV_Q8 ? (1 + groups) * KV_BLOCK * sizeof(float) : 0);
}

static size_t layer_bytes(const Config *c, const LayerConfig *l, KvType t)
{
    return (size_t)l->n_kv_heads * head_bytes(c, t);
}

static void set_sizes(Session *s, const Model *m, const SessionParams *p)
{
    *s = (Session){.model = m, .params = *p, .k = p->kernels};
    if (!p->max_rows || p->max_rows > p->max_batch)
        s->params.max_rows = p->max_batch;
    for (int i = 0; i < m->config.n_layers; i++)
        s->block_bytes += layer_bytes(&m->config, &m->config.layers[i], p->kv_type);
    s->max_blocks = (p->seq_len + KV_BLOCK - 1) / KV_BLOCK;
    s->n_blocks = s->max_blocks * p->n_seqs;
}

size_t session_bytes(const Model *m, const SessionParams *p)
{
    Session s;
    set_sizes(&s, m, p);
    plan(&s);
    return s.arena.overflow ? SIZE_MAX : s.arena.used;
}

/* Head h's bias falls by slope(h) per position of distance: powers of 2^(-max/n) for the n heads that are a power of
 * two, and the odd powers of its square root for the rest (Press et al. 2022, as BLOOM and MPT implement it). */
static float alibi_slope(int h, int n_heads, float max)
{
    int n = 1;
    while (n * 2 <= n_heads)
        n *= 2;
    float exponent = h < n ? -max / (float)n * (float)(h + 1) : -max / 2 / (float)n * (float)(2 * (h - n) + 1);
    return exp2f(exponent);
}

int session_init(Session *s, const Model *m, const SessionParams *p, Err *e)
{
    const Config *c = &m->config;
    set_sizes(s, m, p);
    if (c->pos == POS_LEARNED && p->seq_len > c->seq_len)
        return err_set(e, EXIT_USAGE, "context: got %d positions, want at most the %d that the model has learned", p->seq_len,
                       c->seq_len);
    plan(s);
    if (arena_commit(&s->arena, e))
        return -1;
    plan(s);
    s->threads.n_threads = threads_granted(p->n_threads);
    s->threads.stop = p->stop;

    size_t offset = 0;
    s->max_heads = (int)max_of(m, head_count);
    for (int i = 0; i < c->n_layers; i++) {
        const LayerConfig *l = &c->layers[i];
        s->layer_offset[i] = offset;
        offset += layer_bytes(c, l, p->kv_type);
        for (int h = 0; c->pos == POS_ALIBI && h < l->n_heads; h++)
            s->alibi_slopes[i * s->max_heads + h] = alibi_slope(h, l->n_heads, c->alibi_max);
    }
    if (c->pos == POS_ROPE)
        for (int i = 0; i < 2 * c->n_ropes; i++)
            rope_init(m, i / 2, i % 2, s->inv_freq + (size_t)i * (size_t)(c->rope_dim / 2), &s->rope_scale[i / 2]);
    for (int i = 0; i < p->n_seqs * s->max_blocks; i++)
        s->seqs[0].blocks[i] = -1;
    return 0;
}

void session_free(Session *s)
{
    arena_free(&s->arena);
    *s = (Session){0};
}

float *session_scratch(const Session *s, int thread)
{
    return s->scratch + (size_t)thread * s->scratch_floats;
}

/* ---- blocks ------------------------------------------------------------------------------------------------ */

static int block_take(Session *s)
{
    for (int i = 0; i < s->n_blocks; i++)
        if (!s->refs[i]) {
            s->refs[i] = 1;
            return i;
        }
    return -1;
}

static char *block_at(const Session *s, int id)
{
    return s->pool + (size_t)id * s->block_bytes;
}

/* A block of our own with the same contents; -1 when the pool is empty. */
static int block_copy(Session *s, int id)
{
    int own = block_take(s);
    if (own >= 0)
        memcpy(block_at(s, own), block_at(s, id), s->block_bytes);
    return own;
}

void session_truncate(Session *s, int seq, int n)
{
    Sequence *q = &s->seqs[seq];
    n = n < q->n_pos ? n : q->n_pos;
    for (int b = (n + KV_BLOCK - 1) / KV_BLOCK; b < s->max_blocks && q->blocks[b] >= 0; b++) {
        s->refs[q->blocks[b]]--;
        q->blocks[b] = -1;
    }
    q->n_pos = n;
}

int session_expect(Session *s, int seq, int n)
{
    const Rope *r = &s->model->config.ropes[0];
    Sequence *q = &s->seqs[seq];
    bool is_long = s->model->config.pos == POS_ROPE && r->scaling == ROPE_LONGROPE && n > r->orig_seq_len;
    if (q->is_long != is_long)
        session_truncate(s, seq, 0);
    q->is_long = is_long;
    return q->n_pos;
}

int session_fork(Session *s, int dst, int src, int n)
{
    if (dst == src)
        return 0;
    Sequence *to = &s->seqs[dst];
    const Sequence *from = &s->seqs[src];
    session_truncate(s, dst, 0);
    to->is_long = from->is_long;
    n = n < from->n_pos ? n : from->n_pos;
    for (int b = 0; b * KV_BLOCK < n; b++) {
        bool full = (b + 1) * KV_BLOCK <= n;
        to->blocks[b] = full ? from->blocks[b] : block_copy(s, from->blocks[b]);
        if (to->blocks[b] < 0)
            return -1;
        if (full)
            s->refs[to->blocks[b]]++;
        to->n_pos = full ? (b + 1) * KV_BLOCK : n;
    }
    return 0;
}

int session_grow(Session *s, int seq, int n, Err *e)
{
    Sequence *q = &s->seqs[seq];
    if (n > s->params.seq_len)
        return err_set(e, EXIT_USAGE, "context: got %d positions, want at most %d (-c)", n, s->params.seq_len);
    for (int b = q->n_pos / KV_BLOCK; b * KV_BLOCK < n; b++) {
        int old = q->blocks[b], id = old;
        if (old < 0)
            id = block_take(s);
        else if (s->refs[old] > 1 && (id = block_copy(s, old)) >= 0)
            s->refs[old]--;
        if (id < 0)
            return err_set(e, EXIT_MEMORY, "KV cache: all %d blocks are in use", s->n_blocks);
        q->blocks[b] = id;
    }
    return 0;
}

/* ---- keys and values ---------------------------------------------------------------------------------------- */

const void *session_keys(const Session *s, int layer, int kv_head, int seq, int block)
{
    return block_at(s, s->seqs[seq].blocks[block]) + s->layer_offset[layer]
         + (size_t)kv_head * head_bytes(&s->model->config, s->params.kv_type);
}

const void *session_values(const Session *s, int layer, int kv_head, int seq, int block)
{
    const char *keys = session_keys(s, layer, kv_head, seq, block);
    return keys + items_bytes(s->params.kv_type, s->model->config.key_dim);
}

const float *session_scales(const Session *s, int layer, int kv_head, int seq, int block)
{
    const char *values = session_values(s, layer, kv_head, seq, block);
    return (const float *)(const void *)(values + items_bytes(s->params.kv_type, s->model->config.value_dim));
}

void session_read(const Session *s, int layer, int kv_head, int seq, int block, float *keys, float *values)
{
    size_t n_keys = (size_t)s->model->config.key_dim * KV_BLOCK, value_dim = (size_t)s->model->config.value_dim;
    const void *k = session_keys(s, layer, kv_head, seq, block), *v = session_values(s, layer, kv_head, seq, block);
    if (s->params.kv_type != KV_Q8) {
        Type type = s->params.kv_type == KV_F32 ? TYPE_F32 : TYPE_F16;
        s->k->dequantize[type](k, keys, n_keys);
        s->k->dequantize[type](v, values, KV_BLOCK * value_dim);
        return;
    }
    const float *scales = session_scales(s, layer, kv_head, seq, block);
    for (size_t i = 0; i < n_keys; i++)
        keys[i] = (float)((const int8_t *)k)[i] * scales[(1 + i / KV_BLOCK / KV_GROUP) * KV_BLOCK + i % KV_BLOCK];
    for (size_t i = 0; i < KV_BLOCK * value_dim; i++)
        values[i] = (float)((const int8_t *)v)[i] * scales[i / value_dim];
}

/* One head's keys (key_dim) and values (value_dim) of the position that is number `at` of a block whose part for the head
 * begins at p. */
static void store_head(const Session *s, char *p, size_t at, const float *k, const float *v)
{
    const Config *c = &s->model->config;
    KvType type = s->params.kv_type;
    size_t key_dim = (size_t)c->key_dim, value_dim = (size_t)c->value_dim;
    void *keys = p, *values = p + items_bytes(type, c->key_dim);
    if (type == KV_F32) {
        for (size_t i = 0; i < key_dim; i++)
            ((float *)keys)[i * KV_BLOCK + at] = k[i];
        memcpy((float *)values + at * value_dim, v, value_dim * sizeof *v);
    } else if (type == KV_F16) {
        for (size_t i = 0; i < key_dim; i++)
            ((uint16_t *)keys)[i * KV_BLOCK + at] = f32_f16(k[i]);
        s->k->f32_to_f16(v, (uint16_t *)values + at * value_dim, value_dim);
    } else {
        float inverse = 0, *scales = (float *)(void *)(p + items_bytes(type, c->key_dim + c->value_dim));
        for (size_t i = 0; i < key_dim; i++) {
            if (i % KV_GROUP == 0)
                scales[(1 + i / KV_GROUP) * KV_BLOCK + at] = byte_scale(k + i, key_dim - i < KV_GROUP ? key_dim - i : KV_GROUP, &inverse);
            ((int8_t *)keys)[i * KV_BLOCK + at] = (int8_t)to_byte(k[i], inverse);
        }
        scales[at] = byte_scale(v, value_dim, &inverse);
        for (size_t i = 0; i < value_dim; i++)
            ((int8_t *)values)[at * value_dim + i] = (int8_t)to_byte(v[i], inverse);
    }
}

void session_store(Session *s, int layer, int seq, int pos, const float *k, const float *v)
{
    const Config *c = &s->model->config;
    char *base = block_at(s, s->seqs[seq].blocks[pos / KV_BLOCK]) + s->layer_offset[layer];
    for (int h = 0; h < c->layers[layer].n_kv_heads; h++)
        store_head(s, base + (size_t)h * head_bytes(c, s->params.kv_type), (size_t)(pos % KV_BLOCK), k + h * c->key_dim, v + h * c->value_dim);
}
