/* job.h - one run's attention maps: files and statistics, and the two ways to get their rows.
 *
 * Live (live.c): the rows of each forward() of the running session, for files that take a line per
 * token. Replay (replay.c): one pass over the finished text, layer by layer, for files in the order
 * (layer, head, query). Either way the weights are computed again from the queries, the cache and
 * each row's saved maximum and sum, so attention itself is the same with maps on or off.
 */
#ifndef JOB_H
#define JOB_H

#include <stdatomic.h>

#include "maps/format.h"

/* One run's maps: the selection, its files and statistics, and the rows on their way. */
typedef struct {
    Maps maps;
    MapFile *files; // (maps.o.n_files), and after them the files of --dump-routing
    int n_files;    // both
    Routes routes;  // for these
    Stats stats;
    bool wants_stats;
    OutFile *stats_files; // (maps.o.n_stats)

    /* Live: what maps_live_watch() and each layer leave for maps_live_rows(). */
    Session *session;
    float *heads; // (n_heads, live rows, seq_len) of the present layer
    float *live;  // (live rows, maps, seq_len)
} MapJob;

/* Check the wishes against the model and the prompt, create the files under temporary names, and
 * see that what is known to be written fits on the disk. `n` is the least number of tokens that the
 * text will have. NULL on failure. */
MapJob *maps_open(const MapOptions *o, const Model *model, const char *model_path, int n_prompt,
                  int n, Err *e);

/* Whether what is still to be written fits on the disk; files on one disk are added up. `replay`:
 * those that get their rows live are written already. */
int maps_check_disk(const MapJob *j, bool replay, Err *e);

/* Whether rows are wanted while the session runs; then set it up (before session_init:
 * maps_live_params, after: _watch). */
bool maps_live(const MapJob *j);
void maps_live_params(const MapJob *j, SessionParams *p);
int maps_live_watch(MapJob *j, Session *s, Err *e);

/* After each forward(): its last n rows, with ids, go to the live files. */
int maps_live_rows(MapJob *j, const int *ids, int n, Err *e);

/* Whether maps_replay() has anything to do. */
bool maps_wants_replay(const MapJob *j);

/* The text is complete: write everything else in one pass, in a session of its own made with p
 * (n_seqs, max_batch and max_logits are set here). A signal ends it with -1 and e->code EXIT_OK. */
int maps_replay(MapJob *j, SessionParams p, const int *ids, int n, Err *e);

/* The text, ids (n), is complete: write the files that get their rows only now and the statistics
 * (those for "-" to standard output), and give all their names. */
int maps_finish(MapJob *j, const int *ids, int n, Err *e);

/* Free; files that were not finished are removed. NULL is fine. */
void maps_close(MapJob *j);

#endif
