/* replay.c - attention maps: selection, live rows, replay and reductions. Contracts are in maps.h.
 *
 * The replay runs the whole text as one batch that is watched: after each layer the queries of all rows and the layer's
 * keys are there, and the layer's maps are computed in tiles of MAP_ROWS rows, handed to the statistics and the files
 * while they are hot, and forgotten. What is held is a chunk of rows, never a whole set of maps; only `mean` and `rollout`
 * hold one or two matrices of T x T.
 */
#include "maps/maps.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "maps/dump.h"

const char *const map_reduce_names[] = {"none", "mean-heads", "max-heads", "mean", "rollout", NULL};

enum { CHUNK_FLOATS = 1 << 22, LIVE_FLOATS = 1 << 24 };

struct MapJob {
    Maps maps;
    MapFile *files; // (maps.o.n_files)
    Stats stats;
    bool wants_stats;
    OutFile *stats_files; // (maps.o.n_stats)

    /* Live. */
    Session *session;
    float *heads; // (n_heads, live rows, seq_len) of the present layer
    float *live;  // (live rows, maps, seq_len)
    int n_live;   // rows of one forward(), at most
};

/* ---- selection ---------------------------------------------------------------------------------------------- */

static int bad_list(const char *flag, const char *list, const char *want, Err *e)
{
    char seen[80];
    return err_set(e, EXIT_USAGE, "%s: got \"%s\", want %s", flag, str_escape((Str){list, strlen(list)}, seen, sizeof seen), want);
}

/* A number of the list, negative ones counted from n. -1 if there is none or it is out of range. */
static long read_index(const char **p, long n)
{
    char *end;
    if (**p != '-' && (**p < '0' || **p > '9'))
        return -1;
    long v = strtol(*p, &end, 10);
    if (end == *p || v >= n || v < -n)
        return -1;
    *p = end;
    return v < 0 ? v + n : v;
}

/* "0,3-5,-1" out of n things -> ascending numbers without repeats, freed by the caller. */
static int *read_list(const char *flag, const char *list, int n, int *count, Err *e)
{
    int *out = mem_alloc((size_t)n, sizeof *out);
    bool *chosen = mem_zalloc((size_t)n, sizeof *chosen);
    char want[80];
    snprintf(want, sizeof want, "numbers and ranges from 0 to %d, such as 0,3-5,-1", n - 1);
    int rc = out && chosen ? 0 : err_set(e, EXIT_MEMORY, "out of memory");
    for (const char *p = list; !rc && p;) {
        long from = read_index(&p, n), to = from;
        if (from >= 0 && *p == '-') {
            p++;
            to = read_index(&p, n);
        }
        if (from < 0 || to < from || (*p && *p != ','))
            rc = bad_list(flag, list, want, e);
        for (long i = from; !rc && i <= to; i++)
            chosen[i] = true;
        p = *p == ',' ? p + 1 : NULL;
    }
    *count = 0;
    for (int i = 0; !rc && i < n; i++)
        if (!list || chosen[i])
            out[(*count)++] = i;
    free(chosen);
    if (rc) {
        free(out);
        out = NULL;
    }
    return out;
}

/* The rows of a text of n tokens; with n = 0 only the spelling is checked. */
static int choose_queries(Maps *m, int n, Err *e)
{
    const char *q = m->o.queries;
    char *end;
    m->first = 0;
    m->n_queries = n;
    if (!q || !strcmp(q, "all"))
        return 0;
    if (!strcmp(q, "prompt")) {
        m->n_queries = n < m->n_prompt ? n : m->n_prompt;
        return 0;
    }
    if (!strcmp(q, "generated")) {
        m->first = n < m->n_prompt ? n : m->n_prompt;
        m->n_queries = n - m->first;
        return 0;
    }
    long from = *q >= '0' && *q <= '9' ? strtol(q, &end, 10) : -1, to = from;
    if (from >= 0 && *end == '-' && end[1] >= '0' && end[1] <= '9')
        to = strtol(end + 1, &end, 10);
    if (from < 0 || to < from || *end)
        return bad_list("--attn-queries", q, "all, prompt, generated or positions A-B", e);
    m->first = from < n ? (int)from : n;
    m->n_queries = (to < n ? (int)to + 1 : n) - m->first;
    return 0;
}

