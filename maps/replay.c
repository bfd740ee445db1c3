/* replay.c - attention maps of a finished text, for files and statistics. Contracts are in job.h.
 *
 * The replay runs the whole text as one batch that is watched: after each layer the queries of all
 * rows and the layer's keys are there, and the layer's maps are computed in tiles of MAP_ROWS rows,
 * handed to the statistics and the files while they are hot, and forgotten. What is held is a chunk
 * of rows, never a whole set of maps; only `mean` and `rollout` hold one or two matrices of T x T
 * (reduce.c).
 */
#include "maps/job.h"

#include <stdlib.h>
#include <unistd.h>

#include "maps/reduce.h"

enum { CHUNK_FLOATS = 1 << 22 };

/* ---- tiles ----------------------------------------------------------------------------------- */

/* Rows of one layer, heads head .. head + n_heads - 1 of the selection, reduced to one map if there
 * are several. */
typedef struct {
    MapJob *job;
    Session *s; // a signal leaves work out
    int layer_index, head, n_heads, map;
    int row, n_rows;      // positions row .. row + n_rows - 1
    float *rows;          // (n_rows, T)
    float *spare;         // (n_threads, MAP_ROWS, T), for reductions
    HeadStats *row_stats; // (n_heads, n_rows), or NULL
    Buf *tiles;           // (tiles, n_files)
} Chunk;

static int tile_rows(const Chunk *c, int tile)
{
    int left = c->n_rows - tile * MAP_ROWS;
    return left < MAP_ROWS ? left : MAP_ROWS;
}

static void weigh_tiles(void *context, int from, int to, int thread)
{
    const Chunk *c = context;
    const Maps *m = &c->job->maps;
    Session *s = c->s;
    size_t T = (size_t)m->n;
    int layer = m->layers[c->layer_index];
    for (int tile = from; tile < to; tile++) {
        int n = tile_rows(c, tile), row = c->row + tile * MAP_ROWS;
        float *out = c->rows + (size_t)tile * MAP_ROWS * T;
        for (int h = 0; h < c->n_heads; h++) {
            float *w = c->n_heads > 1 ? c->spare + (size_t)thread * MAP_ROWS * T : out;
            attention_weights(s, layer, m->heads[c->head + h], row, n, w, m->n, thread);
            for (int r = 0; c->row_stats && r < n; r++)
                stats_row(m, layer, row + r, w + (size_t)r * T,
                          &c->row_stats[h * c->n_rows + tile * MAP_ROWS + r]);
            if (c->n_heads > 1)
                map_reduce(m->o.reduce, out, w, (size_t)n * T, h, c->n_heads);
        }
    }
}

/* Every file's view of the tiles. */
static void prepare_tiles(void *context, int from, int to, int thread)
{
    const Chunk *c = context;
    (void)thread;
    for (int tile = from; tile < to; tile++)
        for (int i = 0; i < c->job->maps.o.n_files; i++) {
            Buf *out = &c->tiles[tile * c->job->maps.o.n_files + i];
            out->len = 0;
            mapfile_tile(&c->job->files[i], c->map, c->row + tile * MAP_ROWS, tile_rows(c, tile),
                         c->rows + (size_t)tile * MAP_ROWS * (size_t)c->job->maps.n, out);
        }
}

static bool stopped(const Session *s, Err *e)
{
    if (!threads_stopped(s->threads))
        return false;
    e->code = EXIT_OK;
    return true;
}

/* Hand a chunk of a finished map to the files. */
static int write_chunk(Chunk *c, Err *e)
{
    const Maps *m = &c->job->maps;
    int n_tiles = (c->n_rows + MAP_ROWS - 1) / MAP_ROWS;
    threads_run(c->s->threads, n_tiles, 1, prepare_tiles, c);
    for (int i = 0; i < m->o.n_files; i++)
        for (int tile = 0; tile < n_tiles; tile++)
            if (stopped(c->s, e)
                || mapfile_rows(&c->job->files[i], c->map, c->row + tile * MAP_ROWS,
                                tile_rows(c, tile),
                                c->rows + (size_t)tile * MAP_ROWS * (size_t)m->n,
                                &c->tiles[tile * m->o.n_files + i], e))
                return -1;
    return 0;
}

/* ---- replay ---------------------------------------------------------------------------------- */

