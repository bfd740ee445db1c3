/* sampler.c - from logits to the next token.
 *
 * The order is llama.cpp's: bias, penalties, top-k, top-p, min-p, temperature, draw. Candidates are
 * sorted by logit, equal ones by id. Random numbers are SplitMix64 (Steele, Lea and Flood 2014),
 * exp is the kernels' own, and sums are taken in a fixed order, so that nothing depends on the C
 * library.
 */
#include "generate/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int sampler_init(Sampler *s, int vocab_size, const Kernels *k, Err *e)
{
    size_t n = (size_t)vocab_size;
    *s = (Sampler){.kernels = k, .vocab_size = vocab_size};
    s->candidates = mem_alloc(n, sizeof *s->candidates);
    s->probs = mem_alloc(n, sizeof *s->probs);
    s->counts = mem_zalloc(n, sizeof *s->counts);
    s->raw = mem_alloc(n, sizeof *s->raw);
    if (s->candidates && s->probs && s->counts && s->raw)
        return 0;
    sampler_free(s);
    return err_set(e, EXIT_MEMORY, "out of memory for the sampler");
}

void sampler_free(Sampler *s)
{
    free(s->candidates);
    free(s->probs);
    free(s->counts);
    free(s->raw);
    *s = (Sampler){0};
}

static double uniform(uint64_t *random) // [0, 1) in steps of 2^-53
{
    return (double)(random_mix(*random += 0x9e3779b97f4a7c15u) >> 11) * 0x1p-53;
}

/* Biases, then the penalties of the tokens that are in the window at the end of the text. */
static void penalise(Sampler *s, const SamplerParams *p, const int *text, size_t n, float *logits)
{
    for (int i = 0; i < p->n_biases; i++)
        logits[p->biases[i].id] += p->biases[i].bias;
    if (p->repeat_penalty == 1 && p->presence_penalty == 0 && p->frequency_penalty == 0)
        return;
    size_t from = p->repeat_last_n >= 0 && (size_t)p->repeat_last_n < n
                    ? n - (size_t)p->repeat_last_n
                    : 0;
    for (size_t i = from; i < n; i++)
        if (text[i] >= 0 && text[i] < s->vocab_size)
            s->counts[text[i]]++;
    for (size_t i = from; i < n; i++) {
        int id = text[i];
        if (id < 0 || id >= s->vocab_size || !s->counts[id])
            continue;
        float x = logits[id]; // repeat: Keskar et al. 2019, with the sign taken into account
        x = x > 0 ? x / p->repeat_penalty : x * p->repeat_penalty;
        logits[id] = x - p->presence_penalty - p->frequency_penalty * (float)s->counts[id];
        s->counts[id] = 0;
    }
}

static int better(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* The k best candidates, sorted: a heap of the k best so far with the worst at its root, then a
 * sort. */
static void take_best(Sampler *s, const float *logits, int k)
{
    Candidate *h = s->candidates;
    int n = 0;
    for (int id = 0; id < s->vocab_size; id++) {
        Candidate c = {id, logits[id]};
        int i;
        if (n < k) {
            for (i = n++; i > 0 && k < s->vocab_size && better(&h[(i - 1) / 2], &c) < 0;
                 i = (i - 1) / 2)
                h[i] = h[(i - 1) / 2];
        } else if (better(&c, &h[0]) < 0) {
            i = 0;
            for (int child; (child = 2 * i + 1) < n; i = child) {
                if (child + 1 < n && better(&h[child], &h[child + 1]) < 0)
                    child++;
                if (better(&c, &h[child]) > 0)
                    break;
                h[i] = h[child];
            }
        } else {
            continue;
        }
        h[i] = c;
    }
    qsort(h, (size_t)n, sizeof *h, better);
}

/* Weights exp((logit - best) / temp) of the first n candidates -> s->probs; returns their sum. */
static double weigh(Sampler *s, int n, float temp)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        s->probs[i] = (s->candidates[i].logit - s->candidates[0].logit) / temp;
    s->kernels->exp_sum(s->probs, (size_t)n, 0);
    for (int i = 0; i < n; i++)
        sum += s->probs[i];
    return sum;
}

int sampler_pick(Sampler *s, const SamplerParams *p, uint64_t *random, const int *text,
                 size_t n_text, float *logits)
{
    penalise(s, p, text, n_text, logits);
    int best = 0;
    for (int id = 0; id < s->vocab_size; id++) {
        if (isnan(logits[id]))
            logits[id] = -INFINITY;
        best = logits[id] > logits[best] ? id : best;
    }
    if (logits[best] == -INFINITY)
        return -1;
    if (p->temp <= 0 || p->top_k == 1 || logits[best] == INFINITY)
        return best;
    int n = p->top_k > 0 && p->top_k < s->vocab_size ? p->top_k : s->vocab_size;
    take_best(s, logits, n);
    if (p->top_p < 1 || p->min_p > 0) {
        double total = weigh(s, n, 1), sum = 0;
        int keep = 0;
        while (keep < n
               && (keep == 0
                   || ((p->top_p >= 1 || sum < p->top_p * total) && s->probs[keep] >= p->min_p)))
            sum += s->probs[keep++];
        n = keep;
    }
    double at = uniform(random) * weigh(s, n, p->temp), sum = 0;
    for (int i = 0; i < n - 1; i++)
        if (at < (sum += s->probs[i]))
            return s->candidates[i].id;
    return s->candidates[n - 1].id;
}

double log_sum_exp(const Kernels *k, float *x, size_t n)
{
    enum { PIECE = 1024 };
    float max = -INFINITY;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (size_t i = 0; i < n; i += PIECE)
        sum += (double)k->exp_sum(x + i, n - i < PIECE ? n - i : PIECE, max);
    return log(sum) + (double)max;
}

void sampler_logprobs(Sampler *s, const float *logits, int id, int k, Logprob *out)
{
    size_t n = (size_t)s->vocab_size;
    memcpy(s->probs, logits, n * sizeof *logits);
    double all = log_sum_exp(s->kernels, s->probs, n);
    out[0] = (Logprob){id, (double)logits[id] - all};
    if (k)
        take_best(s, logits, k);
    for (int i = 0; i < k; i++)
        out[1 + i] = (Logprob){s->candidates[i].id, (double)s->candidates[i].logit - all};
}
