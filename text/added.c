/* added.c - see added.h. */
#include "text/added.h"

#include <stdlib.h>
#include <string.h>

static int compare_tokens(const void *a, const void *b)
{
    const AddedToken *x = a, *y = b;
    int c = str_cmp(x->text, y->text);
    return c ? c : (x->id > y->id) - (x->id < y->id);
}

/* The list that finds a token, NULL for one that is not matched in the text. */
static AddedList *list_of(Added *a, const Vocab *v, int id)
{
    TokenType type = v->pieces[id].len ? vocab_type(v, id) : TOKEN_NORMAL;
    bool user = type == TOKEN_USER_DEFINED;
    bool symbol = user && !v->byte_level && v->marking == MARK_SENTENCEPIECE;
    Pass *pass = symbol || (v->later && v->later[id]) ? &a->later : &a->raw;
    return user                                           ? &pass->user
         : type == TOKEN_CONTROL || type == TOKEN_UNKNOWN ? &pass->special
                                                          : NULL;
}

/* A token's text as the later pass meets it. */
static Str later_text(const Vocab *v, Str s, Buf *texts)
{
    size_t from = texts->len;
    if (!v->marks_early)
        return s;
    if (v->marking == MARK_PREPEND)
        buf_add(texts, SPACE_MARK, 3);
    for (size_t i = 0; i < s.len; i++)
        buf_add(texts, s.ptr[i] == ' ' ? SPACE_MARK : s.ptr + i, s.ptr[i] == ' ' ? 3 : 1);
    return (Str){texts->ptr + from, texts->len - from};
}

int added_init(Added *a, const Vocab *v, Err *e)
{
    memset(a, 0, sizeof *a);
    AddedList *lists[] = {&a->raw.user, &a->raw.special, &a->later.user, &a->later.special};
    size_t bytes = 1;
    for (int id = 0; id < v->n; id++)
        bytes += list_of(a, v, id) ? 3 * (v->pieces[id].len + 1) : 0;
    // reserved as a whole, so that what the items point to stays where it is
    bool failed = !mem_room(&a->texts.ptr, bytes, &a->texts.cap, 1);
    for (int id = 0; !failed && id < v->n; id++) {
        AddedList *list = list_of(a, v, id);
        if (!list)
            continue;
        bool later = list == &a->later.user || list == &a->later.special;
        Str s = later ? later_text(v, v->pieces[id], &a->texts) : v->pieces[id];
        failed = !mem_room(&list->items, list->n + 1, &list->cap, sizeof *list->items);
        if (failed)
            break;
        list->first[(unsigned char)*s.ptr] = true;
        list->longest = s.len > list->longest ? s.len : list->longest;
        list->items[list->n++] = (AddedToken){s, id};
    }
    for (int i = 0; !failed && i < 4; i++)
        if (lists[i]->n)
            qsort(lists[i]->items, lists[i]->n, sizeof *lists[i]->items, compare_tokens);
    return failed ? err_set(e, EXIT_MEMORY, "out of memory for the tokenizer") : 0;
}

void added_free(Added *a)
{
    free(a->raw.user.items);
    free(a->raw.special.items);
    free(a->later.user.items);
    free(a->later.special.items);
    buf_free(&a->texts);
    memset(a, 0, sizeof *a);
}

/* ---- searching ------------------------------------------------------------------------------- */

/* The longest token that (text, len) begins with; NULL if there is none, or no steps are left. */
static const AddedToken *match(const AddedList *list, const char *text, size_t len, int64_t *steps)
{
    const AddedToken *best = NULL;
    size_t lo = 0, hi = list->n; // those that agree with the first `depth` bytes
    if (len == 0 || !list->first[(unsigned char)*text])
        return NULL;
    for (size_t depth = 0; lo < hi && *steps >= 0; depth++) {
        for (; lo < hi && list->items[lo].text.len == depth; lo++)
            best = &list->items[lo];
        if (depth == len)
            break;
        unsigned char byte = (unsigned char)text[depth];
        size_t ends[2]; // first item whose next byte is >= byte, and > byte
        for (int k = 0; k < 2; k++) {
            size_t a = k ? ends[0] : lo, b = hi;
            while (a < b) {
                size_t mid = (a + b) / 2;
                --*steps;
                unsigned char x = (unsigned char)list->items[mid].text.ptr[depth];
                if (x < byte || (k && x == byte))
                    a = mid + 1;
                else
                    b = mid;
            }
            ends[k] = a;
        }
        lo = ends[0];
        hi = ends[1];
    }
    return best;
}

/* Where the stretch of special parts that holds byte `at` ends; `at` itself if it lies in none.
 * `at` never falls. */
static size_t special_end(Special *s, size_t at)
{
    while (s->to <= at && s->next < s->n) {
        while (s->next < s->n && !s->parts[s->next].special)
            s->next++;
        s->from = s->next ? s->parts[s->next - 1].end : 0;
        s->to = s->from;
        for (; s->next < s->n && s->parts[s->next].special; s->next++)
            s->to = s->parts[s->next].end;
    }
    return at >= s->from && at < s->to ? s->to : at;
}

/* How many bytes became of the one at `raw` in the text. */
static size_t marked_width(const Search *s, size_t raw)
{
    if (!s->source || s->source[raw] != ' ')
        return 1;
    return s->squeeze && s->source[raw + 1] == ' ' ? 0 : 3;
}

static void search_step(Search *s)
{
    if (s->front) {
        s->at += s->front;
        s->front = 0;
        return;
    }
    s->at += marked_width(s, s->raw++);
}

/* How many bytes from s->at on lie in special parts, as far as the longest token needs to know. */
static size_t special_bytes(Search *s)
{
    size_t n = special_end(s->special, s->raw) - s->raw, bytes = n ? s->front : 0;
    for (size_t i = 0; i < n && bytes < s->pass->special.longest; i++)
        bytes += marked_width(s, s->raw + i);
    *s->steps -= (int64_t)(bytes / 8);
    return bytes < s->len - s->at ? bytes : s->len - s->at;
}

/* The token that stands at s->at, the longest one; NULL if there is none. */
static const AddedToken *parsed_at(Search *s)
{
    const char *p = s->text + s->at;
    const AddedToken *special = NULL;
    const AddedToken *user = match(&s->pass->user, p, s->len - s->at, s->steps);
    if (s->pass->special.first[(unsigned char)*p])
        special = match(&s->pass->special, p, special_bytes(s), s->steps);
    return !user || (special && special->text.len > user->text.len) ? special : user;
}

size_t search_next(Search *s, const AddedToken **found)
{
    if (!s->pass->user.n && !s->pass->special.n)
        s->at = s->len;
    for (; s->at < s->len; search_step(s))
        if ((*found = parsed_at(s))) {
            size_t begin = s->at, end = begin + (*found)->text.len;
            while (s->at < end)
                search_step(s);
            return begin;
        }
    *found = NULL;
    return s->len;
}
