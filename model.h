/* model.h - the engine's structs and calls, and every shape.
 *
 * A Model is what the file says: configuration, weights, tokenizer; immutable once open. A Session
 * is one use of it: scratch memory and the Cache of the keys and values of one or more sequences,
 * in one allocation. forward() is the only way through: prefill, decoding, parallel decoding and
 * scoring are batches of rows.
 *
 * Shapes are written outermost first. The one matmul convention: W (d, n) @ x (T, n) -> y (T, d).
 */
#ifndef MODEL_H
#define MODEL_H

#include <stdatomic.h>

#include "base/gguf.h"
#include "kernels/kernels.h"
#include "base/threads.h"
#include "tokenizer.h"

/* ---- configuration --------------------------------------------------------------------------- */

typedef enum { NO, YES, MAYBE } Need; // whether tensors exist; MAYBE: as the file has it
typedef enum { QK_NORM_NONE, QK_NORM_HEAD, QK_NORM_HEADS, QK_NORM_FULL } QkNorm;
typedef enum { POS_NONE, POS_ROPE, POS_LEARNED, POS_ALIBI } PosType;
typedef enum { ROPE_INTERLEAVED, ROPE_HALF } RopePairing; // pairs (2i, 2i+1) or (i, i + rope_dim/2)
typedef enum { ROPE_PLAIN, ROPE_LINEAR, ROPE_YARN, ROPE_LONGROPE } RopeScaling;
typedef enum { MASK_CAUSAL, MASK_WINDOW } Mask; // MASK_NONE comes with encoders

/* One set of rotation frequencies: base^(-2i / rope_dim), scaled. */
typedef struct {
    float base;
    RopeScaling scaling;
    float factor;      // context stretch of linear and yarn, 1 = none
    float attn_factor; // multiplies cos and sin (yarn's own 1 + 0.1 ln factor comes on top)
    float beta_fast, beta_slow; // yarn
    int orig_seq_len;           // of yarn and longrope
    bool use_factors; // divide the frequencies by the tensors rope_freqs or rope_factors_*
} Rope;

typedef struct {
    int n_heads, n_kv_heads, hidden_dim;
    Mask mask;
    int window;       // with MASK_WINDOW: a query at position p sees keys p - window + 1 .. p
    int rope;         // index into Config.ropes, -1 for none in this layer
    float attn_scale; // multiplies q.k
} LayerConfig;

typedef struct {
    char arch[64];
    int dim, n_layers, vocab_size, seq_len; // seq_len: the context the model was made for
    int key_dim, value_dim;                 // widths of one head

    NormType norm;
    float norm_eps;
    Need norm_affine, norm_bias; // affine: YES or NO
    bool pre_norm, post_norm;    // around attention and FFN; post: before the residual is added
    bool embd_norm, final_norm;
    QkNorm qk_norm; // of type `norm`, before rope
    Need qk_norm_need, qk_norm_bias;

    Need qkv_bias, wo_bias, ffn_bias, output_bias;
    Need tied; // output weights are the token embedding
    Act act;
    bool gated, fused_gate_up; // fused: w_up's tensor holds the gate's rows, then its own
    bool parallel;             // attention and FFN read the same residual
    Need shared_norm; // YES or NO; parallel: attn_norm feeds the FFN too, there is no ffn_norm
    bool attn_norm_2; // Falcon: attn_norm_2, where present, feeds attention, and attn_norm the FFN

    PosType pos;
    int pos_offset; // row of position 0 in the learned table
    RopePairing rope_pairing;
    int rope_dim; // of each head's first values; even
    Rope ropes[2];
    int n_ropes; // how many of them the layers use
    float alibi_max;

    float embd_scale, residual_scale, logit_scale;
    float attn_soft_cap, logit_soft_cap, clamp_qkv; // 0 = none
    LayerConfig *layers;                            // (n_layers)
} Config;

/* Widths of a layer's rows: queries, keys, values, attention's output. */
static inline size_t q_width(const Config *c, const LayerConfig *l)
{
    return (size_t)l->n_heads * (size_t)c->key_dim;
}
static inline size_t k_width(const Config *c, const LayerConfig *l)
{
    return (size_t)l->n_kv_heads * (size_t)c->key_dim;
}
static inline size_t v_width(const Config *c, const LayerConfig *l)
{
    return (size_t)l->n_kv_heads * (size_t)c->value_dim;
}
static inline size_t att_width(const Config *c, const LayerConfig *l)
{
    return (size_t)l->n_heads * (size_t)c->value_dim;
}

