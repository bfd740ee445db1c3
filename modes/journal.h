/* journal.h - the file OUT.run beside a batch's output: what OUT was made with and how much of the
 * input was read, so that a run that was broken off can be gone on with.
 *
 * It is two lines of JSON. The first has a fixed width and is written anew as lines are read: their
 * number and the hash of their bytes, each followed by a newline. It is written before any of these
 * lines has its result in OUT. The second stays: the version, the model's fingerprint, the kernels,
 * the base seed, and every flag that a result may depend on. docs/batches.md describes both.
 *
 * A journal is for a process that ends at any moment, by kill -9 too, not for a machine that does.
 */
#ifndef JOURNAL_H
#define JOURNAL_H

#include "base/sha256.h"
#include "modes/lines.h"
#include "modes/modes.h"

typedef struct {
    const char *out; // not owned
    char *path;      // of the journal
    int fd;
    bool resumed;
    Sha256 hash; // of the lines read
    int n;       // how many these are
    int saved;   // how many the file says
    Buf about;   // the second line

    /* What a resumed run has found. */
    int n_done, n_failed; // lines in OUT, and those with an error
    int n_before;         // lines that were read
    char before[SHA256_HEX + 1];
    unsigned char *done; // a bit for each of them: it is in OUT
    off_t end;           // of OUT's last whole line
} Journal;

/* Prepare to write o->output, a regular file or one to be made, and with --resume compare what is
 * there with what this run would write: EXIT_USAGE where the two do not fit. *seed is the base
 * seed; where -s is not given it becomes that of the run that is resumed. Nothing is changed yet.
 * journal_close() in any case. */
int journal_open(Journal *j, const Options *o, const Engine *x, uint64_t *seed, Err *e);
void journal_close(Journal *j); // a zeroed one is fine

/* A resumed run must have compared its input with that of the run before: call journal_line() for
 * journal.n_before lines, then this. */
int journal_check_input(const Journal *j, Err *e);

/* Open the output, empty or at its end: from here on files are changed. NULL and an Err. */
FILE *journal_begin(Journal *j, Err *e);

/* Line number n of the input, from 1: whether it is to be run, having no result in OUT. Lines that
 * come again, after a rewind, are not counted twice. Without a journal (zeroed) all are to be
 * run. */
bool journal_line(Journal *j, int n, Str line);

/* Say in the file how many lines were read, before the first of them is written to OUT. */
int journal_save(Journal *j, Err *e);

#endif
