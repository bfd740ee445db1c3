/* conversation.c - see conversation.h. */
#include "modes/conversation.h"

#include <string.h>

int conversations_check_flags(const Options *o, Err *e)
{
    const char *flag = o->system         ? "--system"
                     : o->tools          ? "--tools"
                     : o->chat_template  ? "--chat-template"
                     : o->chat_variables ? "--chat-template-kwargs"
                                         : NULL;
    if (o->chat && (o->no_bos || o->special_files))
        return err_set(e, EXIT_USAGE, "--chat does not take %s: the template says what is special",
                       o->no_bos ? "--no-bos" : "--special-files");
    if (flag && o->lines && o->mode == MODE_SCORE)
        return err_set(e, EXIT_USAGE, "%s: got --lines, want --jsonl with \"messages\"", flag);
    if (flag && o->lines && !o->chat)
        return err_set(e, EXIT_USAGE, "%s needs --chat", flag);
    return 0;
}

int conversations_open(Conversations *c, Err *e)
{
    if (c->format.chat || c->format.chat_tools
        || (!c->no_format.code && !chat_format_open(&c->format, c->o, c->file, &c->no_format)))
        return 0;
    chat_format_close(&c->format);
    *e = c->no_format;
    if (e->code == EXIT_MEMORY) // the next line may find some
        c->no_format = (Err){0};
    return -1;
}

void conversations_close(Conversations *c)
{
    chat_format_close(&c->format);
}

/* A member that may be null, which says nothing. */
static const JsonNode *value(const JsonDoc *d, const char *name)
{
    const JsonNode *n = json_field(d, name);
    return n && n->type == JSON_NULL ? NULL : n;
}

int conversations_wanted(const Conversations *c, const JsonDoc *d, Err *e)
{
    static const char *const beside[] = {"tools", "chat_template_kwargs"};
    if (json_field(d, "messages") || (c->o->chat && !json_field(d, "ids")))
        return 1;
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++)
        if (value(d, beside[i]))
            return err_set(e, EXIT_USAGE, "%s: want \"messages\" beside it%s", beside[i],
                           c->o->mode == MODE_BATCH ? ", or --chat" : "");
    return 0;
}

/* Whether a list of messages begins with one of the system's. */
static bool has_system(const JsonDoc *d, const JsonNode *list)
{
    const JsonNode *first = json_first(d, list);
    const JsonNode *role = first && first->type == JSON_OBJECT ? json_member(d, first, "role")
                                                               : NULL;
    return role && role->type == JSON_STRING
        && (str_eq(role->string, "system") || str_eq(role->string, "developer"));
}

/* The list of messages as JSON. */
static int read_messages(const JsonDoc *d, Str said, const char *system, Buf *out, Err *e)
{
    const JsonNode *list = json_field(d, "messages");
    if (list && list->type != JSON_LIST)
        return err_set(e, EXIT_USAGE, "messages: want a list of messages");
    buf_text(out, "[");
    if (system && !(list && has_system(d, list)))
        chat_format_message(out, "system", (Str){system, strlen(system)});
    if (!list) {
        buf_text(out, out->len > 1 ? "," : "");
        chat_format_message(out, "user", said);
    }
    for (const JsonNode *m = list ? json_first(d, list) : NULL; m; m = json_next(d, list, m)) {
        buf_text(out, out->len > 1 ? "," : "");
        buf_add(out, m->raw.ptr, m->raw.len);
    }
    buf_text(out, "]");
    return out->failed ? err_set(e, EXIT_MEMORY, "out of memory for the line") : 0;
}

int conversations_render(Conversations *c, const JsonDoc *d, Str said, Rendered *out, Err *e)
{
    const JsonNode *tools = value(d, "tools"), *variables = value(d, "chat_template_kwargs");
    Conversation texts = {.tools = tools ? tools->raw : (Str){NULL, 0},
                          .variables = variables ? variables->raw : (Str){NULL, 0}};
    Buf list = {0};
    if (variables && variables->type != JSON_OBJECT)
        return err_set(e, EXIT_USAGE, "chat_template_kwargs: want an object");
    int rc = conversations_open(c, e) || read_messages(d, said, c->o->system, &list, e);
    texts.messages = (Str){list.ptr, list.len};
    rc = rc || chat_format_read(&c->format, &texts, out, e);
    buf_free(&list);
    return rc ? -1 : 0;
}