/* Read and check everything. The Config is freed with config_free(), also after an error. */
int config_read(Config *c, const Gguf *g, Err *e);
void config_free(Config *c);

/* ---- weights --------------------------------------------------------------------------------- */

typedef struct {
    const void *data; // NULL: absent
    Type type;
    size_t rows, cols; // (d, n)
    size_t row_bytes;
} Tensor;

typedef struct {
    Tensor w;       // (d, n)
    const float *b; // (d,) or NULL
} Linear;

typedef struct {
    bool on;            // false: the identity
    const float *w, *b; // (n,) or NULL
} Norm;

typedef struct {
    Norm attn_norm; // (dim)
    Linear wq, wk,
        wv; // (n_heads * key_dim, dim), (n_kv_heads * key_dim, dim), (n_kv_heads * value_dim, dim)
    Norm q_norm, k_norm; // (key_dim), (heads, key_dim) or (heads * key_dim) by Config.qk_norm
    Linear wo;           // (dim, n_heads * value_dim)
    Norm attn_post_norm; // (dim)
    Norm ffn_norm;       // (dim); off with a shared norm
    Linear w_gate, w_up; // (hidden_dim, dim)
    Linear w_down;       // (dim, hidden_dim)
    Norm ffn_post_norm;  // (dim)
} Layer;

typedef struct {
    Gguf file;
    Config config;
    Tokenizer *tokenizer;
    Tensor token_embd;          // (vocab_size, dim)
    Tensor pos_embd;            // (rows, dim) or absent
    Norm embd_norm, final_norm; // (dim)
    Linear output;              // (vocab_size, dim)
    const float
        *rope_factors[2]; // (rope_dim / 2): short (or the only one) and long; NULL where absent
    Layer *layers;        // (n_layers)
    float **owned;        // vectors that were converted to float
    size_t n_owned;
    size_t n_params;
} Model;

/* Open a model file. 0, or -1 with nothing left open. */
int model_open(Model *m, const char *path, Err *e);
void model_close(Model *m);

/* ---- cache ----------------------------------------------------------------------------------- */

enum { KV_BLOCK = 64 }; // positions in a block
enum { KV_GROUP = 32 }; // values of a key that share a scale in bytes: keys have outliers
typedef enum { KV_F16, KV_F32, KV_Q8 } KvType;
extern const char *const kv_names[]; // by KvType, NULL past the last

typedef struct {
    int n_pos;    // positions held
    bool is_long; // longer than longrope's original context: its keys are rotated by the long
                  // factors
    int *blocks;  // (max_blocks) indices into the pool, -1 where none
} Sequence;

/* Keys and values of sequences: a pool of blocks, each with every layer's keys and values of 64
 * positions of one sequence. How they lie in a block is cache.c's business. */
typedef struct {
    const Config *config;
    const Kernels *k;
    KvType type;
    bool pairs;       // products are made in pairs of bf16
    atomic_bool *cut; // set when a key or value beyond 65504 was cut off for f16; or NULL
    int seq_len;      // positions each sequence can hold
    Sequence *seqs;   // (n_seqs)
    int n_seqs;
    int max_blocks; // of one sequence
    int n_blocks;   // in the pool
    int *refs;      // (n_blocks) sequences that hold the block
    char *pool;     // (n_blocks, block_bytes)
    size_t block_bytes;
    size_t *layer_offset; // (n_layers) bytes from a block's start
} Cache;

/* Keep the first n positions of a sequence (n = 0 empties it). */
void cache_truncate(Cache *c, int seq, int n);

/* Say how long the text of a sequence is, in positions, before rows are run that make it longer:
 * longrope rotates all keys of a text by the factors for its length. Returns the position of the
 * first row to run: the number of positions held, or 0 where these were emptied, since their keys
 * were made for a text of the other kind. */
int cache_expect(Cache *c, int seq, int n);

/* Make `dst` (emptied first) begin with the first n positions of `src`: full blocks are shared, a
 * part is copied. -1 when the pool has no block left. */
int cache_fork(Cache *c, int dst, int src, int n);

/* For forward(): get blocks for positions up to n (exclusive), copying a shared last block first;
 * and store one position's keys (n_kv_heads, key_dim) and values (n_kv_heads, value_dim). */
