/* sampler.h - from logits to the next token: bias, penalties, top-k, top-p, min-p, temperature,
 * seed. */
#ifndef SAMPLER_H
#define SAMPLER_H

#include "kernels/kernels.h"

typedef struct {
    int id;
    float bias;
} LogitBias;

typedef struct {
    float temp;                                                // 0: the largest logit
    int top_k;                                                 // 0: all
    float top_p, min_p;                                        // 1 and 0: off
    float repeat_penalty, presence_penalty, frequency_penalty; // 1, 0 and 0: off
    int repeat_last_n; // tokens the penalties look back at; 0: none, -1: all
    uint64_t seed;
    const LogitBias *biases;
    int n_biases;
} SamplerParams;

typedef struct {
    int id;
    float logit;
} Candidate;

typedef struct {
    SamplerParams params;
    const Kernels *kernels; // whose exp is the same on every machine
    int vocab_size;
    uint64_t state;        // of the generator
    Candidate *candidates; // (vocab_size)
    float *probs;          // (vocab_size)
    int *counts;           // (vocab_size) occurrences within the window
    int *window;           // (n_window) the last tokens, a ring
    int n_window, n_seen;
} Sampler;

int sampler_init(Sampler *s, const SamplerParams *p, int vocab_size, const Kernels *k, Err *e);
void sampler_free(Sampler *s);

/* Tell the sampler of a token of the text (prompt or generated), for the penalties. */
void sampler_accept(Sampler *s, int id);

/* Choose from logits (vocab_size), which are changed. The same seed, calls and logits give the same
 * ids everywhere. NaN is never chosen; -1 if nothing but NaN and -inf is there. */
int sampler_pick(Sampler *s, float *logits);

#endif
