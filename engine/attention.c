/* attention.c - softmax(scale q.k + bias) v over the KV cache, in tiles, with online softmax.
 *
 * Work is cut into tiles of query rows (the heads that share a key/value head, for some positions)
 * by blocks of 64 keys: scores, running maximum and sum, and the weighted values, so the matrix of
 * weights never exists (Dao et al. 2022, FlashAttention). Keys are taken in spans of SPAN
 * positions: each span has its own maximum and sum, and spans are merged in ascending order. Blocks
 * and spans lie at fixed positions of the sequence and every row is computed alone, so the bits do
 * not depend on how rows are grouped: prefill in any chunks and decoding agree (while values are
 * finite: a masked key has weight 0, and 0 * NaN is NaN). With few rows the spans of one head are
 * work for several threads; with many, each thread walks them in order.
 *
 * How keys and values lie in the cache, and in which format they are multiplied, is cache.c's
 * business: a KvTile gives the products of some rows with a block.
 *
 * Causal and window masks, ALiBi, soft caps, grouped heads, key width other than value width. A row
 * whose keys are all masked in a block adds nothing; it never sees -inf - -inf.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "model.h"

enum { SPAN = 256, TILE_ROWS = 48, FEW_ROWS = 4 };

/* Online softmax of some rows: the largest score, the sum of exp(score - max) and the weighted
 * values so far. */
typedef struct {
    float *max, *sum; // (rows)
    float *out;       // (rows, value_dim)
} Soft;

/* One tile: rows = n_pos * group query rows, row r at position pos + r / group, head first_head + r
 * % group. */
typedef struct {
    Session *s;
    int layer, seq, kv_head, first_head, group;
    int pos, n_pos, rows;
    KvTile kv;            // the rows' queries, and the products with keys and values
    float *scores;        // (rows, KV_BLOCK)
    float *sums, *shrink; // (rows) of one block
} Tile;

static size_t soft_floats(size_t rows, size_t value_dim)
{
    return rows * (value_dim + 2);
}

static Soft soft_at(float *p, size_t rows)
{
    return (Soft){p, p + rows, p + 2 * rows};
}

static void soft_clear(Soft *f, int rows, int value_dim)
{
    for (int r = 0; r < rows; r++) {
        f->max[r] = -INFINITY;
        f->sum[r] = 0;
    }
    memset(f->out, 0, (size_t)rows * (size_t)value_dim * sizeof *f->out);
}

/* The keys from .. to - 1 of a block, first key `first`, that the row at position pos can see. */
static void visible(const LayerConfig *l, int pos, int first, int *from, int *to)
{
    int oldest = l->mask == MASK_WINDOW ? pos - l->window + 1 - first : 0, end = pos + 1 - first;
    *from = oldest > 0 ? oldest : 0;
    *to = end < KV_BLOCK ? end : KV_BLOCK;
}

/* Products of one row with a block's keys -> scores, in place; what is still to be multiplied with
 * them is returned. */
static float cap_and_bias(const Tile *t, int r, int first_key)
{
    const Config *c = &t->s->model->config;
    float *x = t->scores + (size_t)r * KV_BLOCK, scale = c->layers[t->layer].attn_scale;
    if (c->attn_soft_cap <= 0 && c->pos != POS_ALIBI)
        return scale;
    for (int j = 0; j < KV_BLOCK; j++)
        x[j] *= scale;
    if (c->attn_soft_cap > 0)
        t->s->k->soft_cap(x, KV_BLOCK, c->attn_soft_cap);
    if (c->pos == POS_ALIBI) {
        float slope = t->s->alibi_slopes[t->layer * t->s->max_heads + t->first_head + r % t->group];
        for (int j = 0; j < KV_BLOCK; j++)
            x[j] += slope * (float)(first_key + j - (t->pos + r / t->group));
    }
    return 1;
}

/* Products of one row with a block -> weights exp(score - max) in place; keys outside [from, to)
 * get 0. What the row had so far must shrink by exp(t->shrink[r]). */
static void weigh_row(const Tile *t, Soft *f, int r, int first_key, int from, int to)
{
    float *x = t->scores + (size_t)r * KV_BLOCK, old = f->max[r];
    t->sums[r] = t->shrink[r] = 0;
    if (from >= to) {
        memset(x, 0, KV_BLOCK * sizeof *x);
        return;
    }
    float scale = cap_and_bias(t, r, first_key);
    t->sums[r] = t->s->k->online_softmax(x + from, (size_t)(to - from), scale, &f->max[r]);
    t->shrink[r] = f->max[r] == old ? 0 : old - f->max[r]; // -inf at first
    memset(x, 0, (size_t)from * sizeof *x);
    memset(x + to, 0, (size_t)(KV_BLOCK - to) * sizeof *x);
}

