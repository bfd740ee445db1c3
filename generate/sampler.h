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

/* A token and the natural logarithm of its probability. */
typedef struct {
    int id;
    double logprob;
} Logprob;

/* Scratch for choosing. It keeps nothing from one choice to the next, so that any number of texts
 * share one; threads that choose at the same time need one each. */
typedef struct {
    const Kernels *kernels; // whose exp is the same on every machine
    int vocab_size;
    Candidate *candidates; // (vocab_size)
    float *probs;          // (vocab_size)
    int *counts;           // (vocab_size) how often a token is in the penalties' window; else 0
    float *raw;            // (vocab_size) free for the caller: logits as they were
} Sampler;

/* SplitMix64's finaliser: a number whose bits all depend on all bits of z. */
static inline uint64_t random_mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

int sampler_init(Sampler *s, int vocab_size, const Kernels *k, Err *e);
void sampler_free(Sampler *s);

/* Choose the token after a text (n ids: the prompt and what was generated) from logits
 * (vocab_size), which are changed. *random is the state of the text's random numbers, the seed at
 * first. The same arguments give the same id everywhere. NaN is never chosen; -1 if nothing but NaN
 * and -inf is there. */
int sampler_pick(Sampler *s, const SamplerParams *p, uint64_t *random, const int *text, size_t n,
                 float *logits);

/* Log-probabilities by the softmax of logits (vocab_size), before biases, penalties, filters and
 * temperature: out[0] is the token `id`, out[1 .. k] are the k likeliest ones, equal ones by id. k
 * is at most the vocabulary's size. */
void sampler_logprobs(Sampler *s, const float *logits, int id, int k, Logprob *out);

/* log(sum of exp(x)) over x (n), which is changed: sums of floats in pieces, of doubles over the
 * pieces. The logarithm of a probability is its logit minus this. */
double log_sum_exp(const Kernels *k, float *x, size_t n);

#endif
