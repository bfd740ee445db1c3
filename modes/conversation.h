/* conversation.h - lines of JSON that are conversations: their text as the model's chat template
 * writes it. docs/batches.md describes their members. */
#ifndef CONVERSATION_H
#define CONVERSATION_H

#include "modes/chat_format.h"

/* What the conversations of a batch have in common. */
typedef struct {
    const Options *o;  // the caller sets these two
    const Gguf *file;  // the model's, which may be opened later
    ChatFormat format; // zeroed before the first conversation
    Err no_format;     // why it could not be opened; EXIT_OK: it is, or was not needed
} Conversations;

/* What goes together with --chat, and without. 0, or -1 and an Err. */
int conversations_check_flags(const Options *o, Err *e);

/* Read the template and what the flags say of it, once: later calls say the same again, unless it
 * was memory that lacked. 0, or -1 and an Err. */
int conversations_open(Conversations *c, Err *e);
void conversations_close(Conversations *c); // a zeroed one is fine

/* Whether the prompt of a line is a conversation: 1 where it has "messages" or, with --chat, no
 * "ids", else 0; -1 and an Err: it is none but has members for one. `d`: NULL with --lines. */
int conversations_wanted(const Conversations *c, const JsonDoc *d, Err *e);

/* The text of the line's "messages" or, where it has none, of what a user says, after --system
 * where no message is the system's, up to the answer -> the zeroed *out; rendered_free() in either
 * case. 0, or -1 and an Err. */
int conversations_render(Conversations *c, const JsonDoc *d, Str said, Rendered *out, Err *e);

#endif
