/* modes.h - what the program can do, one call a mode, and what the modes share. */
#ifndef MODES_H
#define MODES_H

#include <stdatomic.h>

#include "modes/options.h"

/* Each does what its flag asks for and prints the results on standard output. 0, or -1 and an Err;
 * where stop_signal is set the Err may be empty. */
int complete_mode(const Options *o, Err *e); // the prompt and what the model makes of it
int tokenize_mode(const Options *o, Err *e);
int perplexity_mode(const Options *o, Err *e);
int bench_mode(const Options *o, Err *e);
int quantize_mode(const Options *o, Err *e);
int help_mode(const Options *o, Err *e); // this and the rest need no model
int version_mode(const Options *o, Err *e);
int man_mode(const Options *o, Err *e);
int completion_mode(const Options *o, Err *e);

/* The signal that asked us to stop, 0 for none. run.c's handlers set it. A mode that still has
 * something to write may clear it for that time, so that the next signal is noticed too. */
extern atomic_int stop_signal;

/* The threads to use: -t, else OMP_NUM_THREADS, else the cores that we may use. */
int modes_threads(const Options *o);

/* Open the model, with a tokenizer where one is needed, and fill in a team of threads and the
 * parameters of sessions but for their sizes; with -v standard error gets a line about the model.
 * *kv_cut is where sessions note what modes_warn_cut() says. 0, or -1 with an Err; model_close()
 * after 0 or where *m was zeroed before, threads_free() always. */
int modes_open(const Options *o, bool needs_tokenizer, Model *m, Threads *threads, SessionParams *p,
               atomic_bool *kv_cut, Err *e);

/* Warnings, a line on standard error each: a context of seq_len tokens is beyond what the model was
 * made for (told to people only); keys or values did not fit the f16 cache of a run that succeeded
 * (rc = 0), the one line that such a run may print. */
void modes_note_context(const Options *o, const Config *c, int seq_len);
void modes_warn_cut(int rc, atomic_bool *kv_cut);

/* Whether `path` is one of the files that `g` was read from. */
bool modes_is_model_file(const Gguf *g, const char *path);

/* Standard output cannot be written, for the reason in errno: an Err; returns -1. */
int modes_print_failed(Err *e);

#endif
