/* cache.c - keys and values of sequences, in blocks of 64 positions: who holds which block, how
 * they lie in it, and the products with them.
 *
 * A block belongs to one sequence or, after a fork, to several, and holds 64 of its positions for
 * every layer that has keys and values of its own. In it each key/value head has its keys
 * transposed, (key_dim, KV_BLOCK), then its values, (KV_BLOCK, value_dim), so that both products of
 * attention run along contiguous memory; where values are the beginnings of keys there are none;
 * with bytes then come their scales: (KV_BLOCK) of the values, (groups, KV_BLOCK) of the keys. Only
 * this file knows the layout: attention asks for a KvTile and gets the products with the queries
 * and weights of some rows.
 *
 * Forks share full blocks; a block that another sequence holds too is copied before it is written.
 * States of recurrent layers are copied.
 * Pages of the pool are touched when they are first used, so a long context costs memory only as it
 * fills.
 */
#include <math.h>
#include <string.h>

#include "model.h"
#include "base/blocks.h"

const char *const kv_names[] = {[KV_F16] = "f16", [KV_F32] = "f32", [KV_Q8] = "q8", NULL};

/* ---- sizes ----------------------------------------------------------------------------------- */

enum { MAX_STEP = 1024 }; // blocks between two states that are kept

/* Bytes of `width` elements of each of a block's positions. */
static size_t items_bytes(KvType t, int width)
{
    static const size_t item[] = {[KV_F16] = 2, [KV_F32] = 4, [KV_Q8] = 1};
    return (size_t)width * KV_BLOCK * item[t];
}

/* Groups of a key's values that share a scale in bytes. */
static size_t key_groups(const LayerConfig *l)
{
    return ((size_t)l->key_dim + KV_GROUP - 1) / KV_GROUP;
}

/* Values of a head beside its key. */
static int own_values(const LayerConfig *l)
{
    return l->values_in_keys ? 0 : l->value_dim;
}

/* A head's part of a block, and a layer's. */
static size_t head_bytes(const LayerConfig *l, KvType t)
{
    size_t scales = t == KV_Q8 ? (1 + key_groups(l)) * KV_BLOCK * sizeof(float) : 0;
    return items_bytes(t, l->key_dim + own_values(l)) + scales;
}

static size_t layer_bytes(const Config *c, int layer, KvType t)
{
    const LayerConfig *l = &c->layers[layer];
    return has_own_kv(c, layer) ? (size_t)l->n_kv_heads * head_bytes(l, t) : 0;
}

void cache_size(Cache *c, const Config *config, const SessionParams *p)
{
    *c = (Cache){.config = config,
                 .k = p->kernels,
                 .type = p->kv_type,
                 .cut = p->kv_cut,
                 .seq_len = p->seq_len,
                 .n_seqs = p->n_seqs,
                 .pairs = p->kernels && p->kernels->bf16 && !p->exact && p->kv_type != KV_F32};
    for (int i = 0; i < config->n_layers; i++)
        c->block_bytes += layer_bytes(config, i, p->kv_type);
    c->max_blocks = kv_blocks_of(p->seq_len);
    c->n_blocks = p->n_blocks ? p->n_blocks : c->max_blocks * p->n_seqs;
    for (int i = 0; i < config->n_layers; i++)
        c->state_floats += align16(state_width(&config->layers[i]));
    size_t blocks = 1;
    while (blocks < MAX_STEP && cache_state_bytes(c) > blocks * c->block_bytes)
        blocks *= 2; // kept states take no more memory than keys and values
    c->state_step = (int)(blocks * KV_BLOCK);
    c->n_kept = c->state_floats ? p->seq_len / c->state_step : 0;
}