int cache_grow(Cache *c, int seq, int n, Err *e);
void cache_store(Cache *c, int layer, int seq, int pos, const float *k, const float *v);

/* Keys (key_dim, KV_BLOCK) and values (KV_BLOCK, value_dim) of one head of one block as f32,
 * whatever the type. */
void cache_read(const Cache *c, int layer, int kv_head, int seq, int block, float *keys,
                float *values);

/* In which format a tile's keys and values are multiplied: as they are cached, converted to f32, or
 * as pairs of bf16. */
typedef enum { KV_AS_F16, KV_AS_F32, KV_AS_BYTES, KV_AS_BF16_PAIRS } KvFormat;

/* The queries of some rows and one head's keys and values of a sequence, block by block. */
typedef struct {
    const Cache *cache;
    int layer, kv_head, seq, rows;
    KvFormat format;
    float *q;    // (rows, key_dim), as f32 or as bf16 with an even number of values a row
    float *part; // (rows, KV_BLOCK) scratch
    float *keys,
        *values; // (key_dim, KV_BLOCK), (KV_BLOCK, value_dim) scratch for a block that is converted
} KvTile;

/* Set a tile up in scratch of kv_tile_floats() floats; returns what lies after them. */
size_t kv_tile_floats(const Config *c, size_t rows);
float *kv_tile_init(KvTile *t, const Cache *c, int layer, int kv_head, int seq, int rows,
                    float *scratch);

/* The query (key_dim) of a row. */
void kv_tile_query(KvTile *t, int row, const float *q);

/* scores[r][j] = q_r . k_j for the block's keys j < n_keys, before scale, bias and mask; scores
 * (rows, KV_BLOCK). What lies beyond n_keys are numbers that the mask must overwrite. */
void kv_tile_scores(KvTile *t, int block, int n_keys, float *scores);

/* out (rows, value_dim) += weights (rows, KV_BLOCK) times the block's first n_keys values. The
 * weights are changed. */
void kv_tile_add_values(KvTile *t, int block, int n_keys, float *weights, float *out);

/* ---- session --------------------------------------------------------------------------------- */

typedef struct {
    int seq_len;    // positions each sequence can hold
    int n_seqs;     // sequences, at least 1
    int max_batch;  // rows of one forward()
    int max_rows;   // of them in a layer at a time, 0: all; fewer need less memory
    int max_logits; // rows of one forward() with logits
    int n_threads;
    KvType kv_type;
    bool keep_soft;                    // Session.soft is wanted
    bool exact;                        // multiply with float activations, and attention in floats
    const volatile sig_atomic_t *stop; // other than 0 ends a forward(); NULL: nothing does
    const Kernels *kernels;
    atomic_bool
        *kv_cut; // set when a key or value beyond 65504 was cut off for the f16 cache; or NULL
} SessionParams;

typedef struct Session Session;

static inline bool stop_wanted(const SessionParams *p)
{
    return p->stop && *p->stop;
}

/* Watches a forward(): called after each layer, inside the team of threads, while Session.q and
 * .soft hold the batch's rows and the cache the layer's keys and values. Anything but 0 ends the
 * forward(), which then fails. */
typedef int (*LayerWatch)(void *context, Session *s, int layer);

struct Session {
    const Model *model;
    SessionParams params;
    const Kernels *k;
    Threads threads;
    Arena arena;
    Cache cache;

    /* Activations of one forward(): T = max_batch rows, R = max_rows at a time. */
    int *pos;             // (T) position of each row
    float *x, *xn;        // (T, dim) residual stream; (R or max_logits, dim) its normalised copy
    float *q;             // (T, n_heads * key_dim)
    float *k_new, *v_new; // (R, n_kv_heads * key_dim), (R, n_kv_heads * value_dim)
    float *att;           // (R, n_heads * value_dim)
    float *attn_out;      // (R, dim)
    float *hidden, *gate; // (R, hidden_dim)
    PackedBlock *x8;      // (R or max_logits, widest input / 32) matmul's input as bytes
    uint16_t *x16;        // (R or max_logits, widest input) the same in bfloat16
    float *soft; // (T, max_heads, 2) each row's largest score and sum of exp(score - largest); NULL
                 // without keep_soft
    float *logits; // (max_logits, vocab_size): of the rows that wanted them, in batch order
    float *
        inv_freq; // (2, 2, rope_dim / 2) of each of Config.ropes, in a short and in a long sequence
    float *cos_sin;      // (2, T, rope_dim / 2, 2)
    float *rope_scale;   // (2) multiplies cos and sin
    int max_heads;       // of any layer
    float *alibi_slopes; // (n_layers, max_heads)
    float *partial;      // attention's results per key span, see attention.c
    float *scratch;      // (n_threads, scratch_floats) of matmul and attention: session_scratch()
    size_t scratch_floats;

