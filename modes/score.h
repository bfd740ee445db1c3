/* score.h - how well a model predicts a text. */
#ifndef SCORE_H
#define SCORE_H

#include <stdatomic.h>

#include "model.h"

#define SCORE_WINDOW 512 // usual tokens of a window, at most the model's context

/* Sums over the tokens that count. */
typedef struct {
    int seq_len, n_windows; // tokens of a window; windows that were run
    size_t n_tokens, n_bytes;
    double nll, nll_squares; // nats
} Score;

/* Perplexity as llama.cpp's tool measures it: the text's tokens are cut into windows of seq_len
 * that do not overlap (a rest is left out; a shorter text is one window), each begins with `bos` in
 * place of its first token unless that is -1, and the tokens of each window's second half count,
 * predicted from all that stands before them in the window. `p` has n_threads, kv_type and kernels,
 * and max_batch as the rows of one pass. *stop other than 0 ends it early. `name` is what an error
 * calls the text. */
int score_perplexity(const Model *m, SessionParams p, const char *name, const int *ids, size_t n,
                     int bos, int seq_len, const atomic_int *stop, Score *out, Err *e);

double score_mean(const Score *s);  // nats a token
double score_error(const Score *s); // standard error of the mean, 0 for fewer than two tokens
double score_bits_per_byte(
    const Score *s); // 0 if those tokens have no bytes; over the bytes of the tokens that count

#endif