void cache_plan(Cache *c, Arena *a)
{
    size_t n_seqs = (size_t)c->n_seqs, max_blocks = (size_t)c->max_blocks;
    c->seqs = arena_reserve(a, n_seqs, sizeof *c->seqs);
    int *blocks = arena_reserve(a, n_seqs * max_blocks, sizeof *blocks);
    c->refs = arena_reserve(a, (size_t)c->n_blocks, sizeof *c->refs);
    c->layer_offset = arena_reserve(a, (size_t)c->config->n_layers, sizeof *c->layer_offset);
    c->pool = arena_reserve(a, (size_t)c->n_blocks, c->block_bytes);
    c->state_offset = arena_reserve(a, (size_t)c->config->n_layers, sizeof *c->state_offset);
    c->has_kept = arena_reserve(a, n_seqs * (size_t)c->n_kept, sizeof *c->has_kept);
    c->states = arena_reserve(a, n_seqs * 2, cache_state_bytes(c));
    c->kept = arena_reserve(a, n_seqs * (size_t)c->n_kept, cache_state_bytes(c));
    if (!a->base || a->overflow)
        return;
    size_t offset = 0, state = 0;
    for (int i = 0; i < c->config->n_layers; i++) {
        int from = c->config->layers[i].kv_layer;
        c->state_offset[i] = state;
        state += align16(state_width(&c->config->layers[i]));
        c->layer_offset[i] = from < i ? c->layer_offset[from] : offset;
        offset += layer_bytes(c->config, i, c->type);
    }
    for (size_t i = 0; i < n_seqs; i++)
        c->seqs[i].blocks = blocks + i * max_blocks;
    for (size_t i = 0; i < n_seqs * max_blocks; i++)
        blocks[i] = -1;
}

/* ---- states ---------------------------------------------------------------------------------- */

int cache_n_states(const Cache *c, int n)
{
    return c->state_floats ? n / c->state_step + (n % c->state_step != 0) : 0;
}

size_t cache_state_bytes(const Cache *c)
{
    return c->state_floats * sizeof *c->states;
}

/* A sequence's state after its positions, or the one that is being made. */
static float *state_of(const Cache *c, int seq, bool next)
{
    bool second = c->seqs[seq].flipped != next;
    return c->states + (2 * (size_t)seq + second) * c->state_floats;
}

/* The state after the first (i + 1) * state_step positions. */
static float *kept_of(const Cache *c, int seq, int i)
{
    return c->kept + ((size_t)seq * (size_t)c->n_kept + (size_t)i) * c->state_floats;
}

/* `from` may be NULL, the state after no position. */
static void copy_state(const Cache *c, float *to, const float *from)
{
    if (from)
        memmove(to, from, cache_state_bytes(c));
    else
        memset(to, 0, cache_state_bytes(c));
}

/* The most positions, up to n, of a sequence for which there is a state, and that state. */
static int find_state(const Cache *c, int seq, int n, const float **state)
{
    const Sequence *q = &c->seqs[seq];
    int i = n / c->state_step;
    *state = state_of(c, seq, false);
    if (n >= q->n_pos || !c->state_floats)
        return n < q->n_pos ? n : q->n_pos;
    while (i > 0 && !c->has_kept[seq * c->n_kept + i - 1])
        i--;
    *state = i > 0 ? kept_of(c, seq, i - 1) : NULL;
    return i * c->state_step;
}

/* A sequence in which nothing is held gets a state of another one, after n positions. */
static void take_state(Cache *c, int seq, int n, const float *state)
{
    int i = n / c->state_step - 1;
    copy_state(c, state_of(c, seq, false), state);
    memset(c->has_kept + seq * c->n_kept, 0, (size_t)c->n_kept * sizeof *c->has_kept);
    if (n == 0 || n % c->state_step || i >= c->n_kept)
        return;
    copy_state(c, kept_of(c, seq, i), state);
    c->has_kept[seq * c->n_kept + i] = true;
}

const float *cache_state(const Cache *c, int layer, int seq)
{
    return state_of(c, seq, false) + c->state_offset[layer];
}

