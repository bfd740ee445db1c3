/* stats.h - statistics of attention maps, per layer and head. docs/attention.md has the
 * formulas. */
#ifndef STATS_H
#define STATS_H

#include "maps/maps.h"

typedef struct {
    int layer, head;
    double rows, entropy, entropy_rel, distance, sink, self, previous, max_weight,
        sink_rows;                  // sums until stats_end()
    double hits, weight, induction; // weight on what follows an earlier occurrence, and all weight
    double massive[3];              // of queries, keys, values
    int dim[3];
} HeadStats;

typedef struct {
    const Maps *maps;
    HeadStats *heads; // (n_layers * n_heads) of the selection
    bool on;
} Stats;

int stats_init(Stats *s, const Maps *m, Err *e);
void stats_free(Stats *s);

/* Sums of one row at position pos: w (pos + 1) -> *out. Any thread. */
void stats_row(const Maps *m, int layer, int pos, const float *w, HeadStats *out);
void stats_add(HeadStats *sum, const HeadStats *row);

/* Massive values of a layer (index of the selection) from a session that is watching it. */
void stats_massive(Stats *s, int layer_index, Session *session, int n);

void stats_end(Stats *s); // sums -> means

/* The columns in order: stats_column(i) is NULL past the last; values that do not exist are NaN. */
const char *stats_column(int i);
double stats_value(const HeadStats *h, int column);

void stats_csv(const Stats *s, Buf *out);
void stats_json(const Stats *s, Buf *out);
void stats_table(const Stats *s, Buf *out); // for people and awk: aligned, one header line

#endif
