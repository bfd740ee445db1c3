/* families.c - the architectures that the engine runs, a row each.
 *
 * A row holds what a family's llama.cpp convention leaves to code; the keys of the file say the
 * rest (config.c). The architecture `gpt` has no convention: docs/gpt-keys.md lists its keys, which
 * spell every choice out. To add a family is to add a row.
 *
 * Sources: the architectures of llama.cpp (src/models) and the modelling files of Hugging Face
 * transformers.
 */
#include "engine/families.h"

#include <string.h>

/* Columns not named are NO, false and 0: RMSNorm, SiLU, rope with interleaved pairs. `tied` is
 * MAYBE for all. */
// clang-format off
static const Family families[] = {
    {.name = "llama", .qkv_bias = MAYBE, .wo_bias = MAYBE, .ffn_bias = MAYBE, .gated = true,
     .pos = POS_ROPE},
    {.name = "qwen2", .qkv_bias = YES, .output_bias = MAYBE, .gated = true, .pos = POS_ROPE,
     .pairing = ROPE_HALF},
    {.name = "qwen3", .qkv_bias = MAYBE, .wo_bias = MAYBE, .qk_norm = QK_NORM_HEAD,
     .qk_norm_need = YES, .gated = true, .pos = POS_ROPE, .pairing = ROPE_HALF},
    {.name = "gemma", .act = ACT_GELU_TANH, .gated = true, .pos = POS_ROPE, .pairing = ROPE_HALF,
     .embd_scale_sqrt_dim = true},
    {.name = "gemma2", .post_norm = true, .act = ACT_GELU_TANH, .gated = true, .pos = POS_ROPE,
     .pairing = ROPE_HALF, .embd_scale_sqrt_dim = true,
     .attn_soft_cap = 50, .logit_soft_cap = 30, // as Gemma2Config in transformers has them
     .window = 4096, .window_period = 2, .big_layers = 46},
    {.name = "gemma3", .post_norm = true, .qk_norm = QK_NORM_HEAD, .qk_norm_need = YES,
     .act = ACT_GELU_TANH, .gated = true, .pos = POS_ROPE, .pairing = ROPE_HALF,
     .embd_scale_sqrt_dim = true, .window_period = 6, .local_rope_base = 10000,
     .plain_local_rope = true, .big_layers = 62},
    {.name = "phi2", .norm = NORM_LAYER, .norm_bias = YES, .qkv_bias = YES, .wo_bias = YES,
     .ffn_bias = YES, .output_bias = YES, .act = ACT_GELU_TANH, .pos = POS_ROPE,
     .pairing = ROPE_HALF, .parallel = true, .shared_norm = YES},
    {.name = "phi3", .gated = true, .fused_gate_up = true, .pos = POS_ROPE, .pairing = ROPE_HALF},
    {.name = "gpt2", .norm = NORM_LAYER, .norm_bias = YES, .qkv_bias = YES, .wo_bias = YES,
     .ffn_bias = YES, .act = ACT_GELU_TANH, .pos = POS_LEARNED},
    {.name = "gptneox", .norm = NORM_LAYER, .norm_bias = YES, .qkv_bias = YES, .wo_bias = YES,
     .ffn_bias = YES, .act = ACT_GELU, .pos = POS_ROPE, .pairing = ROPE_HALF, .parallel_key = true},
    {.name = "starcoder2", .norm = NORM_LAYER, .norm_bias = YES, .qkv_bias = MAYBE, .wo_bias = YES,
     .ffn_bias = YES, .act = ACT_GELU_TANH, .pos = POS_ROPE, .pairing = ROPE_HALF},
    {.name = "stablelm", .norm = NORM_LAYER, .norm_bias = YES, .qk_norm = QK_NORM_HEADS,
     .qk_norm_need = MAYBE, .qkv_bias = MAYBE, .gated = true, .pos = POS_ROPE, .pairing = ROPE_HALF,
     .shared_norm = MAYBE},
    {.name = "olmo2", .no_pre_norm = true, .post_norm = true, .qk_norm = QK_NORM_FULL,
     .qk_norm_need = YES, .gated = true, .pos = POS_ROPE, .pairing = ROPE_HALF, .window_period = 4,
     .plain_local_rope = true},
    {.name = "smollm3", .qkv_bias = MAYBE, .wo_bias = MAYBE, .ffn_bias = MAYBE, .gated = true,
     .pos = POS_ROPE, .no_rope_period = 4},
    {.name = "granite", .qkv_bias = MAYBE, .wo_bias = MAYBE, .ffn_bias = MAYBE, .gated = true,
     .pos = POS_ROPE, .rope_key = true, .divide_logits = true},
    {.name = "falcon", .norm = NORM_LAYER, .norm_bias = YES, .act = ACT_GELU, .pos = POS_ROPE,
     .pairing = ROPE_HALF, .parallel = true, .shared_norm = YES, .attn_norm_2 = true},
    {.name = "bloom", .norm = NORM_LAYER, .norm_bias = YES, .embd_norm = true, .qkv_bias = YES,
     .wo_bias = YES, .ffn_bias = YES, .act = ACT_GELU_TANH, .pos = POS_ALIBI, .alibi_max = 8},
    {.name = "mpt", .norm = NORM_LAYER, .norm_bias = MAYBE, .qk_norm = QK_NORM_FULL,
     .qk_norm_need = MAYBE, .qk_norm_bias = MAYBE, .qkv_bias = MAYBE, .wo_bias = MAYBE,
     .ffn_bias = MAYBE, .act = ACT_GELU, .pos = POS_ALIBI},
    {.name = "gpt", .all_keys = true, .plain_own_base = true},
};
// clang-format on

enum { N_FAMILIES = sizeof families / sizeof *families };

const Family *family_find(Str arch, Err *e)
{
    char seen[64], known[400] = "";
    for (int i = 0; i < N_FAMILIES; i++) {
        if (str_eq(arch, families[i].name))
            return &families[i];
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "",
                 families[i].name);
    }
    err_set(e, EXIT_MODEL, "general.architecture: got \"%s\", want one of: %s",
            str_escape(arch, seen, sizeof seen), known);
    return NULL;
}