/* Weights of all rows of a block, first key first_key; sums and results so far are brought down to
 * the new maxima. */
static void weigh_rows(const Tile *t, Soft *f, int first_key)
{
    const LayerConfig *l = &t->s->model->config.layers[t->layer];
    size_t value_dim = (size_t)t->s->model->config.value_dim;
    for (int r = 0; r < t->rows; r++) {
        int from, to;
        visible(l, t->pos + r / t->group, first_key, &from, &to);
        weigh_row(t, f, r, first_key, from, to);
    }
    t->s->k->exp_sum(t->shrink, (size_t)t->rows, 0);
    for (int r = 0; r < t->rows; r++) {
        float *out = f->out + (size_t)r * value_dim, shrink = t->shrink[r];
        f->sum[r] = f->sum[r] * shrink + t->sums[r];
        if (shrink != 1)
            for (size_t i = 0; i < value_dim; i++)
                out[i] *= shrink;
    }
}

/* All keys of one span that the tile's rows can see, into `f`. */
static void attend_span(Tile *t, int span, Soft *f)
{
    Session *s = t->s;
    const Config *c = &s->model->config;
    const LayerConfig *l = &c->layers[t->layer];
    int window = l->mask == MASK_WINDOW ? l->window : 0,
        last = t->pos + t->n_pos; // keys end before `last`
    int oldest = window && t->pos - window + 1 > 0 ? t->pos - window + 1 : 0; // that any row sees
    soft_clear(f, t->rows, c->value_dim);
    for (int block = span * (SPAN / KV_BLOCK); block < (span + 1) * (SPAN / KV_BLOCK); block++) {
        int first = block * KV_BLOCK, n_keys = last - first < KV_BLOCK ? last - first : KV_BLOCK;
        if (n_keys <= 0)
            break;
        if (first + KV_BLOCK <= oldest)
            continue;
        kv_tile_scores(&t->kv, block, n_keys, t->scores);
        weigh_rows(t, f, first);
        kv_tile_add_values(&t->kv, block, n_keys, t->scores, f->out);
    }
}

/* Merge the next span into the total. */
static void soft_merge(const Kernels *k, Soft *total, const Soft *next, int rows, int value_dim)
{
    for (int r = 0; r < rows; r++) {
        float *a = total->out + (size_t)r * (size_t)value_dim;
        const float *b = next->out + (size_t)r * (size_t)value_dim;
        if (next->sum[r] == 0)
            continue;
        float max = total->max[r] > next->max[r] ? total->max[r] : next->max[r];
        float keep = total->max[r], take = next->max[r];
        keep = k->exp_sum(&keep, 1, max);
        take = k->exp_sum(&take, 1, max);
        for (int i = 0; i < value_dim; i++)
            a[i] = a[i] * keep + b[i] * take;
        total->sum[r] = total->sum[r] * keep + next->sum[r] * take;
        total->max[r] = max;
    }
}

/* Rows of a finished tile -> out (n_rows, n_heads, value_dim) and soft (n_rows, max_heads, 2) or
 * NULL, whose first row is position `base`. */
static void write_rows(const Tile *t, const Soft *f, int base, float *out, float *soft)
{
    const Config *c = &t->s->model->config;
    size_t n_heads = (size_t)c->layers[t->layer].n_heads, value_dim = (size_t)c->value_dim;
    for (int r = 0; r < t->rows; r++) {
        size_t row = (size_t)(t->pos - base + r / t->group),
               head = (size_t)(t->first_head + r % t->group);
        float *y = out + (row * n_heads + head) * value_dim,
              scale = f->sum[r] > 0 ? 1 / f->sum[r] : 0;
        const float *x = f->out + (size_t)r * value_dim;
        for (size_t i = 0; i < value_dim; i++)
            y[i] = x[i] * scale;
        if (soft)
            memcpy(soft + (row * (size_t)t->s->max_heads + head) * 2,
                   (float[]){f->max[r], f->sum[r]}, 2 * sizeof *soft);
    }
}