static int select_maps(Maps *m, Err *e)
{
    const Config *c = &m->model->config;
    m->layers = read_list("--attn-layers", m->o.layers, c->n_layers, &m->n_layers, e);
    if (!m->layers)
        return -1;
    int n_heads = c->layers[m->layers[0]].n_heads;
    for (int i = 1; i < m->n_layers; i++)
        if (c->layers[m->layers[i]].n_heads != n_heads)
            return err_set(e, EXIT_USAGE, "--attn-layers: got layers with %d and %d heads, want layers with as many heads each",
                           n_heads, c->layers[m->layers[i]].n_heads);
    m->heads = read_list("--attn-heads", m->o.heads, n_heads, &m->n_heads, e);
    return m->heads ? choose_queries(m, 0, e) : -1;
}

const char *map_model_name(const Maps *m)
{
    const char *slash = strrchr(m->model_path, '/');
    return slash ? slash + 1 : m->model_path;
}

/* ---- files -------------------------------------------------------------------------------------------------- */

static void set_text(Maps *m, const int *ids, int n)
{
    Err none;
    m->ids = ids;
    m->n = n;
    choose_queries(m, n, &none); // was checked by maps_open()
}

/* Whether what is still to be written fits; files on one disk are added up. `replay`: the live ones are written. */
static int check_disk(const MapJob *j, bool replay, Err *e)
{
    const Maps *m = &j->maps;
    for (int i = 0; i < m->o.n_files; i++) {
        struct statvfs v;
        struct stat a, b;
        const OutFile *out = &j->files[i].out;
        double need = 0, mine = j->files[i].format->size(m);
        if (!out->temporary || stat(out->temporary, &a) || statvfs(out->temporary, &v))
            continue;
        for (int k = 0; k < m->o.n_files; k++) {
            const char *other = j->files[k].out.temporary;
            if (other && !(replay && mapfile_live(&j->files[k])) && !stat(other, &b) && b.st_dev == a.st_dev)
                need += j->files[k].format->size(m);
        }
        double room = (double)v.f_bavail * (double)v.f_frsize;
        if (need <= room)
            continue;
        err_set(e, EXIT_IO, "got %.1f MB of maps to write (%.1f MB in all), want at most the %.1f MB that the disk has; --attn-layers, "
                "--attn-heads, --attn-queries, --attn-reduce%s make them smaller", mine / 1e6, need / 1e6, room / 1e6,
                m->o.half ? "" : " or --attn-dtype f16");
        return err_prefix(e, out->path);
    }
    return 0;
}

MapJob *maps_open(const MapOptions *o, const Model *model, const char *model_path, int n_prompt, int n, Err *e)
{
    MapJob *j = mem_zalloc(1, sizeof *j);
    MapFile *files = mem_zalloc((size_t)o->n_files, sizeof *files);
    OutFile *stats_files = mem_zalloc((size_t)o->n_stats, sizeof *stats_files);
    if (!j || !files || !stats_files) {
        free(j);
        free(files);
        free(stats_files);
        err_set(e, EXIT_MEMORY, "out of memory for attention maps");
        return NULL;
    }
    j->files = files;
    j->stats_files = stats_files;
    j->maps = (Maps){.model = model, .model_path = model_path, .o = *o, .n_prompt = n_prompt};
    j->wants_stats = o->n_stats > 0;
    int rc = select_maps(&j->maps, e);
    set_text(&j->maps, NULL, n);
    for (int i = 0; !rc && i < o->n_files; i++) {
        rc = mapfile_open(&j->files[i], o->files[i], &j->maps, &j->stats, e);
        j->wants_stats |= !rc && j->files[i].format == &format_html;
    }
    if (!rc)
        rc = check_disk(j, false, e);
    for (int i = 0; !rc && i < o->n_stats; i++)
        rc = out_open(&j->stats_files[i], o->stats[i], e);
    if (!rc && j->wants_stats)
        rc = stats_init(&j->stats, &j->maps, e);
    if (!rc)
        return j;
    maps_close(j);
    return NULL;
}

