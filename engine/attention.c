/* attention.c - softmax(scale q.k + bias) v over the key/value cache, in tiles, with online
 * softmax.
 *
 * Work is cut into tiles of query rows (the heads that share a key/value head, for some positions)
 * by blocks of 64 keys: scores, running maximum and sum, and the weighted values, so the matrix of
 * weights never exists (Dao et al. 2022, FlashAttention). Keys are taken in splits of SPLIT
 * positions: each split has its own maximum and sum, and splits are merged in ascending order.
 * Blocks and splits lie at fixed positions of the sequence and every row is computed alone, so the
 * bits do not depend on how rows are grouped: prefill in any chunks, decoding and any neighbours in
 * the batch agree (while values are finite: a masked key has weight 0, and 0 * NaN is NaN).
 *
 * All spans of a batch are one parallel job. The splits of a span of few rows are work for several
 * threads; the tiles of a longer one walk them in order. How keys and values lie in the cache, and
 * in which format they are multiplied, is cache.c's business.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum {
    SPLIT = 256,    // positions of a split, a multiple of KV_BLOCK
    TILE_ROWS = 48, // query rows of a tile, or those of one position where these are more
    FEW_ROWS = 4    // a span of so many rows at most has its splits shared out to threads
};

KeyRange visible(const LayerConfig *l, int pos, int n_keys)
{
    int from = l->mask == MASK_WINDOW ? pos - l->window + 1
             : l->mask == MASK_AROUND ? pos - l->window
                                      : 0;
    int to = l->mask == MASK_NONE ? n_keys : l->mask == MASK_AROUND ? pos + l->window + 1 : pos + 1;
    return (KeyRange){from > 0 ? from : 0, to < n_keys ? to : n_keys};
}

/* ---- online softmax -------------------------------------------------------------------------- */

/* Of some rows: the largest score, the sum of exp(score - largest) and the weighted values so far.
 */
typedef struct {
    float *row_max, *row_sum; // (rows)
    float *out;               // (rows, value_dim)
} OnlineSoftmax;

static size_t softmax_floats(size_t rows, size_t value_dim)
{
    return rows * (value_dim + 2);
}

static OnlineSoftmax softmax_at(float *p, size_t rows)
{
    return (OnlineSoftmax){p, p + rows, p + 2 * rows};
}

static void softmax_clear(OnlineSoftmax *f, int rows, int value_dim)
{
    for (int r = 0; r < rows; r++) {
        f->row_max[r] = -INFINITY;
        f->row_sum[r] = 0;
    }
    memset(f->out, 0, (size_t)rows * (size_t)value_dim * sizeof *f->out);
}

