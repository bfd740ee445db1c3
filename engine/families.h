/* families.h - what the architectures of general.architecture leave to code, a row each. */
#ifndef FAMILIES_H
#define FAMILIES_H

#include "model.h"

typedef struct {
    const char *name;
    Config config; // what the family fixes; keys of the file add the rest (config.c)

    bool all_keys;     // no convention: every choice is a key, and `config` says nothing
    bool gate_tensor;  // a file without ffn_gate has it in ffn_up
    bool parallel_key; // the key use_parallel_residual decides about `parallel`
    bool parallel_without_ffn_norm; // a file without ffn_norm has the parallel form
    bool embd_scale_sqrt_dim;       // embeddings are multiplied by sqrt(dim)
    bool divide_logits;             // logit_scale is a divisor
    float embd_scale;          // where their keys are absent: embeddings are multiplied by this,
    float residual_depth;      // sublayers by this / sqrt(n_layers) (0: 1),
    int logit_width;           // and logits divided by dim / this
    int window, window_period; // default window (-1: its key is required); every window_period-th
                               // layer is global (0: none)
    bool global_first;         // layer 0 is the first of these
    float attn_scale;          // multiplies q.k, 0: key_dim^-1/2
    bool needs_rope_freqs;     // see Rope.needs_factors
    bool keys_as_values;       // a layer without attn_v takes its keys for values
    bool per_layer_inputs;     // the key embedding_length_per_layer_input is read
    bool rope_key;             // the key rope.scaling.finetuned says whether there is rope at all
    float local_rope_base;     // of windowed layers, 0: the same as elsewhere
    bool plain_local_rope;     // windowed layers are not rescaled
    bool plain_own_base;       // nor are they if the file gives them a base of their own
    bool yarn_untruncated;     // see Rope.truncate
    int no_rope_period;        // every so-many-th layer has no rope, 0: none
    bool only_local_rope;      // where some layers have a window, the others have no rope
    int big_layers;            // a model of so many layers scales attention by
                               // (dim / n_heads)^-1/2 (Gemma 27B)

    bool latent; // kv_lora_rank is a key of its files, and yarn's scales are DeepSeek's

    Mixer headless; // what layers are whose head_count_kv is 0; MIX_ATTENTION: there are none
    Mixer between;  // and those that attention.recurrent_layers names or, without this key, all but
                    // each full_attention_interval-th
    bool skips_extra;  // nextn_predict_layers of the file's layers, its last, are left out
    bool has_sections; // rope.dimension_sections is a key; all are one in a text

    Presence experts;       // OPTIONAL: the key expert_count decides
    bool gate_key;          // expert_gating_func is a key of its files
    bool gate_by_bias;      // without the key the gate is a sigmoid where there is a choice bias
    bool shared_count;      // expert_shared_count says how many experts wide the shared one is
    Presence shared_expert; // REQUIRED: as wide as a dense FFN where its key is absent
    bool split_hidden;      // feed_forward_length is that of all used experts together, where
                            // expert_feed_forward_length is absent
    TokenizerDefaults tokenizer;
} Family;

/* The row of an architecture that the engine runs; NULL and EXIT_MODEL for any other. */
const Family *family_find(Str arch, Err *e);

#endif