/* One file of statistics; its name says in which form. */
static int write_stats(const MapJob *j, OutFile *file, Err *e)
{
    const char *path = file->path;
    Buf out = {0};
    size_t n = strlen(path);
    if (!strcmp(path, "-"))
        stats_table(&j->stats, &out);
    else if (n > 5 && !strcmp(path + n - 5, ".json"))
        stats_json(&j->stats, &out);
    else
        stats_csv(&j->stats, &out);
    int rc = out.failed ? err_set(e, EXIT_MEMORY, "out of memory for the statistics")
           : fwrite(out.ptr, 1, out.len, file->f) != out.len ? out_error(file, e)
           : out_finish(file, e);
    buf_free(&out);
    return rc;
}

int maps_finish(MapJob *j, Err *e)
{
    for (int i = 0; i < j->maps.o.n_files; i++)
        if (mapfile_finish(&j->files[i], e))
            return -1;
    for (int i = 0; i < j->maps.o.n_stats; i++)
        if (write_stats(j, &j->stats_files[i], e))
            return -1;
    for (int i = 0; i < j->maps.o.n_files; i++) // all are complete before one gets its name
        if (mapfile_commit(&j->files[i], e))
            return -1;
    for (int i = 0; i < j->maps.o.n_stats; i++)
        if (out_commit(&j->stats_files[i], e))
            return -1;
    return 0;
}

void maps_close(MapJob *j)
{
    if (!j)
        return;
    for (int i = 0; i < j->maps.o.n_files; i++)
        mapfile_close(&j->files[i]);
    for (int i = 0; i < j->maps.o.n_stats; i++)
        out_discard(&j->stats_files[i]);
    stats_free(&j->stats);
    free(j->files);
    free(j->stats_files);
    free(j->maps.layers);
    free(j->maps.heads);
    free(j->heads);
    free(j->live);
    free(j);
}

/* ---- tiles -------------------------------------------------------------------------------------------------- */

/* dst = weights of one head, or the mean or maximum so far and those: the i-th of n heads. */
static void reduce(MapReduce how, float *dst, const float *w, size_t count, int i, int n)
{
    if (how == REDUCE_MAX_HEADS) {
        for (size_t k = 0; k < count; k++)
            dst[k] = i && dst[k] > w[k] ? dst[k] : w[k];
        return;
    }
    float scale = 1 / (float)n;
    for (size_t k = 0; k < count; k++)
        dst[k] = (i ? dst[k] : 0) + w[k] * scale;
}