/* Merge the next split into the total: both are brought to the larger of their maxima. */
static void softmax_merge(const Kernels *k, OnlineSoftmax *total, const OnlineSoftmax *next,
                          int rows, int value_dim)
{
    for (int r = 0; r < rows; r++) {
        float *a = total->out + (size_t)r * (size_t)value_dim;
        const float *b = next->out + (size_t)r * (size_t)value_dim;
        if (next->row_sum[r] == 0)
            continue;
        float keep = total->row_max[r], take = next->row_max[r], max = keep > take ? keep : take;
        keep = k->exp_sum(&keep, 1, max);
        take = k->exp_sum(&take, 1, max);
        for (int i = 0; i < value_dim; i++)
            a[i] = a[i] * keep + b[i] * take;
        total->row_sum[r] = total->row_sum[r] * keep + next->row_sum[r] * take;
        total->row_max[r] = max;
    }
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* rows = n_pos * group query rows: row r is position pos + r / group, head first_head + r % group.
 */
typedef struct {
    Session *s;
    const Cache *from; // where the keys and values are
    const LayerConfig *l;
    int layer, kv_head, first_head, group;
    int row, pos, n_pos, rows; // `row` is the batch's row at `pos`
    int n_keys;                // of the sequence in that cache
    KvTile kv;                 // the rows' queries, and the products with keys and values
    float *scores;             // (rows, KV_BLOCK)
    float *sums, *shrink;      // (rows) of one block
} Tile;

static size_t tile_floats(const LayerConfig *l, size_t rows)
{
    return kv_tile_floats(l, rows) + align16(rows * (KV_BLOCK + 2));
}

/* Cut a tile's scratch and gather its queries. Returns the rest of the scratch. */
static float *tile_init(Tile *t, int seq, float *scratch)
{
    size_t key_dim = (size_t)t->l->key_dim, n_heads = (size_t)t->l->n_heads;
    t->scores = kv_tile_init(&t->kv, t->from, t->l->kv_layer, t->kv_head, seq, t->rows, scratch);
    t->sums = t->scores + (size_t)t->rows * KV_BLOCK;
    t->shrink = t->sums + t->rows;
    for (int r = 0; r < t->rows; r++) {
        size_t row = (size_t)(t->row + r / t->group), head = (size_t)(t->first_head + r % t->group);
        kv_tile_query(&t->kv, r, t->s->q + (row * n_heads + head) * key_dim);
    }
    return t->scores + align16((size_t)t->rows * (KV_BLOCK + 2));
}

/* The keys that any row of the tile sees. */
static KeyRange tile_visible(const Tile *t)
{
    return (KeyRange){visible(t->l, t->pos, t->n_keys).from,
                      visible(t->l, t->pos + t->n_pos - 1, t->n_keys).to};
}

/* The keys that a row sees in the block that begins with first_key, numbered within the block. */
static KeyRange block_visible(const Tile *t, int r, int first_key)
{
    KeyRange k = visible(t->l, t->pos + r / t->group, t->n_keys);
    k.from = k.from > first_key ? k.from - first_key : 0;
    k.to = k.to - first_key < KV_BLOCK ? k.to - first_key : KV_BLOCK;
    return k;
}

/* Soft cap and bias of one row's products with a block's keys, in place; returns the factor that
 * the scores still have to be multiplied by. */
static float cap_and_bias(const Tile *t, int r, int first_key)
{
    const Session *s = t->s;
    const Config *c = &s->stack->config;
    BiasType bias = t->l->kv_source == KV_FROM_SELF ? c->bias : BIAS_NONE; // two texts, no distance
    float *x = t->scores + (size_t)r * KV_BLOCK, scale = t->l->attn_scale;
    if (c->attn_soft_cap <= 0 && bias == BIAS_NONE)
        return scale;
    int head = t->first_head + r % t->group, distance = first_key - (t->pos + r / t->group);
    for (int j = 0; j < KV_BLOCK; j++)
        x[j] *= scale;
    if (c->attn_soft_cap > 0)
        s->k->soft_cap(x, KV_BLOCK, c->attn_soft_cap);
    if (bias == BIAS_ALIBI) {
        float slope = s->alibi_slopes[t->layer * s->max_heads + head];
        for (int j = 0; j < KV_BLOCK; j++)
            x[j] -= slope * (float)abs(distance + j);
    } else if (bias == BIAS_TABLE) {
        int reach = c->bias_reach;
        const float *row = s->stack->layers[t->layer].bias + head * (2 * reach + 1) + reach;
        for (int j = 0, d; j < KV_BLOCK; j++) {
            d = distance + j;
            x[j] += row[d < -reach ? -reach : d > reach ? reach : d];
        }
    }
    return 1;
}

/* One row's products with a block -> weights exp(score - row_max) in place; hidden keys get 0. What
 * the row had so far must shrink by exp(t->shrink[r]). A row that sees no key of the block adds
 * nothing; it never meets -inf - -inf. */
static void weigh_row(const Tile *t, OnlineSoftmax *f, int r, int first_key)
{
    KeyRange k = block_visible(t, r, first_key);
    float *x = t->scores + (size_t)r * KV_BLOCK, old = f->row_max[r];
    t->sums[r] = t->shrink[r] = 0;
    if (k.from >= k.to) {
        memset(x, 0, KV_BLOCK * sizeof *x);
        return;
    }
    float scale = cap_and_bias(t, r, first_key);
    t->sums[r] = t->s->k->online_softmax(x + k.from, (size_t)(k.to - k.from), scale,
                                         &f->row_max[r]);
    t->shrink[r] = f->row_max[r] == old ? 0 : old - f->row_max[r]; // -inf at first
    memset(x, 0, (size_t)k.from * sizeof *x);
    memset(x + k.to, 0, (size_t)(KV_BLOCK - k.to) * sizeof *x);
}

/* Weights of all rows with a block; sums and results so far are brought down to the new maxima. */
static void weigh_rows(const Tile *t, OnlineSoftmax *f, int first_key)
{
    size_t value_dim = (size_t)t->l->value_dim;
    for (int r = 0; r < t->rows; r++)
        weigh_row(t, f, r, first_key);
    t->s->k->exp_sum(t->shrink, (size_t)t->rows, 0);
    for (int r = 0; r < t->rows; r++) {
        float *out = f->out + (size_t)r * value_dim, shrink = t->shrink[r];
        f->row_sum[r] = f->row_sum[r] * shrink + t->sums[r];
        if (shrink != 1)
            for (size_t i = 0; i < value_dim; i++)
                out[i] *= shrink;
    }
}

/* All keys of one split that the tile's rows see, into `f`. */
static void attend_split(Tile *t, int split, OnlineSoftmax *f)
{
    KeyRange keys = tile_visible(t);
    softmax_clear(f, t->rows, t->l->value_dim);
    for (int first = split * SPLIT; first < (split + 1) * SPLIT && first < keys.to;
         first += KV_BLOCK) {
        int n_keys = keys.to - first < KV_BLOCK ? keys.to - first : KV_BLOCK;
        if (first + KV_BLOCK <= keys.from)
            continue;
        kv_tile_scores(&t->kv, first / KV_BLOCK, n_keys, t->scores);
        weigh_rows(t, f, first);
        kv_tile_add_values(&t->kv, first / KV_BLOCK, n_keys, t->scores, f->out);
    }
}

/* A head's sink is the score of one more key, which has no value: it brings down the weights of all
 * others. Returns the factor that the row's values shrink by. */
static float add_sink(const Kernels *k, float sink, float *row_max, float *row_sum)
{
    float max = *row_max > sink ? *row_max : sink, keep = *row_max, own = sink;
    keep = k->exp_sum(&keep, 1, max);
    *row_sum = *row_sum * keep + k->exp_sum(&own, 1, max);
    *row_max = max;
    return keep;
}

/* Rows of a finished tile: out / row_sum -> `heads`, whose first row is the batch's row `base`, and
 * what is kept of the softmax. */
static void write_rows(const Tile *t, OnlineSoftmax *f, int base, float *heads)
{
    Session *s = t->s;
    size_t n_heads = (size_t)t->l->n_heads, value_dim = (size_t)t->l->value_dim;
    const float *sinks = s->stack->layers[t->layer].sinks;
    for (int r = 0; r < t->rows; r++) {
        size_t row = (size_t)(t->row + r / t->group), head = (size_t)(t->first_head + r % t->group);
        float keep = sinks ? add_sink(s->k, sinks[head], &f->row_max[r], &f->row_sum[r]) : 1;
        float *y = heads + ((row - (size_t)base) * n_heads + head) * value_dim;
        float scale = f->row_sum[r] > 0 ? keep / f->row_sum[r] : 0;
        const float *x = f->out + (size_t)r * value_dim;
        for (size_t i = 0; i < value_dim; i++)
            y[i] = x[i] * scale;
        if (s->softmax)
            memcpy(s->softmax + (row * (size_t)s->max_heads + head) * 2,
                   (float[]){f->row_max[r], f->row_sum[r]}, 2 * sizeof *y);
    }
}

/* ---- one job for all spans ------------------------------------------------------------------- */

/* One call of attention(). The items of a span are numbered from its first_item: kv_head * n_splits
 * + split where it is split, else (from the last tile) tile * n_kv_heads + kv_head. */
typedef struct {
    Session *s;
    const Cache *from;
    const LayerConfig *l;
    int layer, first, n; // rows first .. first + n - 1 of the batch
    int group;           // heads that share a key/value head
} Job;

static int tile_positions(int group)
{
    return group >= TILE_ROWS ? 1 : TILE_ROWS / group;
}

/* The rows of a span that the job has. */
static SpanRows clip(const Job *j, const SpanRows *span)
{
    SpanRows c = *span;
    int from = span->row > j->first ? span->row : j->first, end = span->row + span->n;
    end = end < j->first + j->n ? end : j->first + j->n;
    c.row = from;
    c.pos += from - span->row;
    c.n = end - from;
    return c;
}

/* The cache that a layer attends to. */
static const Cache *cache_of(const Session *s, const LayerConfig *l)
{
    if (l->kv_source == KV_FROM_SELF)
        return &s->cache;
    const Cache *memory = s->memory;
    assert(memory && memory->n_seqs >= s->params.n_seqs && l->mask == MASK_NONE);
    const LayerConfig *there = &memory->config->layers[l->kv_layer];
    assert(there->n_kv_heads == l->n_kv_heads && there->key_dim == l->key_dim
           && there->value_dim == l->value_dim);
    return memory;
}

/* How many keys a span's sequence has in a cache: with the batch's own rows, or in a memory. */
static int n_keys_of(const Session *s, const Cache *from, const SpanRows *span)
{
    return from == &s->cache ? span->pos + span->n : from->seqs[span->seq].n_pos;
}

/* Positions from .. from + n - 1 of a span's rows in the job. */
static Tile tile_of(const Job *j, const SpanRows *span, int kv_head, int from, int n)
{
    SpanRows c = clip(j, span);
    return (Tile){.s = j->s,
                  .from = j->from,
                  .l = j->l,
                  .layer = j->layer,
                  .kv_head = kv_head,
                  .first_head = kv_head * j->group,
                  .group = j->group,
                  .row = c.row + from,
                  .pos = c.pos + from,
                  .n_pos = n,
                  .rows = n * j->group,
                  .n_keys = n_keys_of(j->s, j->from, span)};
}

static int n_splits_of(const Tile *t)
{
    return (tile_visible(t).to + SPLIT - 1) / SPLIT;
}

/* Number the items of all spans; how many there are. A span of few rows is split where its partial
 * results have room in Session.partial: with many such spans there is work enough without it. */
static int plan(Job *j)
{
    Session *s = j->s;
    size_t used = 0;
    int n_items = 0, step = tile_positions(j->group);
    for (int i = 0; i < s->n_spans; i++) {
        SpanRows *span = &s->spans[i];
        int n = clip(j, span).n;
        span->first_item = n_items;
        span->n_splits = 0;
        if (n <= 0)
            continue;
        Tile whole = tile_of(j, span, 0, 0, n);
        int n_splits = n_splits_of(&whole);
        size_t floats = (size_t)j->l->n_kv_heads * (size_t)n_splits
                      * softmax_floats((size_t)whole.rows, (size_t)j->l->value_dim);
        if (n <= FEW_ROWS && n_splits > 1 && used + floats <= s->partial_floats) {
            span->n_splits = n_splits;
            span->partial = s->partial + used;
            used += floats;
        }
        n_items += j->l->n_kv_heads * (span->n_splits ? n_splits : (n + step - 1) / step);
    }
    return n_items;
}

/* Results of one split of one head. */
static OnlineSoftmax partial_at(const Job *j, const SpanRows *span, int kv_head, int split)
{
    size_t rows = (size_t)clip(j, span).n * (size_t)j->group;
    size_t index = (size_t)kv_head * (size_t)span->n_splits + (size_t)split;
    return softmax_at(span->partial + index * softmax_floats(rows, (size_t)j->l->value_dim), rows);
}

/* A tile of positions of one head, all its splits in order. */
static void attend_tile(const Job *j, const SpanRows *span, int item, float *scratch)
{
    int n = clip(j, span).n, step = tile_positions(j->group), value_dim = j->l->value_dim;
    int n_tiles = (n + step - 1) / step;
    int from = (n_tiles - 1 - item / j->l->n_kv_heads) * step; // the longest rows come first
    Tile t = tile_of(j, span, item % j->l->n_kv_heads, from, n - from < step ? n - from : step);
    float *rest = tile_init(&t, span->seq, scratch);
    size_t rows = (size_t)t.rows, size = align16(softmax_floats(rows, (size_t)value_dim));
    OnlineSoftmax total = softmax_at(rest, rows), next = softmax_at(rest + size, rows);
    assert((size_t)(rest + 2 * size - scratch) <= j->s->threads->scratch_floats);
    attend_split(&t, 0, &total);
    for (int split = 1; split < n_splits_of(&t); split++) {
        attend_split(&t, split, &next);
        softmax_merge(j->s->k, &total, &next, t.rows, value_dim);
    }
    write_rows(&t, &total, j->first, j->s->heads);
}

static void attend_items(void *context, int from, int to, int thread)
{
    const Job *j = context;
    const SpanRows *span = j->s->spans, *last = span + j->s->n_spans - 1;
    float *scratch = threads_scratch(j->s->threads, thread);
    for (int item = from; item < to; item++) {
        while (span < last && span[1].first_item <= item)
            span++;
        int own = item - span->first_item;
        if (!span->n_splits) {
            attend_tile(j, span, own, scratch);
            continue;
        }
        int kv_head = own / span->n_splits, split = own % span->n_splits;
        Tile t = tile_of(j, span, kv_head, 0, clip(j, span).n);
        tile_init(&t, span->seq, scratch);
        OnlineSoftmax part = partial_at(j, span, kv_head, split);
        attend_split(&t, split, &part);
    }
}

/* Merge the splits of the spans that have them; item = span * n_kv_heads + kv_head. */
static void merge_splits(void *context, int from, int to, int thread)
{
    const Job *j = context;
    (void)thread;
    for (int item = from; item < to; item++) {
        const SpanRows *span = &j->s->spans[item / j->l->n_kv_heads];
        int kv_head = item % j->l->n_kv_heads;
        if (!span->n_splits)
            continue;
        Tile t = tile_of(j, span, kv_head, 0, clip(j, span).n);
        OnlineSoftmax total = partial_at(j, span, kv_head, 0);
        for (int split = 1; split < span->n_splits; split++) {
            OnlineSoftmax next = partial_at(j, span, kv_head, split);
            softmax_merge(j->s->k, &total, &next, t.rows, j->l->value_dim);
        }
        write_rows(&t, &total, j->first, j->s->heads);
    }
}

void attention(Session *s, int layer, int first, int n)
{
    const LayerConfig *l = &s->stack->config.layers[layer];
    Job j = {s, cache_of(s, l), l, layer, first, n, l->n_heads / l->n_kv_heads};
    bool is_split = false;
    threads_run(s->threads, plan(&j), 1, attend_items, &j);
    for (int i = 0; i < s->n_spans; i++)
        is_split |= s->spans[i].n_splits > 0;
    if (is_split)
        threads_run(s->threads, s->n_spans * l->n_kv_heads, 1, merge_splits, &j);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

/* Rows of the largest tile, those of attention_weights() included. */
static size_t max_rows(const LayerConfig *l)
{
    int group = l->n_heads / l->n_kv_heads, step = tile_positions(group);
    int rows = group * (step > FEW_ROWS ? step : FEW_ROWS);
    return (size_t)(rows > MAP_ROWS ? rows : MAP_ROWS);
}

static size_t layer_scratch(const LayerConfig *l)
{
    if (l->mixer != MIX_ATTENTION)
        return 0;
    size_t rows = max_rows(l);
    return tile_floats(l, rows) + 2 * align16(softmax_floats(rows, (size_t)l->value_dim));
}

static size_t few_rows_floats(const LayerConfig *l)
{
    return softmax_floats(FEW_ROWS * (size_t)l->n_heads, (size_t)l->value_dim);
}

size_t attention_scratch(const Config *c)
{
    return layers_max(c, layer_scratch);
}

size_t attention_partial(const Config *c, int seq_len)
{
    return (size_t)(seq_len + SPLIT - 1) / SPLIT * layers_max(c, few_rows_floats);
}

/* ---- weights --------------------------------------------------------------------------------- */

void attention_weights(Session *s, int layer, int head, int first, int n, float *out, int n_keys,
                       int thread)
{
    const LayerConfig *l = &s->stack->config.layers[layer];
    const Cache *from = cache_of(s, l);
    const SpanRows *span = &s->spans[s->span_of[first]];
    Tile t = {.s = s,
              .from = from,
              .l = l,
              .layer = layer,
              .kv_head = head / (l->n_heads / l->n_kv_heads),
              .first_head = head,
              .group = 1,
              .row = first,
              .pos = s->pos[first],
              .n_pos = n,
              .rows = n,
              .n_keys = n_keys_of(s, from, span)};
    tile_init(&t, span->seq, threads_scratch(s->threads, thread));
    memset(out, 0, (size_t)n * (size_t)n_keys * sizeof *out);
    KeyRange keys = tile_visible(&t);
    for (int at = keys.from / KV_BLOCK * KV_BLOCK; at < keys.to; at += KV_BLOCK) {
        kv_tile_scores(&t.kv, at / KV_BLOCK, keys.to - at < KV_BLOCK ? keys.to - at : KV_BLOCK,
                       t.scores);
        for (int r = 0; r < n; r++) {
            size_t row = (size_t)(first + r);
            const float *max_sum = s->softmax + (row * (size_t)s->max_heads + (size_t)head) * 2;
            float *x = t.scores + (size_t)r * KV_BLOCK, *y = out + (size_t)r * (size_t)n_keys + at;
            KeyRange k = block_visible(&t, r, at);
            if (k.from >= k.to)
                continue;
            float scale = cap_and_bias(&t, r, at);
            for (int i = k.from; i < k.to; i++)
                x[i] *= scale;
            s->k->exp_sum(x + k.from, (size_t)(k.to - k.from), max_sum[0]);
            for (int i = k.from; i < k.to; i++)
                y[i] = x[i] * (1 / max_sum[1]);
        }
    }
}

float attention_sink(const Session *s, int layer, int head, int row)
{
    const float *sinks = s->stack->layers[layer].sinks;
    const float *max_sum = s->softmax + ((size_t)row * (size_t)s->max_heads + (size_t)head) * 2;
    float x = sinks[head];
    return s->k->exp_sum(&x, 1, max_sum[0]) * (1 / max_sum[1]);
}
