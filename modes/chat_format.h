/* chat_format.h - how a model wants conversations written: its chat template, with the tokens and
 * variables that the template is given. */
#ifndef CHAT_FORMAT_H
#define CHAT_FORMAT_H

#include "modes/options.h"
#include "text/template.h"
#include "tokenizer.h"

enum { CHAT_TEXTS = 7 };

typedef struct {
    Template *chat;
    Template *chat_tools;          // the one for conversations with tools, NULL: the same
    Buf template_text, tools_text; // of --chat-template and --tools
    JsonDoc tools, variables;      // of --tools and --chat-template-kwargs
    TemplateInput input;           // all but the messages and the time
    TemplateText texts[CHAT_TEXTS];
} ChatFormat;

/* Read the template and what it is given: --chat-template, or the model's own (and, for
 * conversations with tools, the one that it names "tool_use"), --tools, --chat-template-kwargs and
 * --no-generation-prompt. 0, or -1 and an Err; chat_format_close() in either case. Keeps views into
 * `o` and `g`; *f must stay where it is. */
int chat_format_open(ChatFormat *f, const Options *o, const Gguf *g, Err *e);
void chat_format_close(ChatFormat *f); // a zeroed one is fine

/* The text of a conversation, a JSON list of messages, at the present time: template_render(). */
int chat_format_render(const ChatFormat *f, const JsonDoc *messages, Rendered *out, Err *e);

/* A conversation as JSON texts. */
typedef struct {
    Str messages;         // a list
    Str tools, variables; // a list and an object, as --tools and --chat-template-kwargs, which an
                          // empty text leaves to the flags
} Conversation;

/* The text of a conversation, as chat_format_render(). */
int chat_format_read(const ChatFormat *f, const Conversation *c, Rendered *out, Err *e);

/* Append the ids of a conversation's text. No token is added to what the template writes, and
 * contents never become control tokens. 0, or -1 and an Err, also where there are none. */
int chat_format_encode(const Tokenizer *t, const Rendered *r, TokenList *ids, Err *e);

/* Append a message, a JSON object. */
void chat_format_message(Buf *out, const char *role, Str content);

#endif
