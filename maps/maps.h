/* maps.h - attention maps: what is wanted of them, and the two ways to get them.
 *
 * Live: the rows of each forward() of the running session, for files that take a line per token. Replay: one pass over the
 * finished text, layer by layer, for files in the order (layer, head, query). Either way the weights are computed again
 * from the queries, the cache and each row's saved maximum and sum, so attention itself is the same with maps on or off.
 */
#ifndef MAPS_H
#define MAPS_H

#include <signal.h>

#include "model.h"

typedef enum { REDUCE_NONE, REDUCE_MEAN_HEADS, REDUCE_MAX_HEADS, REDUCE_MEAN, REDUCE_ROLLOUT } MapReduce;
extern const char *const map_reduce_names[]; // as typed after --attn-reduce, NULL past the last

/* What the user asked for, as typed; NULL is all. */
typedef struct {
    const char *layers, *heads, *queries;
    MapReduce reduce;
    int half;  // 1: --attn-dtype f16
    int top;   // largest weights of a row, 0: all
    const char **files;
    int n_files;
    const char **stats; // names of files, or "-"
    int n_stats;
} MapOptions;

/* The text and the selection. Map number i is layer i / n_heads, head i % n_heads of the selection; with a reduction there
 * are fewer: see map_layers() and map_heads(). */
typedef struct {
    const Model *model;
    const char *model_path;
    MapOptions o;
    int *layers, *heads; // selected, ascending
    int n_layers, n_heads;
    const int *ids; // (n) the text
    int n, n_prompt;
    int first, n_queries; // rows
} Maps;

static inline int map_layers(const Maps *m) { return m->o.reduce >= REDUCE_MEAN ? 1 : m->n_layers; }
static inline int map_heads(const Maps *m) { return m->o.reduce == REDUCE_NONE ? m->n_heads : 1; }

const char *map_model_name(const Maps *m); // the file's name without folders

/* One run's maps: the selection, its files and statistics, and the rows on their way. */
typedef struct MapJob MapJob;

/* Check the wishes against the model and the prompt, create the files under temporary names, and see that what is known
 * to be written fits on the disk. `n` is the least number of tokens that the text will have. NULL on failure. */
MapJob *maps_open(const MapOptions *o, const Model *model, const char *model_path, int n_prompt, int n, Err *e);

/* Whether rows are wanted while the session runs; then set it up (before session_init: maps_live_params, after: _watch). */
bool maps_live(const MapJob *j);
void maps_live_params(const MapJob *j, SessionParams *p);
int maps_live_watch(MapJob *j, Session *s, Err *e);

/* After each forward(): its last n rows, with ids, go to the live files. */
int maps_live_rows(MapJob *j, const int *ids, int n, Err *e);

/* Whether maps_replay() has anything to do. */
bool maps_wants_replay(const MapJob *j);

/* The text is complete: write everything else in one pass, in a session of its own made with p (n_seqs, max_batch and
 * max_logits are set here). *stop other than 0 ends it with -1 and e->code EXIT_OK. */
int maps_replay(MapJob *j, SessionParams p, const int *ids, int n, const volatile sig_atomic_t *stop, Err *e);

/* Give the files their names and write the statistics (those for "-" to standard output). */
int maps_finish(MapJob *j, Err *e);

/* Free; files that were not finished are removed. NULL is fine. */
void maps_close(MapJob *j);

#endif
