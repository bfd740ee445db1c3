/* stream.h - one text that is being generated: from its token ids to the bytes to print.
 *
 * Bytes wait here while a UTF-8 character is incomplete or while they may begin a stop text.
 */
#ifndef STREAM_H
#define STREAM_H

#include "tokenizer.h"

typedef struct {
    Decoder decoder;
    const Str *stops; // (n_stops) texts that end it, none of them empty; not owned
    int n_stops;
    bool special; // print the names of control tokens
    Buf text;     // decoded, not printed yet, with the names of control tokens
    Buf marks;    // of each of its bytes: printed, or of a name that is not
    int stop;     // number of the stop text that was met, with printer_take() = 1
} Printer;

/* `at_start` as for decoder_init(). Freed with printer_free(). */
void printer_init(Printer *p, const Tokenizer *t, const Str *stops, int n_stops, bool at_start,
                  bool special);
void printer_free(Printer *p);

void printer_feed(Printer *p, int id); // append a generated token
void printer_end(Printer *p); // the text is over: an incomplete character is taken as it is

/* Append to *out what is ready to be printed, with `at_end` all that is left. 1 when a stop text
 * was met, which is not appended; 0 when none was; -1 and an Err when out of memory. */
int printer_take(Printer *p, bool at_end, Buf *out, Err *e);

#endif