static int max_group(const Config *c)
{
    int group = 1;
    for (int i = 0; i < c->n_layers; i++) {
        int g = c->layers[i].n_heads / c->layers[i].n_kv_heads;
        group = g > group ? g : group;
    }
    return group;
}

static int tile_positions(int group)
{
    return group >= TILE_ROWS ? 1 : TILE_ROWS / group;
}

static size_t align16(size_t n)
{
    return (n + 15) & ~(size_t)15;
}

/* Rows of the largest tile, attention_weights()'s too. */
static size_t max_rows(const Config *c)
{
    int group = max_group(c),
        rows = group * (tile_positions(group) > FEW_ROWS ? tile_positions(group) : FEW_ROWS);
    return (size_t)(rows > MAP_ROWS
                        ? rows
                        : MAP_ROWS); // tiles of positions have at most TILE_ROWS or one group
}

size_t attention_scratch(const Config *c)
{
    size_t rows = max_rows(c);
    return kv_tile_floats(c, rows) + align16(rows * (KV_BLOCK + 2))
         + 2 * align16(soft_floats(rows, (size_t)c->value_dim));
}

size_t attention_partial(const Config *c, int seq_len)
{
    size_t spans = (size_t)(seq_len + SPAN - 1) / SPAN, n_heads = 1;
    for (int i = 0; i < c->n_layers; i++)
        n_heads = (size_t)c->layers[i].n_heads > n_heads ? (size_t)c->layers[i].n_heads : n_heads;
    return spans * soft_floats(FEW_ROWS * n_heads, (size_t)c->value_dim);
}

/* Cut a tile's scratch and gather its queries from q, whose first row is position `base`. Returns
 * the rest of the scratch. */
static float *tile_init(Tile *t, int base, const float *q, float *scratch)
{
    const Config *c = &t->s->model->config;
    size_t key_dim = (size_t)c->key_dim, n_heads = (size_t)c->layers[t->layer].n_heads;
    t->scores = kv_tile_init(&t->kv, &t->s->cache, t->layer, t->kv_head, t->seq, t->rows, scratch);
    t->sums = t->scores + (size_t)t->rows * KV_BLOCK;
    t->shrink = t->sums + t->rows;
    for (int r = 0; r < t->rows; r++) {
        size_t position = (size_t)(t->pos - base + r / t->group),
               head = (size_t)(t->first_head + r % t->group);
        kv_tile_query(&t->kv, r, q + (position * n_heads + head) * key_dim);
    }
    float *rest = t->scores + align16((size_t)t->rows * (KV_BLOCK + 2));
    assert((size_t)(rest - scratch) <= t->s->scratch_floats);
    return rest;
}

/* One call of attention(); rows are shared out as heads, spans or tiles. */
typedef struct {
    Session *s;
    int layer, seq, pos, n_rows;
    const float *q; // (n_rows, n_heads, key_dim)
    float *out;     // (n_rows, n_heads, value_dim)
    float *soft;    // (n_rows, max_heads, 2) or NULL
    int group, n_kv_heads, n_spans, n_tiles;
} Job;

static Tile tile_of(const Job *j, int kv_head, int first, int n)
{
    return (Tile){.s = j->s,
                  .layer = j->layer,
                  .seq = j->seq,
                  .kv_head = kv_head,
                  .first_head = kv_head * j->group,
                  .group = j->group,
                  .pos = j->pos + first,
                  .n_pos = n,
                  .rows = n * j->group};
}

/* Results of head h, span i in Session.partial. */
static Soft partial_at(const Job *j, int h, int i)
{
    size_t rows = (size_t)j->n_rows * (size_t)j->group,
           size = soft_floats(rows, (size_t)j->s->model->config.value_dim);
    return soft_at(j->s->partial + ((size_t)h * (size_t)j->n_spans + (size_t)i) * size, rows);
}

/* Few rows: every span of every head is an item; item = head * n_spans + span. */
static void attend_spans(void *context, int from, int to, int thread)
{
    const Job *j = context;
    for (int item = from; item < to; item++) {
        Tile t = tile_of(j, item / j->n_spans, 0, j->n_rows);
        tile_init(&t, j->pos, j->q, session_scratch(j->s, thread));
        Soft f = partial_at(j, item / j->n_spans, item % j->n_spans);
        attend_span(&t, item % j->n_spans, &f);
        if (j->n_spans == 1)
            write_rows(&t, &f, j->pos, j->out, j->soft);
    }
}