float *cache_next_state(const Cache *c, int layer, int seq)
{
    return state_of(c, seq, true) + c->state_offset[layer];
}

float *cache_kept_state(const Cache *c, int layer, int seq, int n)
{
    return n % c->state_step ? NULL
                             : kept_of(c, seq, n / c->state_step - 1) + c->state_offset[layer];
}

const void *cache_nth_state(const Cache *c, int seq, int i)
{
    return i < c->seqs[seq].n_pos / c->state_step ? kept_of(c, seq, i) : state_of(c, seq, false);
}

void cache_advance(Cache *c, int seq, int n)
{
    Sequence *q = &c->seqs[seq];
    for (int i = q->n_pos / c->state_step; c->n_kept && i < n / c->state_step; i++)
        c->has_kept[seq * c->n_kept + i] = true;
    q->n_pos = n;
    q->flipped = !q->flipped;
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static int block_take(Cache *c)
{
    for (int i = 0; i < c->n_blocks; i++)
        if (!c->refs[i]) {
            c->refs[i] = 1;
            return i;
        }
    return -1;
}

static char *block_at(const Cache *c, int id)
{
    return (id < c->n_adopted ? c->adopted : c->pool) + (size_t)id * c->block_bytes;
}

const void *cache_block(const Cache *c, int seq, int block)
{
    return block_at(c, c->seqs[seq].blocks[block]);
}

void cache_adopt(Cache *c, void *blocks, const void *states, int n, bool is_long)
{
    const float *state = states;
    Sequence *q = &c->seqs[0];
    int n_kept = n / c->state_step, n_states = cache_n_states(c, n);
    c->adopted = blocks;
    c->n_adopted = kv_blocks_of(n);
    for (int b = 0; b < c->n_adopted; b++) {
        c->refs[b] = 1;
        q->blocks[b] = b;
    }
    q->is_long = is_long;
    for (int i = 0; i < n_states; i++, state += c->state_floats) {
        if (i < n_kept)
            copy_state(c, kept_of(c, 0, i), state);
        if (i == n_states - 1)
            copy_state(c, state_of(c, 0, true), state);
    }
    cache_advance(c, 0, n);
}

/* A block of our own with the same contents; -1 when the pool is empty. */
static int block_copy(Cache *c, int id)
{
    int own = block_take(c);
    if (own >= 0)
        memcpy(block_at(c, own), block_at(c, id), c->block_bytes);
    return own;
}

int cache_truncate(Cache *c, int seq, int n)
{
    Sequence *q = &c->seqs[seq];
    const float *state;
    n = find_state(c, seq, n, &state);
    if (n < q->n_pos && c->state_floats)
        copy_state(c, state_of(c, seq, false), state);
    for (int b = kv_blocks_of(n); b < c->max_blocks && q->blocks[b] >= 0; b++) {
        c->refs[q->blocks[b]]--;
        q->blocks[b] = -1;
    }
    return q->n_pos = n;
}

int cache_expect(Cache *c, int seq, int n)
{
    const Rope *r = &c->config->ropes[0];
    Sequence *q = &c->seqs[seq];
    bool is_long = c->config->pos == POS_ROPE && r->scaling == ROPE_LONGROPE && n > r->orig_seq_len;
    if (q->is_long != is_long)
        cache_truncate(c, seq, 0);
    q->is_long = is_long;
    return q->n_pos;
}

int cache_fork(Cache *c, int dst, int src, int n)
{
    if (dst == src)
        return 0;
    Sequence *to = &c->seqs[dst];
    const Sequence *from = &c->seqs[src];
    const float *state;
    cache_truncate(c, dst, 0);
    to->is_long = from->is_long;
    n = find_state(c, src, n, &state);
    for (int b = 0; b * KV_BLOCK < n; b++) {
        bool full = (b + 1) * KV_BLOCK <= n;
        to->blocks[b] = full ? from->blocks[b] : block_copy(c, from->blocks[b]);
        if (to->blocks[b] < 0) {
            cache_truncate(c, dst, 0);
            return -1;
        }
        if (full)
            c->refs[to->blocks[b]]++;
        to->n_pos = full ? (b + 1) * KV_BLOCK : n;
    }
    if (c->state_floats)
        take_state(c, dst, n, state);
    return 0;
}

int cache_grow(Cache *c, int seq, int n, Err *e)
{
    Sequence *q = &c->seqs[seq];
    if (n > c->seq_len)
        return err_set(e, EXIT_USAGE, "context: got %d positions, want at most %d (-c)", n,
                       c->seq_len);
    for (int b = q->n_pos / KV_BLOCK; b * KV_BLOCK < n; b++) {
        int old = q->blocks[b], id = old;
        if (old < 0)
            id = block_take(c);
        else if (c->refs[old] > 1 && (id = block_copy(c, old)) >= 0)
            c->refs[old]--;
        if (id < 0)
            return err_set(e, EXIT_MEMORY, "KV cache: all %d blocks are in use", c->n_blocks);
        q->blocks[b] = id;
    }
    return 0;
}

/* ---- keys and values ------------------------------------------------------------------------- */

/* Where the parts of one head lie in one block. */
typedef struct {
    void *keys, *values;
    float *value_scales, *key_scales; // of bytes only
} HeadBlock;

static HeadBlock head_block(const Cache *c, int layer, int kv_head, int seq, int block)
{
    const LayerConfig *l = &c->config->layers[layer];
    char *keys = block_at(c, c->seqs[seq].blocks[block]) + c->layer_offset[layer]
               + (size_t)kv_head * head_bytes(l, c->type);
    char *values = keys + items_bytes(c->type, l->key_dim);
    float *scales = (float *)(void *)(values + items_bytes(c->type, own_values(l)));
    return (HeadBlock){keys, values, scales, scales + KV_BLOCK};
}

/* Values first .. first + n - 1 of a block's keys (n, KV_BLOCK) as f32. */
static void read_keys(const Cache *c, const HeadBlock *h, size_t first, size_t n, float *keys)
{
    static const size_t item[] = {[KV_F16] = 2, [KV_F32] = 4, [KV_Q8] = 1};
    const void *from = (const char *)h->keys + first * KV_BLOCK * item[c->type];
    const int8_t *k = from;
    if (c->type != KV_Q8)
        c->k->dequantize[c->type == KV_F32 ? TYPE_F32 : TYPE_F16](from, keys, n * KV_BLOCK);
    else
        for (size_t i = 0; i < n * KV_BLOCK; i++)
            keys[i] = (float)k[i]
                    * h->key_scales[(first + i / KV_BLOCK) / KV_GROUP * KV_BLOCK + i % KV_BLOCK];
}

/* The block's first n values that are the beginnings of its keys, turned: f32 (n, value_dim), or
 * with `pairs` bf16 (n / 2 rounded up, value_dim, 2), whose odd last one has a 0 beside it. A float
 * of `out` holds a pair. */
static void values_of_keys(const Cache *c, const LayerConfig *l, const HeadBlock *h, size_t n,
                           bool pairs, float *out)
{
    enum { AT_A_TIME = 16 };
    float keys[AT_A_TIME * KV_BLOCK], rounded[AT_A_TIME * KV_BLOCK / 2];
    size_t width = (size_t)l->value_dim, row = pairs ? KV_BLOCK / 2 : KV_BLOCK,
           n_rows = pairs ? (n + 1) / 2 : n;
    const float *from = pairs ? rounded : keys;
    for (size_t first = 0; first < width; first += AT_A_TIME) {
        size_t some = width - first < AT_A_TIME ? width - first : AT_A_TIME;
        read_keys(c, h, first, some, keys);
        for (size_t i = 0; n % 2 && i < some; i++)
            keys[i * KV_BLOCK + n] = 0;
        if (pairs)
            c->k->bf16->round(keys, (uint16_t *)rounded, some * KV_BLOCK);
        for (size_t t = 0; t < n_rows; t++)
            for (size_t i = 0; i < some; i++)
                out[t * width + first + i] = from[i * row + t];
    }
}

void cache_read(const Cache *c, int layer, int kv_head, int seq, int block, float *keys,
                float *values)
{
    const LayerConfig *l = &c->config->layers[layer];
    size_t value_dim = (size_t)l->value_dim, n = KV_BLOCK * value_dim;
    HeadBlock h = head_block(c, layer, kv_head, seq, block);
    const int8_t *v = h.values;
    read_keys(c, &h, 0, (size_t)l->key_dim, keys);
    if (l->values_in_keys)
        values_of_keys(c, l, &h, KV_BLOCK, false, values);
    else if (c->type != KV_Q8)
        c->k->dequantize[c->type == KV_F32 ? TYPE_F32 : TYPE_F16](h.values, values, n);
    else
        for (size_t i = 0; i < n; i++)
            values[i] = (float)v[i] * h.value_scales[i / value_dim];
}

/* A position's key (key_dim) and value (value_dim) as number `at` of a block, in each type. */
static void store_f32(const HeadBlock *h, const LayerConfig *l, size_t at, const float *k,
                      const float *v)
{
    for (size_t i = 0; i < (size_t)l->key_dim; i++)
        ((float *)h->keys)[i * KV_BLOCK + at] = k[i];
    memcpy((float *)h->values + at * (size_t)own_values(l), v, (size_t)own_values(l) * sizeof *v);
}

static void store_f16(const Cache *c, const HeadBlock *h, const LayerConfig *l, size_t at,
                      const float *k, const float *v)
{
    size_t key_dim = (size_t)l->key_dim, value_dim = (size_t)own_values(l);
    if (c->cut
        && (largest_bits(k, key_dim) >= F16_CUT_BITS || largest_bits(v, value_dim) >= F16_CUT_BITS))
        atomic_store_explicit(c->cut, true, memory_order_relaxed);
    for (size_t i = 0; i < key_dim; i++)
        ((uint16_t *)h->keys)[i * KV_BLOCK + at] = f32_f16(k[i]);
    c->k->f32_to_f16(v, (uint16_t *)h->values + at * value_dim, value_dim);
}

static void store_bytes(const HeadBlock *h, const LayerConfig *l, size_t at, const float *k,
                        const float *v)
{
    size_t key_dim = (size_t)l->key_dim, value_dim = (size_t)own_values(l);
    int8_t *keys = h->keys, *values = h->values;
    float inverse = 0;
    for (size_t i = 0; i < key_dim; i++) {
        size_t left = key_dim - i;
        if (i % KV_GROUP == 0)
            h->key_scales[i / KV_GROUP * KV_BLOCK + at] =
                byte_scale(k + i, left < KV_GROUP ? left : KV_GROUP, &inverse);
        keys[i * KV_BLOCK + at] = (int8_t)to_byte(k[i], inverse);
    }
    h->value_scales[at] = byte_scale(v, value_dim, &inverse);
    for (size_t i = 0; i < value_dim; i++)
        values[at * value_dim + i] = (int8_t)to_byte(v[i], inverse);
}

void cache_store(Cache *c, int layer, int seq, int pos, const float *k, const float *v)
{
    const LayerConfig *l = &c->config->layers[layer];
    size_t at = (size_t)(pos % KV_BLOCK);
    for (int i = 0; i < l->n_kv_heads; i++, k += l->key_dim, v += own_values(l)) {
        HeadBlock h = head_block(c, layer, i, seq, pos / KV_BLOCK);
        switch (c->type) {
        case KV_F32: store_f32(&h, l, at, k, v); break;
        case KV_F16: store_f16(c, &h, l, at, k, v); break;
        case KV_Q8: store_bytes(&h, l, at, k, v); break;
        }
    }
}

/* ---- products -------------------------------------------------------------------------------- */

/* How many rows of queries make it worth converting a block to f32 once, instead of in every
 * product. */
enum { CONVERT_ROWS = 9 };

size_t kv_tile_floats(const LayerConfig *l, size_t rows)
{
    size_t key_dim = (size_t)l->key_dim, value_dim = (size_t)l->value_dim;
    return align16(rows * key_dim) + align16(rows * KV_BLOCK) + align16(key_dim * KV_BLOCK)
         + align16(KV_BLOCK * value_dim);
}

float *kv_tile_init(KvTile *t, const Cache *c, int layer, int kv_head, int seq, int rows,
                    float *scratch)
{
    static const KvFormat cached[] = {
        [KV_F16] = KV_AS_F16, [KV_F32] = KV_AS_F32, [KV_Q8] = KV_AS_BYTES};
    const LayerConfig *l = &c->config->layers[layer];
    size_t n = (size_t)rows, key_dim = (size_t)l->key_dim;
    *t = (KvTile){.cache = c,
                  .layer = layer,
                  .kv_head = kv_head,
                  .seq = seq,
                  .rows = rows,
                  .key_dim = l->key_dim,
                  .value_dim = l->value_dim};
    t->format = c->pairs ? KV_AS_BF16_PAIRS : rows < CONVERT_ROWS ? cached[c->type] : KV_AS_F32;
    t->q = scratch;
    t->part = t->q + align16(n * key_dim);
    t->keys = t->part + align16(n * KV_BLOCK);
    t->values = t->keys + align16(key_dim * KV_BLOCK);
    return t->values + align16(KV_BLOCK * (size_t)l->value_dim);
}

/* Elements from one query to the next: pairs want an even number. */
static size_t query_stride(const KvTile *t)
{
    size_t key_dim = (size_t)t->key_dim;
    return t->format == KV_AS_BF16_PAIRS ? key_dim + key_dim % 2 : key_dim;
}

void kv_tile_query(KvTile *t, int row, const float *q)
{
    size_t key_dim = (size_t)t->key_dim, at = (size_t)row * query_stride(t);
    uint16_t *pairs = (uint16_t *)t->q + at;
    if (t->format != KV_AS_BF16_PAIRS) {
        memcpy(t->q + at, q, key_dim * sizeof *q);
        return;
    }
    t->cache->k->bf16->round(q, pairs, key_dim);
    if (key_dim % 2)
        pairs[key_dim] = 0;
}

/* y (rows, width) += a (rows, n) b (n, width); a is f32, or bf16 with pairs. */
static void add_product(const KvTile *t, KvFormat format, size_t n, size_t width, const void *a,
                        size_t lda, const void *b, size_t ldb, float *y, size_t ldy)
{
    const Kernels *k = t->cache->k;
    size_t rows = (size_t)t->rows;
    switch (format) {
    case KV_AS_BF16_PAIRS: k->bf16->gemm_add(rows, n, width, a, lda, b, ldb, y, ldy); break;
    case KV_AS_F16: k->gemm_add_f16(rows, n, width, a, lda, b, ldb, y, ldy); break;
    case KV_AS_BYTES: k->gemm_add_i8(rows, n, width, a, lda, b, ldb, y, ldy); break;
    case KV_AS_F32: k->gemm_add(rows, n, width, a, lda, b, ldb, y, ldy); break;
    }
}

/* Keys or values x (n, width) of the cache in the tile's format: x itself, or in `out`. */
static const void *convert(const KvTile *t, const void *x, float *out, size_t n, size_t width)
{
    const Cache *c = t->cache;
    bool f16 = c->type == KV_F16;
    if (t->format == KV_AS_F16 || t->format == KV_AS_BYTES || c->type == KV_F32)
        return x;
    if (t->format == KV_AS_BF16_PAIRS && f16)
        c->k->bf16->pairs_f16(x, (uint16_t *)out, n, width);
    else if (t->format == KV_AS_BF16_PAIRS)
        c->k->bf16->pairs_i8(x, (uint16_t *)out, n, width);
    else if (f16)
        c->k->dequantize[TYPE_F16](x, out, n * width);
    else
        c->k->i8_to_f32(x, out, n * width);
    return out;
}

/* y (rows, KV_BLOCK) += values i .. i + n - 1 of the queries times those of the first `width` keys.
 */
static void add_queries(const KvTile *t, size_t i, size_t n, size_t width, const void *keys,
                        float *y)
{
    static const size_t item[] = {
        [KV_AS_F16] = 2, [KV_AS_F32] = 4, [KV_AS_BYTES] = 1, [KV_AS_BF16_PAIRS] = 2};
    size_t query_item = t->format == KV_AS_BF16_PAIRS ? sizeof(uint16_t) : sizeof(float);
    add_product(t, t->format, n, width, (const char *)t->q + i * query_item, query_stride(t),
                (const char *)keys + i * KV_BLOCK * item[t->format], KV_BLOCK, y, KV_BLOCK);
}

/* Keys as bytes come in groups of KV_GROUP values: each group's sums times the group's scales. */
static void add_groups(const KvTile *t, const void *keys, size_t width, const float *scales,
                       float *scores)
{
    size_t key_dim = (size_t)t->key_dim, rows = (size_t)t->rows;
    for (size_t i = 0; i < key_dim; i += KV_GROUP, scales += KV_BLOCK) {
        memset(t->part, 0, rows * KV_BLOCK * sizeof *t->part);
        add_queries(t, i, key_dim - i < KV_GROUP ? key_dim - i : KV_GROUP, width, keys, t->part);
        for (size_t r = 0; r < rows; r++)
            t->cache->k->add_scaled(scores + r * KV_BLOCK, t->part + r * KV_BLOCK, scales, width);
    }
}

void kv_tile_scores(KvTile *t, int block, int n_keys, float *scores)
{
    size_t key_dim = (size_t)t->key_dim, width = align16((size_t)n_keys);
    HeadBlock h = head_block(t->cache, t->layer, t->kv_head, t->seq, block);
    const void *keys = convert(t, h.keys, t->keys, key_dim, KV_BLOCK);
    memset(scores, 0, (size_t)t->rows * KV_BLOCK * sizeof *scores);
    if (t->cache->type == KV_Q8)
        add_groups(t, keys, width, h.key_scales, scores);
    else
        add_queries(t, 0, key_dim, width, keys, scores);
}

void kv_tile_add_values(KvTile *t, int block, int n_keys, float *weights, float *out)
{
    const Kernels *k = t->cache->k;
    size_t rows = (size_t)t->rows, n = (size_t)n_keys, value_dim = (size_t)t->value_dim;
    HeadBlock h = head_block(t->cache, t->layer, t->kv_head, t->seq, block);
    const LayerConfig *l = &t->cache->config->layers[t->layer];
    KvFormat format = t->format;
    const void *values = t->values, *a = weights;
    if (l->values_in_keys) {
        format = format == KV_AS_BF16_PAIRS ? format : KV_AS_F32;
        values_of_keys(t->cache, l, &h, n, format == KV_AS_BF16_PAIRS, t->values);
    } else {
        values = convert(t, h.values, t->values, n, value_dim);
    }
    if (t->cache->type == KV_Q8 && !l->values_in_keys) // fold each value's scale into its weight
        for (size_t r = 0; r < rows; r++)
            k->mul(weights + r * KV_BLOCK, h.value_scales, n);
    if (format == KV_AS_BF16_PAIRS) {
        k->bf16->round(weights, (uint16_t *)t->part, rows * KV_BLOCK);
        a = t->part;
    }
    add_product(t, format, n, value_dim, a, KV_BLOCK, values, value_dim, out, value_dim);
}