/* Rows of one layer, heads head .. head + n_heads - 1 of the selection, reduced to one map if there are several. */
typedef struct {
    MapJob *job;
    Session *s; // its params.stop leaves work out
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
    size_t width = q_width(&m->model->config, &m->model->config.layers[layer]);
    for (int tile = from; tile < to; tile++) {
        int n = tile_rows(c, tile), row = c->row + tile * MAP_ROWS;
        float *out = c->rows + (size_t)tile * MAP_ROWS * T;
        for (int h = 0; h < c->n_heads; h++) {
            float *w = c->n_heads > 1 ? c->spare + (size_t)thread * MAP_ROWS * T : out;
            attention_weights(s, layer, 0, m->heads[c->head + h], row, n, s->q + (size_t)row * width,
                              s->soft + (size_t)row * (size_t)s->max_heads * 2, w, m->n, thread);
            for (int r = 0; c->row_stats && r < n; r++)
                stats_row(m, layer, row + r, w + (size_t)r * T, &c->row_stats[h * c->n_rows + tile * MAP_ROWS + r]);
            if (c->n_heads > 1)
                reduce(m->o.reduce, out, w, (size_t)n * T, h, c->n_heads);
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
            const MapFile *f = &c->job->files[i];
            Buf *out = &c->tiles[tile * c->job->maps.o.n_files + i];
            out->len = 0;
            if (f->format->tile && !mapfile_live(f))
                f->format->tile(f, c->map, c->row + tile * MAP_ROWS, tile_rows(c, tile),
                                c->rows + (size_t)tile * MAP_ROWS * (size_t)c->job->maps.n, out);
        }
}

static bool stopped(const Session *s, Err *e)
{
    if (!stop_wanted(&s->params))
        return false;
    e->code = EXIT_OK;
    return true;
}

/* Hand a chunk of a finished map to the files. */
static int write_chunk(Chunk *c, Err *e)
{
    const Maps *m = &c->job->maps;
    int n_tiles = (c->n_rows + MAP_ROWS - 1) / MAP_ROWS;
    threads_run(&c->s->threads, n_tiles, 1, prepare_tiles, c);
    for (int i = 0; i < m->o.n_files; i++) {
        MapFile *f = &c->job->files[i];
        for (int tile = 0; tile < n_tiles && !mapfile_live(f); tile++) {
            const Buf *b = &c->tiles[tile * m->o.n_files + i];
            if (stopped(c->s, e))
                return -1;
            if (b->failed)
                return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
            if (f->format->rows(f, c->map, c->row + tile * MAP_ROWS, tile_rows(c, tile),
                                c->rows + (size_t)tile * MAP_ROWS * (size_t)m->n, b, e))
                return -1;
        }
    }
    return 0;
}

/* ---- replay ------------------------------------------------------------------------------------------------- */

typedef struct {
    MapJob *job;
    Session *s;
    Err *e;
    Chunk chunk;
    int chunk_rows;
    float *whole, *next; // (T, T) of mean and rollout, and rollout's next
    bool progress;
    int layer_index;
} Replay;

/* Rows 0 .. of rollout's next matrix: R' = (A R + R) / 2 with A in chunk.rows. */
static void roll_tiles(void *context, int from, int to, int thread)
{
    Replay *r = context;
    const Chunk *c = &r->chunk;
    size_t T = (size_t)r->job->maps.n;
    (void)thread;
    for (int tile = from; tile < to; tile++) {
        int row = c->row + tile * MAP_ROWS, n = tile_rows(c, tile);
        const float *a = c->rows + (size_t)tile * MAP_ROWS * T;
        float *out = r->next + (size_t)row * T;
        memcpy(out, r->whole + (size_t)row * T, (size_t)n * T * sizeof *out);
        r->s->k->gemm_add((size_t)n, (size_t)(row + n), T, a, T, r->whole, T, out, T);
        for (size_t i = 0; i < (size_t)n * T; i++)
            out[i] *= 0.5f;
    }
}

/* A chunk of one layer's reduced map -> the matrix of mean or rollout. */
static void take_whole(Replay *r)
{
    const Maps *m = &r->job->maps;
    const Chunk *c = &r->chunk;
    if (m->o.reduce == REDUCE_MEAN)
        reduce(REDUCE_MEAN, r->whole + (size_t)(c->row - m->first) * (size_t)m->n, c->rows, (size_t)c->n_rows * (size_t)m->n,
               r->layer_index, m->n_layers);
    else
        threads_run(&r->s->threads, (c->n_rows + MAP_ROWS - 1) / MAP_ROWS, 1, roll_tiles, r);
}

/* Compute positions row .. of the present layer for some heads; statistics are added up in order. */
static void run_chunk(Replay *r, int head, int n_heads, int row, int n_rows)
{
    MapJob *j = r->job;
    Chunk *c = &r->chunk;
    c->layer_index = r->layer_index;
    c->head = head;
    c->n_heads = n_heads;
    c->row = row;
    c->n_rows = n_rows;
    threads_run(&r->s->threads, (n_rows + MAP_ROWS - 1) / MAP_ROWS, 1, weigh_tiles, c);
    for (int h = 0; c->row_stats && h < n_heads; h++)
        for (int i = 0; i < n_rows; i++)
            if (row + i >= j->maps.first && row + i < j->maps.first + j->maps.n_queries)
                stats_add(&j->stats.heads[r->layer_index * j->maps.n_heads + head + h], &c->row_stats[h * n_rows + i]);
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
            take_whole(r);
        else if (write_chunk(&r->chunk, r->e))
            return -1;
    }
    if (rollout) {
        float *swap = r->whole;
        r->whole = r->next;
        r->next = swap;
    }
    return 0;
}

static int replay_layer(void *context, Session *s, int layer)
{
    Replay *r = context;
    const Maps *m = &r->job->maps;
    if (r->progress)
        fprintf(stderr, "\rattention maps: layer %d of %d", layer + 1, m->model->config.n_layers);
    if (r->layer_index == m->n_layers || m->layers[r->layer_index] != layer)
        return 0;
    if (r->job->stats.on)
        stats_massive(&r->job->stats, r->layer_index, s, m->n);
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
    int base = m->o.reduce == REDUCE_MEAN ? m->first : 0; // position of its first row
    float *rows = r->chunk.rows;
    int rc = 0;
    r->chunk.map = 0;
    for (int i = 0; !rc && i < m->n_queries; i += r->chunk_rows) {
        r->chunk.row = m->first + i;
        r->chunk.n_rows = m->n_queries - i < r->chunk_rows ? m->n_queries - i : r->chunk_rows;
        r->chunk.rows = r->whole + (size_t)(m->first + i - base) * (size_t)m->n;
        rc = write_chunk(&r->chunk, r->e);
    }
    r->chunk.rows = rows;
    return rc;
}

