/* maps.h - attention maps: which are wanted, and of what text. How they are computed and written is
 * said in job.h, which is above the statistics (stats.h) and the files (format.h); these know a
 * selection only.
 */
#ifndef MAPS_H
#define MAPS_H

#include "model.h"

typedef enum {
    REDUCE_NONE,
    REDUCE_MEAN_HEADS,
    REDUCE_MAX_HEADS,
    REDUCE_MEAN,
    REDUCE_ROLLOUT // of all layers
} MapReduce;
extern const char *const map_reduce_names[]; // as typed after --attn-reduce, NULL past the last

/* What the user asked for, as typed; NULL is all. */
typedef struct {
    const char *layers, *heads, *queries;
    MapReduce reduce;
    int half; // 1: --attn-dtype f16
    int top;  // largest weights of a row, 0: all
    const char **files;
    int n_files;
    const char **stats; // names of files, or "-"
    int n_stats;
    const char **routing; // names of files of another kind: routing.h
    int n_routing;
} MapOptions;

/* The text and the selection. Map number i is layer i / n_heads, head i % n_heads of the selection;
 * with a reduction there are fewer: see map_layers() and map_heads(). */
typedef struct {
    const Model *model;
    const char *model_path;
    MapOptions o;
    int *layers, *heads; // selected, ascending
    int n_layers, n_heads;
    const int *ids; // (n) the text
    int n, n_prompt;
    int first, n_queries; // rows
    float *sink_mass;     // (n_layers, n_heads, n_queries) weights of the sinks, or NULL
} Maps;

static inline const Config *map_config(const Maps *m)
{
    return &model_stack(m->model)->config;
}

/* What files call the maps of an encoder, whose queries see later keys too; NULL for a decoder's.
 */
static inline const char *map_kind(const Maps *m)
{
    return map_config(m)->encoder ? "encoder" : NULL;
}

static inline int map_layers(const Maps *m)
{
    return m->o.reduce >= REDUCE_MEAN ? 1 : m->n_layers;
}

static inline int map_heads(const Maps *m)
{
    return m->o.reduce == REDUCE_NONE ? m->n_heads : 1;
}

static inline bool map_has_row(const Maps *m, int pos) // the row at pos was chosen
{
    return pos >= m->first && pos < m->first + m->n_queries;
}

/* Read the lists and ranges of m->o for m->model into m->layers and m->heads, which the caller
 * frees, whatever is returned. -1 with a message for a bad one. */
int maps_select(Maps *m, Err *e);

/* The text (ids may be NULL where only its length is known), and with it the chosen rows. */
void maps_set_text(Maps *m, const int *ids, int n);

const char *map_model_name(const Maps *m); // the file's name without folders

/* A token's text for people and its exact bytes, appended to `out`. */
void map_token_text(const Maps *m, int id, Buf *out);
void map_token_bytes(const Maps *m, int id, Buf *out);

/* "3,5,": layer and head of map number `map`, or the words of the reduction. */
void map_label(const Maps *m, int map, char *out, size_t size);

/* How many keys the row of the query at position pos has in files: the last one that any selected
 * layer lets it see, and those before; in an encoder all. */
int map_keys(const Maps *m, int pos);

/* Weights of all maps, for the sizes of files: all of them, and those of map_keys(). */
double map_n_weights(const Maps *m);
double map_n_visible(const Maps *m);

/* keys (n) gets the k largest of the n weights w, largest first, earlier keys first where equal.
 * How many these are, or -1 when out of memory. */
int map_top(const float *w, int n, int k, int *keys);

#endif