typedef struct {
    MapJob *job;
    Session *s;
    Err *e;
    Chunk chunk;
    int chunk_rows;
    AllLayers all; // of mean and rollout
    bool progress;
    int layer_index;
} Replay;

/* Compute positions row .. of the present layer for some heads; statistics are added in order. */
static void run_chunk(Replay *r, int head, int n_heads, int row, int n_rows)
{
    MapJob *j = r->job;
    Chunk *c = &r->chunk;
    c->layer_index = r->layer_index;
    c->head = head;
    c->n_heads = n_heads;
    c->row = row;
    c->n_rows = n_rows;
    threads_run(r->s->threads, (n_rows + MAP_ROWS - 1) / MAP_ROWS, 1, weigh_tiles, c);
    for (int h = 0; c->row_stats && h < n_heads; h++)
        for (int i = 0; i < n_rows; i++)
            if (map_has_row(&j->maps, row + i))
                stats_add(&j->stats.heads[r->layer_index * j->maps.n_heads + head + h],
                          &c->row_stats[h * n_rows + i]);
}

/* All rows of some heads of the present layer, as one map. */
static int run_map(Replay *r, int head, int n_heads, int map)
{
    const Maps *m = &r->job->maps;
    bool rollout = m->o.reduce == REDUCE_ROLLOUT; // needs every row
    int first = rollout ? 0 : m->first, end = rollout ? m->n : m->first + m->n_queries;
    r->chunk.map = map;
    for (int row = first; row < end; row += r->chunk_rows) {
        run_chunk(r, head, n_heads, row, end - row < r->chunk_rows ? end - row : r->chunk_rows);
        if (stopped(r->s, r->e))
            return -1;
        if (m->o.reduce >= REDUCE_MEAN)
            all_layers_add(&r->all, r->s, r->layer_index, r->chunk.row, r->chunk.n_rows,
                           r->chunk.rows);
        else if (write_chunk(&r->chunk, r->e))
            return -1;
    }
    all_layers_end_layer(&r->all);
    return 0;
}

/* What the present layer's rows gave to the sinks. */
static void keep_sinks(const Replay *r, const Session *s, int layer)
{
    const Maps *m = &r->job->maps;
    size_t per_layer = (size_t)m->n_heads * (size_t)m->n_queries;
    float *out = m->sink_mass + (size_t)r->layer_index * per_layer;
    for (int h = 0; h < m->n_heads; h++)
        for (int q = 0; q < m->n_queries; q++)
            *out++ = attention_sink(s, layer, m->heads[h], m->first + q);
}

static int replay_layer(void *context, const HookRows *rows)
{
    Replay *r = context;
    const Maps *m = &r->job->maps;
    if (r->progress)
        fprintf(stderr, "\rattention maps: layer %d of %d", rows->layer + 1,
                map_config(m)->n_layers);
    if (r->layer_index == m->n_layers || m->layers[r->layer_index] != rows->layer)
        return 0;
    if (r->job->stats.on)
        stats_massive(&r->job->stats, r->layer_index, rows->s, m->n);
    if (m->sink_mass)
        keep_sinks(r, rows->s, rows->layer);
    int rc = 0;
    if (m->o.reduce == REDUCE_NONE)
        for (int h = 0; !rc && h < m->n_heads; h++)
            rc = run_map(r, h, 1, r->layer_index * m->n_heads + h);
    else
        rc = run_map(r, 0, m->n_heads, r->layer_index);
    r->layer_index++;
    return rc;
}

/* The matrix of mean or rollout goes to the files. */
static int write_whole(Replay *r)
{
    const Maps *m = &r->job->maps;
    float *rows = r->chunk.rows;
    int rc = 0;
    r->chunk.map = 0;
    for (int i = 0; !rc && i < m->n_queries; i += r->chunk_rows) {
        r->chunk.row = m->first + i;
        r->chunk.n_rows = m->n_queries - i < r->chunk_rows ? m->n_queries - i : r->chunk_rows;
        r->chunk.rows = all_layers_rows(&r->all, m->first + i);
        rc = write_chunk(&r->chunk, r->e);
    }
    r->chunk.rows = rows;
    return rc;
}

bool maps_wants_replay(const MapJob *j)
{
    for (int i = 0; i < j->maps.o.n_files; i++)
        if (!j->files[i].live)
            return true;
    return j->wants_stats;
}

