/* mamba.c - Mamba-2 (Dao and Gu 2024; Granite 4).
 *
 *   v, k, q = SiLU(conv(W h) [+ b])                 (n_heads, value_dim), (n_key_heads, key_dim)
 *                                                   twice: the paper's x, B and C; neighbouring
 *                                                   heads share k and q
 *   dt = softplus(W_dt h + b)                       how long a row's step is
 *   S = exp(a dt) S + k (dt v)^T,  a < 0            (n_heads, key_dim, value_dim)
 *   o = S^T q + D v                                 (n_heads, value_dim), D a number of each head
 *   Wo gets  norm(o * SiLU(W_gate h))               a norm of the heads that share a key
 */
#include <math.h>

#include "engine/recurrent.h"

static HeadParts parts_at(const Recurrence *r, size_t head)
{
    size_t inner = (size_t)r->n_heads * (size_t)r->value_dim, n = (size_t)r->n_key_heads;
    size_t k = inner + head / ((size_t)r->n_heads / n) * (size_t)r->key_dim;
    return (HeadParts){k + n * (size_t)r->key_dim, k, head * (size_t)r->value_dim};
}

static void prepare(const StateRow *row)
{
    for (int h = 0; h < row->rec->n_heads; h++) {
        row->rate[h] = softplus(row->decay[h]);
        row->decay[h] = (float)exp(row->l->decay[h] * row->rate[h]);
    }
}

static void finish(const StateRow *row)
{
    const Recurrence *r = row->rec;
    const Kernels *k = row->s->k;
    size_t width = (size_t)r->value_dim, all = (size_t)r->n_heads * width,
           group = all / (size_t)r->n_key_heads;
    for (size_t h = 0, i = 0; i < all; h++)
        for (size_t end = i + width; i < end; i++)
            row->out[i] += row->l->skip[h] * row->x[i];
    k->act[ACT_SILU](row->gate, all);
    k->mul(row->out, row->gate, all);
    for (size_t i = 0; i < all; i += group)
        k->norm[NORM_RMS](row->out + i, row->out + i, row->l->mix_norm.w + i, NULL, group,
                          row->s->stack->config.norm_eps);
}

const StateKind mamba = {parts_at, prepare, finish, false};
