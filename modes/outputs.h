/* outputs.h - no result is written over a file that the run reads, and no two into one file. */
#ifndef OUTPUTS_H
#define OUTPUTS_H

#include "base/gguf.h"
#include "modes/options.h"

/* What the run reads in the file `path`, in words and in `out`; NULL: it does not read it. */
const char *outputs_read_as(const Options *o, const Gguf *model, const char *path, char out[80]);

/* Every flag's file that is written is none that is read, and no other's; a session may go back
 * into its own file. 0, or -1 and an Err of EXIT_USAGE. */
int outputs_check(const Options *o, const Gguf *model, Err *e);

#endif