static void merge_heads(void *context, int from, int to, int thread)
{
    const Job *j = context;
    (void)thread;
    for (int h = from; h < to; h++) {
        Tile t = tile_of(j, h, 0, j->n_rows);
        Soft total = partial_at(j, h, 0);
        for (int span = 1; span < j->n_spans; span++) {
            Soft next = partial_at(j, h, span);
            soft_merge(j->s->k, &total, &next, t.rows, j->s->model->config.value_dim);
        }
        write_rows(&t, &total, j->pos, j->out, j->soft);
    }
}

/* Many rows: an item is a tile of positions of one head, all its spans in order; the longest rows
 * come first. */
static void attend_tiles(void *context, int from, int to, int thread)
{
    const Job *j = context;
    int step = tile_positions(j->group), value_dim = j->s->model->config.value_dim;
    for (int item = from; item < to; item++) {
        int first = (j->n_tiles - 1 - item / j->n_kv_heads) * step, left = j->n_rows - first;
        Tile t = tile_of(j, item % j->n_kv_heads, first, left < step ? left : step);
        float *rest = tile_init(&t, j->pos, j->q, session_scratch(j->s, thread));
        Soft total = soft_at(rest, (size_t)t.rows);
        Soft next = soft_at(rest + align16(soft_floats((size_t)t.rows, (size_t)value_dim)),
                            (size_t)t.rows);
        attend_span(&t, 0, &total);
        for (int span = 1; span * SPAN < t.pos + t.n_pos; span++) {
            attend_span(&t, span, &next);
            soft_merge(j->s->k, &total, &next, t.rows, value_dim);
        }
        write_rows(&t, &total, j->pos, j->out, j->soft);
    }
}

void attention(Session *s, int layer, int seq, int pos, int n_rows, const float *q, float *out,
               float *soft)
{
    const LayerConfig *l = &s->model->config.layers[layer];
    Job j = {s, layer, seq, pos, n_rows, q, out, soft, l->n_heads / l->n_kv_heads, l->n_kv_heads,
             0, 0};
    j.n_spans = (pos + n_rows + SPAN - 1) / SPAN;
    j.n_tiles = (n_rows + tile_positions(j.group) - 1) / tile_positions(j.group);
    if (n_rows > FEW_ROWS) {
        threads_run(&s->threads, j.n_kv_heads * j.n_tiles, 1, attend_tiles, &j);
        return;
    }
    threads_run(&s->threads, j.n_kv_heads * j.n_spans, 1, attend_spans, &j);
    if (j.n_spans > 1)
        threads_run(&s->threads, j.n_kv_heads, 1, merge_heads, &j);
}

void attention_weights(Session *s, int layer, int seq, int head, int pos, int n_rows,
                       const float *q, const float *soft, float *out, int n_keys, int thread)
{
    const LayerConfig *l = &s->model->config.layers[layer];
    Tile t = {.s = s,
              .layer = layer,
              .seq = seq,
              .kv_head = head / (l->n_heads / l->n_kv_heads),
              .first_head = head,
              .group = 1,
              .pos = pos,
              .n_pos = n_rows,
              .rows = n_rows};
    tile_init(&t, pos, q, session_scratch(s, thread));
    memset(out, 0, (size_t)n_rows * (size_t)n_keys * sizeof *out);
    for (int first = 0; first < pos + n_rows; first += KV_BLOCK) {
        int visible_keys = pos + n_rows - first;
        if (l->mask == MASK_WINDOW && first + KV_BLOCK <= pos - l->window + 1)
            continue;
        kv_tile_scores(&t.kv, first / KV_BLOCK, visible_keys < KV_BLOCK ? visible_keys : KV_BLOCK,
                       t.scores);
        for (int r = 0; r < n_rows; r++) {
            const float *max_sum = soft + ((size_t)r * (size_t)s->max_heads + (size_t)head) * 2;
            float *x = t.scores + (size_t)r * KV_BLOCK,
                  *y = out + (size_t)r * (size_t)n_keys + first;
            int from, to;
            visible(l, pos + r, first, &from, &to);
            if (from >= to)
                continue;
            float scale = cap_and_bias(&t, r, first);
            for (int j = from; j < to; j++)
                x[j] *= scale;
            s->k->exp_sum(x + from, (size_t)(to - from), max_sum[0]);
            for (int j = from; j < to; j++)
                y[j] = x[j] * (1 / max_sum[1]);
        }
    }
}