static int alloc_replay(Replay *r)
{
    MapJob *j = r->job;
    Maps *m = &j->maps;
    bool reduced = m->o.reduce != REDUCE_NONE;
    size_t T = (size_t)m->n, heads = reduced ? (size_t)m->n_heads : 1, bytes;
    size_t rows = CHUNK_FLOATS / T / MAP_ROWS * MAP_ROWS;
    rows = rows < MAP_ROWS ? MAP_ROWS : rows > T ? T : rows;
    r->chunk_rows = (int)rows;
    size_t n_tiles = (rows + MAP_ROWS - 1) / MAP_ROWS;
    r->chunk.rows = size_mul(rows, T, &bytes) ? mem_alloc(bytes, sizeof(float)) : NULL;
    r->chunk.tiles = mem_zalloc(n_tiles * (size_t)m->o.n_files, sizeof *r->chunk.tiles);
    size_t n_spare = (size_t)r->s->threads->n_threads * MAP_ROWS * T;
    r->chunk.spare = reduced ? mem_alloc(n_spare, sizeof(float)) : NULL;
    r->chunk.row_stats = j->stats.on ? mem_alloc(heads * rows, sizeof *r->chunk.row_stats) : NULL;
    size_t n_sinks = (size_t)m->n_layers * (size_t)m->n_heads * (size_t)m->n_queries;
    bool sinks = map_config(m)->sinks;
    m->sink_mass = sinks ? mem_alloc(n_sinks, sizeof *m->sink_mass) : NULL;
    bool has_all = m->o.reduce < REDUCE_MEAN || !all_layers_init(&r->all, m);
    if (!r->chunk.rows || !r->chunk.tiles || (sinks && !m->sink_mass)
        || (reduced && !r->chunk.spare) || (j->stats.on && !r->chunk.row_stats) || !has_all)
        return err_set(r->e, EXIT_MEMORY, "out of memory for attention maps of %d tokens", m->n);
    return 0;
}

static void free_replay(Replay *r)
{
    size_t n_tiles = ((size_t)r->chunk_rows + MAP_ROWS - 1) / MAP_ROWS;
    for (size_t i = 0; r->chunk.tiles && i < n_tiles * (size_t)r->job->maps.o.n_files; i++)
        buf_free(&r->chunk.tiles[i]);
    free(r->chunk.rows);
    free(r->chunk.tiles);
    free(r->chunk.spare);
    free(r->chunk.row_stats);
    all_layers_free(&r->all);
}

typedef struct {
    Replay *replay;
    int rc;
} Body;

static void replay_body(void *context)
{
    Body *b = context;
    Replay *r = b->replay;
    const Maps *m = &r->job->maps;
    cache_expect(&r->s->cache, 0, m->n);
    Span text = {.n = m->n, .tokens = m->ids, .want = WANT_NONE};
    b->rc = forward_span(r->s, &text, r->e) < 0 ? -1 : 0;
    if (!b->rc && m->o.reduce >= REDUCE_MEAN)
        b->rc = write_whole(r);
}

int maps_replay(MapJob *j, SessionParams p, const int *ids, int n, Err *e)
{
    Session s;
    maps_set_text(&j->maps, ids, n);
    if (maps_check_disk(j, true, e))
        return -1;
    for (int i = 0; i < j->maps.o.n_files; i++)
        if (mapfile_begin(&j->files[i], e))
            return -1;
    p.max_rows = p.max_batch < n ? p.max_batch : n;
    p.max_batch = n;
    p.max_logits = 1;
    p.n_seqs = 1;
    p.keep_softmax = true;
    if (session_init(&s, model_stack(j->maps.model), &p, e))
        return -1;
    Replay r = {.job = j, .s = &s, .e = e, .progress = isatty(STDERR_FILENO)};
    Body b = {&r, 0};
    r.chunk.job = j;
    r.chunk.s = &s;
    session_hook(&s, HOOK_LAYER, replay_layer, &r);
    if (!(b.rc = alloc_replay(&r)))
        threads_team(s.threads, replay_body, &b);
    if (r.progress)
        fprintf(stderr, "\r\033[K");
    free_replay(&r);
    session_free(&s);
    if (!b.rc && j->stats.on)
        stats_end(&j->stats);
    return b.rc;
}
