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

/* What most families have: norms with weights before attention, FFN and output. */
#define PRE_NORM .norm_affine = true, .pre_norm = true, .final_norm = true
#define POST_NORM .norm_affine = true, .post_norm = true, .final_norm = true
#define LAYER_NORM PRE_NORM, .norm = NORM_LAYER
#define ENCODER .encoder = true, .norm = NORM_LAYER, .norm_affine = true, .embd_norm = true
#define POST_RESIDUAL .norm_bias = REQUIRED, .post_norm = true, .norm_residual = true
#define BIASES(some) .qkv_bias = some, .wo_bias = some, .ffn_bias = some
#define ROPE(how) .pos = POS_ROPE, .rope_pairing = how

/* Fields not named are ABSENT, false and 0: RMSNorm, SiLU, a sequential residual. A file without
 * output weights uses the token embedding's. */
// clang-format off
static const Family families[] = {
    {.name = "llama", .config = {PRE_NORM, BIASES(OPTIONAL), .gated = true,
                                 .experts.renormalise = true, ROPE(ROPE_INTERLEAVED)},
     .experts = OPTIONAL}, // with them: Mixtral
    {.name = "qwen2", .config = {PRE_NORM, .qkv_bias = REQUIRED, .output_bias = OPTIONAL,
                                 .gated = true, ROPE(ROPE_HALF)}},
    {.name = "qwen3", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .wo_bias = OPTIONAL,
                                 .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                 .gated = true, ROPE(ROPE_HALF)}},
    {.name = "qwen3moe", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .wo_bias = OPTIONAL,
                                    .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                    .gated = true, .experts.renormalise = true, ROPE(ROPE_HALF)},
     .experts = REQUIRED, .split_hidden = true},
    {.name = "qwen2moe", .config = {PRE_NORM, .qkv_bias = REQUIRED, .gated = true,
                                    .experts.shared_gate = true, ROPE(ROPE_HALF)},
     .experts = REQUIRED, .shared_expert = REQUIRED, .split_hidden = true},
    {.name = "gemma", .config = {PRE_NORM, .act = ACT_GELU_TANH, .gated = true, ROPE(ROPE_HALF)},
     .embd_scale_sqrt_dim = true},
    {.name = "gemma2", .config = {PRE_NORM, .post_norm = true, .act = ACT_GELU_TANH, .gated = true,
                                  ROPE(ROPE_HALF),
                                  // where their keys are absent, as in transformers' Gemma2Config:
                                  .attn_soft_cap = 50, .logit_soft_cap = 30},
     .embd_scale_sqrt_dim = true, .window = 4096, .window_period = 2, .big_layers = 46},
    {.name = "gemma3", .config = {PRE_NORM, .post_norm = true, .qk_norm = QK_NORM_HEAD,
                                  .qk_norm_weight = REQUIRED, .act = ACT_GELU_TANH, .gated = true,
                                  ROPE(ROPE_HALF)},
     .embd_scale_sqrt_dim = true, .window_period = 6, .local_rope_base = 10000,
     .plain_local_rope = true, .big_layers = 62},
    {.name = "gemma4", .config = {PRE_NORM, .post_norm = true, .qk_norm = QK_NORM_HEAD,
                                  .qk_norm_weight = REQUIRED, .value_norm = true,
                                  .act = ACT_GELU_TANH, .gated = true, .out_scale = OPTIONAL,
                                  .experts = {.renormalise = true, .beside = true},
                                  ROPE(ROPE_HALF)},
     .embd_scale_sqrt_dim = true, .window = -1, .window_period = 6, .local_rope_base = 10000,
     .plain_local_rope = true, .needs_rope_freqs = true, .attn_scale = 1, .keys_as_values = true,
     .per_layer_inputs = true, .experts = OPTIONAL, .tokenizer.adds_bos = true},
    {.name = "phi2", .config = {LAYER_NORM, .norm_bias = REQUIRED, BIASES(REQUIRED),
                                .output_bias = REQUIRED, .act = ACT_GELU_TANH, ROPE(ROPE_HALF),
                                .parallel = true, .shared_norm = true}},
    {.name = "phi3", .config = {PRE_NORM, .gated = true, .fused_gate_up = true, ROPE(ROPE_HALF)}},
    {.name = "gpt2", .config = {LAYER_NORM, .norm_bias = REQUIRED, BIASES(REQUIRED),
                                .act = ACT_GELU_TANH, .pos = POS_LEARNED},
     .tokenizer.pre = "gpt-2"},
    {.name = "gptneox", .config = {LAYER_NORM, .norm_bias = REQUIRED, BIASES(REQUIRED),
                                   .act = ACT_GELU, ROPE(ROPE_HALF)},
     .parallel_key = true,
     .tokenizer.pre = "olmo"}, // GPT-2's pattern after NFC, as in Pythia's tokenizer.json
    {.name = "starcoder2", .config = {LAYER_NORM, .norm_bias = REQUIRED, .qkv_bias = OPTIONAL,
                                      .wo_bias = REQUIRED, .ffn_bias = REQUIRED,
                                      .act = ACT_GELU_TANH, ROPE(ROPE_HALF)}},
    {.name = "stablelm", .config = {LAYER_NORM, .norm_bias = REQUIRED, .qk_norm = QK_NORM_HEADS,
                                    .qk_norm_weight = OPTIONAL, .qkv_bias = OPTIONAL,
                                    .gated = true, ROPE(ROPE_HALF)},
     .parallel_without_ffn_norm = true},
    {.name = "olmo2", .config = {POST_NORM, .qk_norm = QK_NORM_FULL, .qk_norm_weight = REQUIRED,
                                 .gated = true, ROPE(ROPE_HALF)},
     .window_period = 4, .plain_local_rope = true},
    {.name = "olmoe", .config = {PRE_NORM, .qk_norm = QK_NORM_FULL, .qk_norm_weight = REQUIRED,
                                 .gated = true, ROPE(ROPE_HALF)},
     .experts = REQUIRED},
    {.name = "smollm3", .config = {PRE_NORM, BIASES(OPTIONAL), .gated = true,
                                   ROPE(ROPE_INTERLEAVED)},
     .no_rope_period = 4},
    {.name = "granite", .config = {PRE_NORM, BIASES(OPTIONAL), .gated = true,
                                   ROPE(ROPE_INTERLEAVED)},
     .rope_key = true, .divide_logits = true},
    {.name = "granitemoe", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .wo_bias = OPTIONAL,
                                      .gated = true, .experts.renormalise = true,
                                      ROPE(ROPE_INTERLEAVED)},
     .rope_key = true, .divide_logits = true, .experts = REQUIRED},
    {.name = "ernie4_5-moe", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .wo_bias = OPTIONAL,
                                        .gated = true,
                                        .experts = {.renormalise = true, .choice_bias = OPTIONAL},
                                        ROPE(ROPE_INTERLEAVED)},
     .experts = REQUIRED},
    {.name = "minicpm", .config = {PRE_NORM, BIASES(OPTIONAL), .gated = true,
                                   ROPE(ROPE_INTERLEAVED)},
     .divide_logits = true, .embd_scale = 12, .residual_depth = 1.4f, .logit_width = 256},
    {.name = "internlm2", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .gated = true,
                                     ROPE(ROPE_INTERLEAVED)}},
    {.name = "starcoder", .config = {LAYER_NORM, .norm_bias = REQUIRED, BIASES(REQUIRED),
                                     .act = ACT_GELU_TANH, .pos = POS_LEARNED}},
    {.name = "ernie4_5", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .wo_bias = OPTIONAL,
                                    .gated = true, ROPE(ROPE_INTERLEAVED)}},
    {.name = "command-r", .config = {LAYER_NORM, .qk_norm = QK_NORM_HEADS,
                                     .qk_norm_weight = OPTIONAL, .qkv_bias = OPTIONAL,
                                     .gated = true, ROPE(ROPE_INTERLEAVED), .parallel = true,
                                     .shared_norm = true}},
    {.name = "cohere2", .config = {LAYER_NORM, .qkv_bias = OPTIONAL, .gated = true,
                                   ROPE(ROPE_INTERLEAVED), .parallel = true, .shared_norm = true},
     .window = -1, .window_period = 4, .only_local_rope = true},
    {.name = "glm4", .config = {PRE_NORM, .post_norm = true, .qkv_bias = OPTIONAL, .gated = true,
                                .fused_gate_up = true, ROPE(ROPE_INTERLEAVED)}},
    {.name = "exaone4", .config = {POST_NORM, .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                   .qkv_bias = OPTIONAL, .gated = true, ROPE(ROPE_HALF)},
     .window_period = 4, .only_local_rope = true},
    {.name = "seed_oss", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .gated = true,
                                    ROPE(ROPE_HALF)}},
    {.name = "hunyuan-dense", .config = {PRE_NORM, .qk_norm = QK_NORM_HEAD,
                                         .qk_norm_weight = REQUIRED, .qk_norm_after_rope = true,
                                         .qkv_bias = OPTIONAL, .gated = true, ROPE(ROPE_HALF)}},
    {.name = "olmo", .config = {.norm = NORM_LAYER, .pre_norm = true, .final_norm = true,
                                .qkv_bias = OPTIONAL, .gated = true, ROPE(ROPE_INTERLEAVED)}},
    {.name = "nemotron", .config = {LAYER_NORM, .norm_bias = REQUIRED, BIASES(OPTIONAL),
                                    .act = ACT_RELU2, ROPE(ROPE_HALF)}},
    {.name = "arcee", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .act = ACT_RELU2,
                                 ROPE(ROPE_INTERLEAVED)}},
    {.name = "apertus", .config = {PRE_NORM, .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                   .qkv_bias = OPTIONAL, .wo_bias = OPTIONAL, .act = ACT_XIELU,
                                   ROPE(ROPE_HALF)}},
    {.name = "mistral3", .config = {PRE_NORM, BIASES(OPTIONAL), .gated = true,
                                    .experts.renormalise = true, ROPE(ROPE_INTERLEAVED)},
     .experts = OPTIONAL},
    {.name = "gpt-oss", .config = {PRE_NORM, .qkv_bias = REQUIRED, .wo_bias = REQUIRED,
                                   .gated = true, .sinks = true,
                                   .swiglu_limit = 7,
                                   .experts = {.renormalise = true, .bias = REQUIRED},
                                   ROPE(ROPE_HALF)},
     .window_period = 2, .yarn_untruncated = true, .experts = REQUIRED},
    {.name = "lfm2", .config = {PRE_NORM, .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                .gated = true, ROPE(ROPE_HALF)},
     .headless = MIX_SHORT_CONV},
    {.name = "lfm2moe", .config = {PRE_NORM, .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                   .gated = true,
                                   .experts = {.renormalise = true, .sum_extra = 1e-6f,
                                               .choice_bias = REQUIRED},
                                   ROPE(ROPE_HALF)},
     .headless = MIX_SHORT_CONV, .experts = REQUIRED, .gate_key = true},
    {.name = "deepseek2", .config = {PRE_NORM, .gated = true, .experts.choice_bias = OPTIONAL,
                                     ROPE(ROPE_INTERLEAVED)},
     .latent = true, .experts = OPTIONAL, .gate_key = true, .gate_by_bias = true,
     .shared_count = true, .skips_extra = true},
    {.name = "glm4moe", .config = {PRE_NORM, .qkv_bias = OPTIONAL, .qk_norm = QK_NORM_HEAD,
                                   .qk_norm_weight = OPTIONAL, .gated = true,
                                   .experts.choice_bias = REQUIRED, ROPE(ROPE_HALF)},
     .experts = REQUIRED, .gate_key = true, .gate_by_bias = true, .shared_count = true,
     .skips_extra = true},
    {.name = "qwen35", .config = {PRE_NORM, .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                  .attn_gate = true, .gated = true, ROPE(ROPE_HALF)},
     .between = MIX_DELTA_NET, .skips_extra = true, .has_sections = true},
    {.name = "qwen35moe", .config = {PRE_NORM, .qk_norm = QK_NORM_HEAD, .qk_norm_weight = REQUIRED,
                                     .attn_gate = true, .gated = true,
                                     .experts = {.renormalise = true, .shared_gate = true},
                                     ROPE(ROPE_HALF)},
     .between = MIX_DELTA_NET, .skips_extra = true, .has_sections = true, .experts = REQUIRED,
     .shared_expert = REQUIRED},
    {.name = "granitehybrid", .config = {PRE_NORM, BIASES(OPTIONAL), .gated = true,
                                         .conv_bias = OPTIONAL,
                                         .experts.renormalise = true, ROPE(ROPE_INTERLEAVED)},
     .rope_key = true, .divide_logits = true, .headless = MIX_MAMBA, .experts = OPTIONAL},
    {.name = "falcon", .config = {LAYER_NORM, .norm_bias = REQUIRED, .act = ACT_GELU,
                                  ROPE(ROPE_HALF), .parallel = true, .shared_norm = true,
                                  .attn_norm_2 = true}},
    {.name = "bloom", .config = {LAYER_NORM, .norm_bias = REQUIRED, .embd_norm = true,
                                 BIASES(REQUIRED), .act = ACT_GELU_TANH, .bias = BIAS_ALIBI,
                                 .alibi_max = 8}},
    {.name = "mpt", .config = {LAYER_NORM, .norm_bias = OPTIONAL, .qk_norm = QK_NORM_FULL,
                               .qk_norm_weight = OPTIONAL, .qk_norm_bias = OPTIONAL,
                               BIASES(OPTIONAL), .act = ACT_GELU,
                               .bias = BIAS_ALIBI}}, // alibi_max is a key; 0: learned positions
    {.name = "bert", .config = {ENCODER, POST_RESIDUAL, BIASES(OPTIONAL), .act = ACT_GELU,
                                .pos = POS_LEARNED, .token_types = OPTIONAL}},
    {.name = "nomic-bert", .config = {ENCODER, POST_RESIDUAL, .qkv_bias = OPTIONAL,
                                      .wo_bias = OPTIONAL, .gated = true, ROPE(ROPE_HALF),
                                      .token_types = OPTIONAL}},
    {.name = "jina-bert-v2", .config = {ENCODER, POST_RESIDUAL, BIASES(OPTIONAL),
                                        .qk_norm = QK_NORM_FULL, .qk_norm_weight = OPTIONAL,
                                        .qk_norm_bias = OPTIONAL, .act = ACT_GELU, .gated = true,
                                        .bias = BIAS_ALIBI, .alibi_max = 8,
                                        .token_types = OPTIONAL},
     .gate_tensor = true},
    {.name = "modern-bert", .config = {ENCODER, .pre_norm = true, .plain_first = true,
                                       .final_norm = true, .act = ACT_GELU, .gated = true,
                                       .fused_gate_up = true, ROPE(ROPE_HALF),
                                       .pooling = POOL_MEAN},
     .window_period = 3, .global_first = true},
    {.name = "gpt", .all_keys = true, .plain_own_base = true, .experts = OPTIONAL},
};
// clang-format on

enum { N_FAMILIES = sizeof families / sizeof *families };

/* The row of a name, or NULL. */
static const Family *row_of(Str arch)
{
    for (int i = 0; i < N_FAMILIES; i++)
        if (str_eq(arch, families[i].name))
            return &families[i];
    return NULL;
}

Tokenizer *model_tokenizer(const Gguf *g, Err *e)
{
    Str arch = {0};
    if (gguf_str(g, "general.architecture", &arch, e) < 0)
        return NULL;
    const Family *f = row_of(arch);
    return tokenizer_open(g, f ? &f->tokenizer : &(TokenizerDefaults){0}, e);
}

const Family *family_find(Str arch, Err *e)
{
    char seen[64], known[800] = "";
    const Family *f = row_of(arch);
    if (f)
        return f;
    for (int i = 0; i < N_FAMILIES; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", *known ? ", " : "",
                 families[i].name);
    err_set(e, EXIT_MODEL, "general.architecture: got \"%s\", want one of: %s",
            str_escape(arch, seen, sizeof seen), known);
    return NULL;
}