bool maps_wants_replay(const MapJob *j)
{
    for (int i = 0; i < j->maps.o.n_files; i++)
        if (!mapfile_live(&j->files[i]))
            return true;
    return j->wants_stats;
}

static int alloc_replay(Replay *r)
{
    MapJob *j = r->job;
    const Maps *m = &j->maps;
    bool reduced = m->o.reduce != REDUCE_NONE, whole = m->o.reduce >= REDUCE_MEAN;
    size_t T = (size_t)m->n, rows = CHUNK_FLOATS / T / MAP_ROWS * MAP_ROWS, heads = reduced ? (size_t)m->n_heads : 1, bytes;
    rows = rows < MAP_ROWS ? MAP_ROWS : rows > T ? T : rows;
    r->chunk_rows = (int)rows;
    size_t n_tiles = (rows + MAP_ROWS - 1) / MAP_ROWS;
    r->chunk.rows = size_mul(rows, T, &bytes) ? mem_alloc(bytes, sizeof(float)) : NULL;
    r->chunk.tiles = mem_zalloc(n_tiles * (size_t)m->o.n_files, sizeof *r->chunk.tiles);
    r->chunk.spare = reduced ? mem_alloc((size_t)r->s->params.n_threads * MAP_ROWS * T, sizeof(float)) : NULL;
    r->chunk.row_stats = j->stats.on ? mem_alloc(heads * rows, sizeof *r->chunk.row_stats) : NULL;
    r->whole = whole ? mem_zalloc(T * T, sizeof(float)) : NULL;
    r->next = m->o.reduce == REDUCE_ROLLOUT ? mem_alloc(T * T, sizeof(float)) : NULL;
    if (!r->chunk.rows || !r->chunk.tiles || (reduced && !r->chunk.spare) || (j->stats.on && !r->chunk.row_stats) || (whole && !r->whole)
        || (m->o.reduce == REDUCE_ROLLOUT && !r->next))
        return err_set(r->e, EXIT_MEMORY, "out of memory for attention maps of %d tokens", m->n);
    for (size_t i = 0; m->o.reduce == REDUCE_ROLLOUT && i < T; i++)
        r->whole[i * T + i] = 1;
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
    free(r->whole);
    free(r->next);
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
    b->rc = forward(r->s, &(Batch){.n = m->n, .tokens = m->ids, .want = WANT_NONE}, r->e) < 0 ? -1 : 0;
    if (!b->rc && m->o.reduce >= REDUCE_MEAN)
        b->rc = write_whole(r);
}

int maps_replay(MapJob *j, SessionParams p, const int *ids, int n, const volatile sig_atomic_t *stop, Err *e)
{
    Session s;
    set_text(&j->maps, ids, n);
    if (check_disk(j, true, e))
        return -1;
    for (int i = 0; i < j->maps.o.n_files; i++)
        if (!mapfile_live(&j->files[i]) && j->files[i].format->begin(&j->files[i], e))
            return -1;
    p.max_rows = p.max_batch < n ? p.max_batch : n;
    p.max_batch = n;
    p.max_logits = 1;
    p.n_seqs = 1;
    p.keep_soft = true;
    p.stop = stop;
    if (session_init(&s, j->maps.model, &p, e))
        return -1;
    Replay r = {.job = j, .s = &s, .e = e, .progress = isatty(STDERR_FILENO)};
    Body b = {&r, 0};
    r.chunk.job = j;
    r.chunk.s = &s;
    s.watch = replay_layer;
    s.watch_context = &r;
    if (!(b.rc = alloc_replay(&r)))
        threads_team(&s.threads, replay_body, &b);
    if (r.progress)
        fprintf(stderr, "\r\033[K");
    free_replay(&r);
    session_free(&s);
    if (!b.rc && j->stats.on)
        stats_end(&j->stats);
    return b.rc;
}