    int n_rows;         // of the forward() that is running
    atomic_int bad_row; // its first row that has met a number that is not finite, INT_MAX for none
    LayerWatch watch;   // NULL for none
    void *watch_context;
};

/* 0, or -1 with nothing left allocated (EXIT_MEMORY). */
int session_init(Session *s, const Model *m, const SessionParams *p, Err *e);
void session_free(Session *s);

/* Bytes that session_init would reserve (most of it touched only when used). */
size_t session_bytes(const Model *m, const SessionParams *p);

/* The scratch of one thread: scratch_floats floats. */
float *session_scratch(const Session *s, int thread);

/* For session.c: set the sizes of a cache, and reserve its memory (twice, see Arena). */
void cache_size(Cache *c, const Config *config, const SessionParams *p);
void cache_plan(Cache *c, Arena *a);

/* ---- forward --------------------------------------------------------------------------------- */

typedef enum { WANT_LAST, WANT_ALL, WANT_NONE } Want;

/* Rows of one call. Rows of the same sequence stand together, positions ascending by one from the
 * sequence's n_pos. */
typedef struct {
    int n;
    const int *tokens;  // (n) ids, or NULL when embd is given
    const float *embd;  // (n, dim) input vectors instead of tokens
    const int *seqs;    // (n) sequence of each row; NULL: all 0
    const bool *wanted; // (n) whether its logits are wanted; NULL:
    Want want;          // the last row's, all or none
} Batch;

/* Run the rows; their keys and values are appended to their sequences. Returns the number of logit
 * rows now in s->logits, or -1: a full context or pool, a token out of range, a row whose numbers
 * are not finite (EXIT_IO), or *stop (EXIT_OK), which is heard within a layer. A sequence that
 * becomes longer than cache_expect() was told keeps the factors of longrope that it has. Never
 * allocates. */
int forward(Session *s, const Batch *b, Err *e);

/* ---- the parts of forward, one file each ----------------------------------------------------- */

/* One product: y (T, d) = x (T, n) W^T + b. */
typedef struct {
    const Linear *w;
    float *y;
} MatmulOut;

/* Floats behind each row of an unpacked panel: rows of 2,048 values without them share the same
 * cache sets, and the product takes 13 % longer. */
enum { PANEL_PAD = 16 };

/* Several products of the same x (n_rows, n), as one parallel job. */
void matmul(Session *s, const float *x, int n_rows, const MatmulOut *outs, int n_outs);

/* Attention of n_rows rows of one sequence starting at position pos: q (n_rows, n_heads, key_dim)
 * -> out (n_rows, n_heads, value_dim), and soft (n_rows, max_heads, 2) as in Session, unless NULL.
 */
void attention(Session *s, int layer, int seq, int pos, int n_rows, const float *q, float *out,
               float *soft);

enum { MAP_ROWS = 64 };

/* The weights that attention() used: of one head, for at most MAP_ROWS rows starting at position
 * pos, from the same q and soft -> out (n_rows, n_keys), 0 for keys that are not visible. Runs on
 * the calling thread, number `thread`. */
void attention_weights(Session *s, int layer, int seq, int head, int pos, int n_rows,
                       const float *q, const float *soft, float *out, int n_keys, int thread);
size_t attention_scratch(const Config *c);              // floats of scratch for one thread
size_t attention_partial(const Config *c, int seq_len); // floats of Session.partial

enum { ROW_GRAIN = 4 }; // rows of light work, such as a norm, that are worth another thread

/* ops.c: y may be x. */
void norm_rows(Session *s, const Norm *n, float *y, const float *x, int n_rows, int width);
void rope_init(const Model *m, int index, bool is_long, float *inv_freq, float *scale);
void rope_rotate(float *x, const float *cos_sin, int n_heads, int head_dim, int rope_dim,
                 RopePairing pairing);

#endif
