/* quantize.h - a model file to a smaller one: the mode --quantize. */
#ifndef QUANTIZE_H
#define QUANTIZE_H

#include <signal.h>
#include <stdio.h>

#include "kernels/kernels.h"

typedef struct {
    const char *type;       // q4_k_m and so on, any case
    const char **overrides; // "PATTERN=TYPE"; of several that match a tensor the last one counts
    int n_overrides;
    int n_threads;
    const Kernels *kernels;
    FILE *log;              // a line a tensor; NULL for none
} QuantizeParams;

/* Write the model `g` to `output` with its matrices in other types; the policy is in quantize.c. The same bytes for any
 * number of threads and any kernels. *stop other than 0 ends it early and leaves no file. An unknown type, and an override
 * that matches nothing, set EXIT_USAGE. */
int quantize_file(const Gguf *g, const char *output, const QuantizeParams *p, const volatile sig_atomic_t *stop, Err *e);

#endif
