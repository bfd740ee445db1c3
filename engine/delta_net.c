/* delta_net.c - the gated delta net (Yang et al. 2024; Qwen3-Next and Qwen3.5).
 *
 *   q, k, v = SiLU(conv(W h))                       (n_key_heads, key_dim) twice, (n_heads,
 *                                                   value_dim); head i has q and k number
 *                                                   i mod n_key_heads
 *   q = q / |q| / sqrt(key_dim),  k = k / |k|
 *   beta = sigmoid(W_beta h)                        how much of what a key stood for is replaced
 *   g = exp(a softplus(W_dt h + b)),  a < 0         how much of the state stays
 *   d = beta (v - g S^T k)                          what is new in v, given what S holds for k
 *   S = g S + k d^T
 *   o = S^T q                                       (n_heads, value_dim)
 *   Wo gets  norm(o) * SiLU(W_gate h)               a norm of each head
 */
#include <math.h>

#include "engine/recurrent.h"

static HeadParts parts_at(const Recurrence *r, size_t head)
{
    size_t n = (size_t)r->n_key_heads, width = (size_t)r->key_dim, key = head % n * width;
    return (HeadParts){key, n * width + key, 2 * n * width + head * (size_t)r->value_dim};
}

/* x = scale x / sqrt(|x|^2 + 1e-6) of each of n heads; 1e-6 is not the norms' epsilon in
 * transformers. */
static void normalise(const Kernels *k, float *x, int n, size_t width, float scale)
{
    for (int h = 0; h < n; h++, x += width) {
        k->norm[NORM_RMS](x, x, NULL, NULL, width, 1e-6f / (float)width);
        for (size_t i = 0; i < width; i++)
            x[i] *= scale;
    }
}

static void prepare(const StateRow *row)
{
    const Recurrence *r = row->rec;
    size_t width = (size_t)r->key_dim;
    float *q = row->x, *k = q + (size_t)r->n_key_heads * width;
    normalise(row->s->k, q, r->n_key_heads, width, 1 / (float)width);
    normalise(row->s->k, k, r->n_key_heads, width, 1 / sqrtf((float)width));
    sigmoid(row->s->k, row->rate, (size_t)r->n_heads);
    for (int h = 0; h < r->n_heads; h++)
        row->decay[h] = (float)exp(row->l->decay[h] * softplus(row->decay[h]));
}

static void finish(const StateRow *row)
{
    const Kernels *k = row->s->k;
    size_t width = (size_t)row->rec->value_dim, all = (size_t)row->rec->n_heads * width;
    for (size_t i = 0; i < all; i += width)
        k->norm[NORM_RMS](row->out + i, row->out + i, row->l->mix_norm.w, NULL, width,
                          row->s->stack->config.norm_eps);
    k->act[ACT_SILU](row->gate, all);
    k->mul(row->out, row->gate, all);
}

const StateKind delta_net = {parts_at, prepare, finish, true};
