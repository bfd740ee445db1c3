/* lines.h - the lines of a stream as they come, without waiting for more of it than the caller
 * wants to. */
#ifndef LINES_H
#define LINES_H

#include <stdatomic.h>
#include <sys/types.h>

#include "base/util.h"

typedef struct {
    int fd;
    const char *path;       // for messages; not owned
    const atomic_int *stop; // other than 0 ends the waiting
    Buf buf;
    size_t begin, searched; // of the next line in buf, and how far a newline was looked for
    bool at_end;            // of the stream
    bool whole;             // the last line taken had an end
    int n;                  // lines taken
    off_t start, end;       // of the stream, and of the last line taken, counted from there
    off_t size;             // of a regular file from its start, else 0
} Lines;

/* Open a file, or standard input for "-". 0, or -1 (EXIT_IO). */
int lines_open(Lines *l, const char *path, const atomic_int *stop, Err *e);
void lines_close(Lines *l);

/* The next line without its end (LF or CRLF), in *line until the next call: 1; 0 when there is none
 * yet or, with at_end, none any more; -1 and an Err. `wait`: for as long as it takes. */
int lines_next(Lines *l, bool wait, Str *line, Err *e);

/* About how many lines there are, those that were taken being like the rest; 0: nobody knows. */
double lines_expect(const Lines *l);

/* Go back to the first line. False, and nothing has changed, where the stream is no regular file.
 */
bool lines_rewind(Lines *l);

#endif
