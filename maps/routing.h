/* routing.h - which experts the tokens of a text went to, and with what weights: collected while
 * the session runs, for the files of --dump-routing (format.h writes them). */
#ifndef ROUTING_H
#define ROUTING_H

#include "model.h"

typedef struct {
    const Config *config;
    int *layers; // those with experts, ascending
    int n_layers, n_used;
    int n_rows;     // tokens that there is room for
    int *experts;   // (n_layers, n_rows, n_used), of the largest weight first
    float *weights; // the same
} Routes;

/* Find the layers; -1 and EXIT_USAGE where none has experts. routes_free() in either case. */
int routes_init(Routes *r, const Config *c, Err *e);

/* Collect, from now on, what a session of one sequence does. */
int routes_watch(Routes *r, Session *s, Err *e);
void routes_free(Routes *r);

/* Where the experts of a token in one of the layers begin. */
static inline size_t routes_at(const Routes *r, int layer_index, int pos)
{
    return ((size_t)layer_index * (size_t)r->n_rows + (size_t)pos) * (size_t)r->n_used;
}

/* How evenly a session has used its experts, as a line of text without its end; empty where the
 * model has none. */
void routes_describe(const Session *s, char *out, size_t size);

#endif
