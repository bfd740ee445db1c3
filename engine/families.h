/* families.h - what the architectures of general.architecture leave to code, a row each. */
#ifndef FAMILIES_H
#define FAMILIES_H

#include "model.h"

typedef struct {
    const char *name;
    bool all_keys; // no convention: every choice is a key (docs/gpt-keys.md), and the columns up
                   // to the windows say nothing
    NormType norm;
    Need norm_bias;
    bool no_pre_norm, post_norm, embd_norm;
    QkNorm qk_norm;
    Need qk_norm_need, qk_norm_bias;
    Need qkv_bias, wo_bias, ffn_bias, output_bias;
    Act act;
    bool gated, fused_gate_up;
    PosType pos;
    RopePairing pairing;
    float alibi_max;             // 0: from the key, or no bias at all
    bool parallel, parallel_key; // parallel_key: the key use_parallel_residual decides
    Need shared_norm;            // MAYBE: the file's tensors say, and with them `parallel`
    bool attn_norm_2;
    bool embd_scale_sqrt_dim;  // embeddings are multiplied by sqrt(dim)
    bool divide_logits;        // logit_scale is a divisor
    int window, window_period; // default window; every window_period-th layer is global (0: none)
    float attn_soft_cap, logit_soft_cap; // where their keys are absent; 0: none
    bool rope_key;         // the key rope.scaling.finetuned says whether there is rope at all
    float local_rope_base; // of windowed layers, 0: the same as elsewhere
    bool plain_local_rope; // windowed layers are not rescaled
    bool plain_own_base;   // nor are they if the file gives them a base of their own
    int no_rope_period;    // every so-many-th layer has no rope, 0: none
    int big_layers;        // a model of so many layers scales attention by
                           // (dim / n_heads)^-1/2 (Gemma 27B)
} Family;

/* The row of an architecture; NULL and EXIT_MODEL for one that is not known. */
const Family *family_find(Str arch, Err *e);

#endif
