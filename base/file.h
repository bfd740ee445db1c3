/* file.h - files: texts read whole, results written so that they appear complete or not at all, and
 * what a signal handler needs to know about both.
 */
#ifndef FILE_H
#define FILE_H

#include <stdatomic.h>

#include "base/util.h"

enum { TEXT_MAX = INT32_MAX }; // bytes of all texts of a prompt

/* An entry of the list of things that must not be left behind, or must be named, when the program
 * is ended. */
typedef struct Held Held;

/* The name of a file to read for messages: "-" is standard input. */
const char *file_shown(const char *path);

/* Append a whole file, "-" being standard input, to `out`, which may come to TEXT_MAX bytes (more
 * is EXIT_USAGE). *stop other than 0 ends it with -1. */
int file_read(const char *path, const atomic_int *stop, Buf *out, Err *e);

/* The bytes of a regular file in memory. */
typedef struct {
    void *base; // NULL where it is empty, or was not mapped
    size_t size;
    Held *held; // names the file where it becomes shorter while it is used
} FileMap;

/* Map a file, to be read or, `writable`, as a copy that the program may change. `what` is what it
 * should be, for messages, which do not name it. 0; or -1 with nothing mapped, EXIT_IO for what
 * cannot be opened or is no regular file, or EXIT_MEMORY. */
int file_map(FileMap *m, const char *path, const char *what, bool writable, Err *e);
void file_unmap(FileMap *m); // a zeroed one is fine

/* ---- what a signal handler finds ------------------------------------------------------------- */

/* Enter the bytes at `base` that are mapped from `path`: an access fails with SIGBUS where the file
 * has become shorter. NULL when out of memory. */
Held *file_hold_map(const char *path, const void *base, size_t size);
void file_let_go(Held *h); // NULL is fine

/* The program is about to be ended: remove what is not complete. Safe in a signal handler, on any
 * thread. Only the first caller returns, with all signals blocked. */
void file_abandon(void);

/* The error line of the mapped file that has this address, NULL for none. Safe in a signal handler
 * after file_abandon(). */
const char *file_lost(const void *address);

/* ---- results --------------------------------------------------------------------------------- */

/* A file that appears complete or not at all: it is written under a temporary name in its own
 * folder, whatever ends the program, and takes the place of an old one when it is complete.
 * Symbolic links are followed, and the old one's permissions and owner are kept, as far as the
 * system allows. A pipe, a device, "-" (standard output) and /dev/fd/N are written directly. */
typedef struct {
    FILE *f;
    const char *path;      // for messages; not owned
    char *target;          // the name that it gets
    const char *temporary; // the name that it has; NULL where it is written directly
    Held *held;
} OutFile;

int out_open(OutFile *o, const char *path, Err *e);
/* Close it: it is complete. For several files, of which all or none are to appear. */
int out_finish(OutFile *o, Err *e);

int out_commit(OutFile *o, Err *e);          // close it, if it is open, and give it its name
void out_discard(OutFile *o);                // remove what was not committed; a zeroed one is fine
int out_error(const OutFile *o, Err *e);     // an Err from errno; returns -1
bool out_is_direct(const char *path);        // written directly
bool out_same(const char *a, const char *b); // two names of one regular file, there or to be made

#endif
