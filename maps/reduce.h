/* reduce.h - several maps as one: mean or maximum of a layer's heads, mean or rollout of all
 * layers. */
#ifndef REDUCE_H
#define REDUCE_H

#include "maps/maps.h"

/* Put the i-th of n maps into dst, both of `count` weights: dst becomes w for i = 0 (by the factor
 * 1 / n if the mean is wanted), later the sum or maximum of both. Everything but REDUCE_MAX_HEADS
 * is a mean. */
void map_reduce(MapReduce how, float *dst, const float *w, size_t count, int i, int n);

/* The one map that REDUCE_MEAN and REDUCE_ROLLOUT make of all layers, which are put in one by one.
 * Rollout (Abnar and Zuidema 2020): R = I before the first layer, then R' = (A R + R) / 2 with the
 * mean A of its heads. */
typedef struct {
    const Maps *maps;
    float *rows; // (T, T), the mean from the first chosen query on, rollout from position 0 on
    float *next; // (T, T), rollout only: R' in the making
} AllLayers;

int all_layers_init(AllLayers *a, const Maps *m); // -1 when out of memory; free it in either case
void all_layers_free(AllLayers *a);

/* Put in rows pos .. pos + n_rows - 1 of the layer's reduced map w (n_rows, T). */
void all_layers_add(AllLayers *a, Session *s, int layer_index, int pos, int n_rows, const float *w);
void all_layers_end_layer(AllLayers *a); // all its rows were put in

float *all_layers_rows(const AllLayers *a, int pos); // (.., T), from position pos on

#endif
