/* recurrent.h - what recurrent.c asks of the kinds of layers whose heads have matrices for states.
 * For each row it makes
 *
 *   x     the convolution's result, through a SiLU           (conv_dim)
 *   gate, beta, dt     what the row's other products give    (n_heads, value_dim), (n_heads) twice
 *
 * calls prepare(), has the heads' matrices take a step (Kernels.state_step), each with the parts of
 * x that at() names, and calls finish().
 */
#ifndef RECURRENT_H
#define RECURRENT_H

#include "model.h"

/* A row of a layer. */
typedef struct {
    const Session *s;
    const Layer *l;
    const Recurrence *rec;
    float *x, *gate; // (conv_dim), (n_heads, value_dim)
    float *rate;     // (n_heads) beta, which prepare() makes a step's rate
    float *decay;    // (n_heads) dt, which it makes a step's decay
    float *out;      // (n_heads, value_dim) what the steps answer
} StateRow;

/* Where a head's query, key and value begin in x. */
typedef struct {
    size_t q, k, v;
} HeadParts;

typedef struct {
    HeadParts (*at)(const Recurrence *rec, size_t head);
    void (*prepare)(const StateRow *row);
    void (*finish)(const StateRow *row); // out -> what Wo gets
    bool corrects;                       // see Kernels.state_step
} StateKind;

extern const StateKind delta_net, mamba;

/* log(1 + exp(x)) */
float softplus(float x);

#endif