/* ---- live --------------------------------------------------------------------------------------------------- */

bool maps_live(const MapJob *j)
{
    for (int i = 0; i < j->maps.o.n_files; i++)
        if (mapfile_live(&j->files[i]))
            return true;
    return false;
}

static size_t live_maps(const Maps *m)
{
    return (size_t)map_layers(m) * (size_t)map_heads(m);
}

void maps_live_params(const MapJob *j, SessionParams *p)
{
    size_t row = live_maps(&j->maps) * (size_t)p->seq_len, n = LIVE_FLOATS / row;
    n = n < 1 ? 1 : n > MAP_ROWS ? MAP_ROWS : n;
    p->max_batch = (size_t)p->max_batch < n ? p->max_batch : (int)n;
    p->max_logits = p->max_logits < p->max_batch ? p->max_logits : p->max_batch;
    p->keep_soft = true;
}

static void live_heads(void *context, int from, int to, int thread)
{
    const Chunk *c = context;
    const MapJob *j = c->job;
    const Maps *m = &j->maps;
    Session *s = c->s;
    int n_keys = c->row + c->n_rows;
    for (int h = from; h < to; h++)
        attention_weights(s, m->layers[c->layer_index], 0, m->heads[h], c->row, c->n_rows, s->q, s->soft,
                          j->heads + (size_t)h * (size_t)c->n_rows * (size_t)n_keys, n_keys, thread);
}

static int live_layer(void *context, Session *s, int layer)
{
    MapJob *j = context;
    const Maps *m = &j->maps;
    int index = 0;
    while (index < m->n_layers && m->layers[index] != layer)
        index++;
    if (index == m->n_layers)
        return 0;
    Chunk c = {.job = j, .s = s, .layer_index = index, .row = s->cache.seqs[0].n_pos};
    c.n_rows = s->n_rows;
    size_t n_keys = (size_t)(c.row + c.n_rows), seq_len = (size_t)s->params.seq_len, n_maps = live_maps(m);
    threads_run(&s->threads, m->n_heads, 1, live_heads, &c);
    for (int h = 0; h < m->n_heads; h++)
        for (int r = 0; r < c.n_rows; r++) {
            const float *w = j->heads + ((size_t)h * (size_t)c.n_rows + (size_t)r) * n_keys;
            bool one = m->o.reduce >= REDUCE_MEAN, none = m->o.reduce == REDUCE_NONE;
            size_t map = one ? 0 : none ? (size_t)(index * m->n_heads + h) : (size_t)index;
            float *to = j->live + ((size_t)r * n_maps + map) * seq_len;
            int i = none ? 0 : one ? index * m->n_heads + h : h, n = none ? 1 : one ? m->n_layers * m->n_heads : m->n_heads;
            reduce(m->o.reduce, to, w, n_keys, i, n);
        }
    return 0;
}

int maps_live_watch(MapJob *j, Session *s, Err *e)
{
    size_t seq_len = (size_t)s->params.seq_len, rows = (size_t)s->params.max_batch;
    j->heads = mem_alloc((size_t)j->maps.n_heads * rows * seq_len, sizeof *j->heads);
    j->live = mem_alloc(live_maps(&j->maps) * rows * seq_len, sizeof *j->live);
    if (!j->heads || !j->live)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    j->session = s;
    s->watch = live_layer;
    s->watch_context = j;
    return 0;
}

int maps_live_rows(MapJob *j, const int *ids, int n, Err *e)
{
    const Session *s = j->session;
    size_t seq_len = (size_t)s->params.seq_len, n_maps = live_maps(&j->maps);
    int pos = s->cache.seqs[0].n_pos - n;
    const float *live = j->live + (size_t)(s->n_rows - n) * n_maps * seq_len;
    if (stop_wanted(&s->params) && pos + n < j->maps.n_prompt)
        return 0; // the prompt will not be complete, and then no file is made
    set_text(&j->maps, NULL, pos + n);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < j->maps.o.n_files; i++)
            if (pos + r >= j->maps.first && pos + r < j->maps.first + j->maps.n_queries && mapfile_live(&j->files[i])
                && mapfile_line(&j->files[i], pos + r, ids[r], live + (size_t)r * n_maps * seq_len, seq_len, e))
                return -1;
    return 0;
}
