/* template.c - runs a chat template's tree over a conversation. Contracts are in template.h.
 *
 * Names are looked up from the innermost scope outwards. Loops, macros and blocks have a scope of
 * their own; {% if %} has none. A macro sees the scope that it was defined in.
 */
#include "text/template.h"

#include <stdlib.h>
#include <string.h>

#include "text/filters.h"
#include "text/operators.h"
#include "text/template_parse.h"
#include "text/value_print.h"

enum { MAX_OUTPUT = 64 << 20, MAX_BYTES = 1 << 30 }; // of one rendering
static const uint64_t USUAL_STEPS = 200u * 1000 * 1000;

struct Template {
    Tree tree;
};

typedef struct Scope Scope;
struct Scope {
    Scope *outer;
    const char **names; // (n) compared as pointers
    Value *values;
    size_t n, names_cap, values_cap;
    bool kept; // something may look names up here later
};

/* A macro, or the caller() of a {% call %}. */
typedef struct Macro {
    const Node *node;
    Scope *scope; // where it was defined
} Macro;

typedef struct {
    Room room;
    const Tree *tree;
    Build out; // what is being written to
    Scope *scope;
    enum { GO_ON, BREAK, CONTINUE } jump;
} Run;

static Value evaluate(Run *run, const Node *n);
static void execute(Run *run, const Node *body);

/* ---- scopes ---------------------------------------------------------------------------------- */

static Scope *scope_new(Run *run, Scope *outer)
{
    Scope *s = room_alloc(&run->room, 1, sizeof *s);
    *s = (Scope){.outer = outer};
    return s;
}

/* A function or a condition of a loop keeps the present scope, and those around it. */
static Scope *scope_keep(Scope *scope)
{
    for (Scope *s = scope; s && !s->kept; s = s->outer)
        s->kept = true;
    return scope;
}

/* A scope for the next pass of a loop, where the last pass had *scope. */
static Scope *scope_again(Run *run, Scope *scope)
{
    if (scope->kept)
        return scope_new(run, scope->outer);
    scope->n = 0;
    return scope;
}

/* Its own value of that name, NULL for none. */
static Value *scope_own(Scope *s, const char *name)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->names[i] == name)
            return &s->values[i];
    return NULL;
}

static Value *scope_find(Scope *s, const char *name)
{
    Value *found = NULL;
    for (; s && !found; s = s->outer)
        found = scope_own(s, name);
    return found;
}

static void scope_set(Run *run, Scope *s, const char *name, Value v)
{
    Value *own = scope_own(s, name);
    if (own) {
        *own = v;
        return;
    }
    s->names = room_grow(&run->room, s->names, s->n + 1, &s->names_cap, sizeof *s->names);
    s->values = room_grow(&run->room, s->values, s->n + 1, &s->values_cap, sizeof *s->values);
    s->names[s->n] = name;
    s->values[s->n++] = v;
}

/* The tree's own pointer for a name; NULL: the template does not speak of it. */
static const char *known_name(const Tree *t, Str name)
{
    for (size_t i = 0; i < t->n_names; i++)
        if (!str_cmp(t->names[i], name))
            return t->names[i].ptr;
    return NULL;
}

static void scope_set_named(Run *run, Scope *s, Str name, Value v)
{
    const char *own = known_name(run->tree, name);
    if (own)
        scope_set(run, s, own, v);
}

static Value look_up(Run *run, const char *name)
{
    Value *found = scope_find(run->scope, name), global;
    if (found)
        return *found;
    global = global_find(name);
    return global.type == V_FUNCTION ? global
                                     : value_missing(&run->room, "'%.100s' is undefined", name);
}

static void assign(Run *run, Scope *scope, const Node *target, Value v)
{
    Room *r = &run->room;
    if (target->kind == N_NAME) {
        scope_set(run, scope, target->name, v);
    } else if (target->kind == N_MEMBER) {
        Value space = look_up(run, target->name);
        if (space.type != V_NAMESPACE)
            room_fail(r, "cannot assign attribute on non-namespace object");
        if (*target->value.text->bytes == '_')
            room_fail(r, "Chat templates cannot store underscore-prefixed attributes on a "
                         "namespace");
        dict_set(r, space.dict, target->value, v);
    } else {
        List *items = value_items(r, v);
        size_t i = 0;
        for (const Node *n = target->list; n; n = n->next, i++)
            if (i < items->n)
                assign(run, scope, n, items->items[i]);
        if (i != items->n)
            room_fail(r, "cannot unpack %zu values into %zu names", items->n, i);
    }
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* Arguments of a call on their way. */
typedef struct {
    List *args, *named;
    Str *names;
    size_t cap;
} Arguments;

static void add_named(Run *run, Arguments *a, Str name, Value v)
{
    Room *r = &run->room;
    for (size_t i = 0; i < a->named->n; i++)
        if (!str_cmp(a->names[i], name))
            room_fail(r, "got multiple values for keyword argument '%.*s'",
                      (int)(name.len < 60 ? name.len : 60), name.ptr);
    a->names = room_grow(r, a->names, a->named->n + 1, &a->cap, sizeof *a->names);
    a->names[a->named->n] = name;
    list_add(r, a->named, v);
}

static Call arguments(Run *run, const Node *n)
{
    Room *r = &run->room;
    Arguments a = {.args = list_new(r), .named = list_new(r)};
    for (const Node *arg = n->list; arg; arg = arg->next) {
        Value v = evaluate(run, arg->a);
        if (arg->name)
            add_named(run, &a, (Str){arg->name, strlen(arg->name)}, v);
        else
            list_add(r, a.args, v);
    }
    if (n->star) {
        Value v;
        for (Iter *it = value_iter(r, evaluate(run, n->star)); iter_next(r, it, &v);)
            list_add(r, a.args, v);
    }
    if (n->stars) {
        Value v = evaluate(run, n->stars);
        if (v.type != V_DICT)
            room_fail(r, "argument after ** must be a mapping, not %s", value_type_name(v));
        for (size_t i = 0; i < v.dict->n; i++)
            add_named(run, &a, text_str(text_need(r, v.dict->keys[i], "a keyword")),
                      v.dict->values[i]);
    }
    return (Call){a.args->items, a.args->n, a.names, a.named->items, a.named->n};
}

/* Run `body` in `scope`: what it writes. */
static Value captured(Run *run, Scope *scope, const Node *body)
{
    Build out = run->out;
    Scope *before = run->scope;
    run->out = build_begin(&run->room);
    run->scope = scope;
    execute(run, body);
    Value v = build_value(&run->out);
    run->out = out;
    run->scope = before;
    return v;
}

/* The argument for a parameter: of that place, or of that name, which is then used up. */
static bool argument(const Call *call, bool *used, size_t place, const char *name, Value *out)
{
    if (place < call->n) {
        *out = call->args[place];
        return true;
    }
    for (size_t i = 0; i < call->n_named; i++)
        if (!used[i] && str_eq(call->names[i], name)) {
            *out = call->named[i];
            return used[i] = true;
        }
    return false;
}

/* What the parameters do not take: caller, varargs and kwargs where the macro speaks of them. */
static void bind_rest(Run *run, const Macro *m, const Call *call, bool *used, size_t n, Scope *s)
{
    Room *r = &run->room;
    const char *name = m->node->name ? m->node->name : "caller";
    Value caller = value_undefined("No caller defined");
    Dict *kwargs = dict_new(r);
    List *varargs = list_new(r);
    if (m->node->uses & USES_CALLER && !scope_own(s, run->tree->caller)) {
        argument(call, used, SIZE_MAX, "caller", &caller);
        scope_set(run, s, run->tree->caller, caller);
    }
    for (size_t i = 0; i < call->n_named; i++)
        if (!used[i])
            dict_set(r, kwargs, value_text(r, text_of(r, call->names[i], MARK_TEMPLATE)),
                     call->named[i]);
    for (size_t i = n; i < call->n; i++)
        list_add(r, varargs, call->args[i]);
    if (m->node->uses & USES_KWARGS)
        scope_set(run, s, run->tree->kwargs, value_dict(kwargs));
    else if (kwargs->n)
        room_fail(r, "macro '%.60s' takes no keyword argument '%.60s'", name,
                  value_missing(r, "%.*s", (int)kwargs->keys[0].text->len,
                                kwargs->keys[0].text->bytes)
                      .undefined);
    if (m->node->uses & USES_VARARGS)
        scope_set(run, s, run->tree->varargs, value_tuple(varargs));
    else if (varargs->n)
        room_fail(r, "macro '%.60s' takes not more than %zu argument(s)", name, n);
}

/* Values of the parameters in the scope that is the present one. */
static void bind(Run *run, const Macro *m, const Call *call)
{
    Room *r = &run->room;
    Scope *s = run->scope;
    size_t n = 0;
    bool *used = room_alloc(r, call->n_named, sizeof *used), *given;
    memset(used, 0, call->n_named * sizeof *used);
    for (const Node *p = m->node->list; p; p = p->next)
        n++;
    given = room_alloc(r, n, sizeof *given);
    n = 0;
    for (const Node *p = m->node->list; p; p = p->next, n++) {
        Value v = value_missing(r, "parameter '%.60s' was not provided", p->name);
        given[n] = argument(call, used, n, p->name, &v);
        scope_set(run, s, p->name, v);
    }
    bind_rest(run, m, call, used, n, s);
    n = 0;
    for (const Node *p = m->node->list; p; p = p->next, n++)
        if (!given[n] && p->a)
            scope_set(run, s, p->name, evaluate(run, p->a));
}

static Value call_macro(Run *run, const Macro *m, const Call *call)
{
    Scope *before = run->scope;
    room_enter(&run->room);
    run->scope = scope_new(run, m->scope);
    bind(run, m, call);
    Value v = captured(run, run->scope, m->node->body);
    run->scope = before;
    room_leave(&run->room);
    return v;
}

static void run_loop(Run *run, const Node *n, Value items, int depth0);

/* loop(items) of a recursive loop. */
static Value call_loop(Run *run, const Loop *l, const Call *call)
{
    Room *r = &run->room;
    if (!l->again)
        room_fail(r, "The loop must have the 'recursive' marker to be called recursively.");
    if (call->n != 1 || call->n_named)
        room_fail(r, "loop() takes 1 argument");
    Build out = run->out;
    Scope *before = run->scope;
    room_enter(r);
    run->out = build_begin(r);
    run->scope = l->scope;
    run_loop(run, l->again, call->args[0], l->depth0 + 1);
    Value v = build_value(&run->out);
    run->out = out;
    run->scope = before;
    room_leave(r);
    return v;
}

static Value call_value(Run *run, Value f, const Call *call)
{
    Room *r = &run->room;
    switch (f.type) {
    case V_FUNCTION: return function_call(r, f.function, NONE, call);
    case V_METHOD: return function_call(r, f.method->function, f.method->self, call);
    case V_MACRO: return call_macro(run, f.macro, call);
    case V_LOOP: return call_loop(run, f.loop, call);
    case V_UNDEFINED: fail_undefined(r, f);
    default: room_fail(r, "'%s' object is not callable", value_type_name(f));
    }
}

/* ---- expressions ----------------------------------------------------------------------------- */

static bool compares(Run *run, const char *op, Value a, Value b)
{
    Room *r = &run->room;
    if (!strcmp(op, "in") || !strcmp(op, "not in"))
        return value_in(r, a, b) == (*op == 'i');
    if (op[1] == '=' && (*op == '=' || *op == '!'))
        return value_equal(r, a, b) == (*op == '=');
    int c = value_order(r, a, b, op);
    return c != 2 && (*op == '<' ? c < 0 || (op[1] && !c) : c > 0 || (op[1] && !c));
}

static Value compare(Run *run, const Node *n)
{
    Value left = evaluate(run, n->a);
    for (const Node *operand = n->list; operand; operand = operand->next) {
        Value right = evaluate(run, operand->a);
        run->room.line = n->line;
        if (!compares(run, operand->name, left, right))
            return value_bool(false);
        left = right;
    }
    return value_bool(true);
}

static Value make_list(Run *run, const Node *n)
{
    List *l = list_new(&run->room);
    for (const Node *item = n->list; item; item = item->next)
        list_add(&run->room, l, evaluate(run, item));
    return n->kind == N_LIST ? value_list(l) : value_tuple(l);
}

static Value make_dict(Run *run, const Node *n)
{
    Dict *d = dict_new(&run->room);
    for (const Node *key = n->list; key; key = key->next->next) {
        Value k = evaluate(run, key);
        dict_set(&run->room, d, k, evaluate(run, key->next));
    }
    return value_dict(d);
}

static Value make_slice(Run *run, const Node *n)
{
    Value *parts = room_alloc(&run->room, 3, sizeof *parts);
    parts[0] = n->a ? evaluate(run, n->a) : NONE;
    parts[1] = n->b ? evaluate(run, n->b) : NONE;
    parts[2] = n->c ? evaluate(run, n->c) : NONE;
    return (Value){.type = V_SLICE, .slice = parts};
}

static Value concat(Run *run, const Node *n)
{
    Value v = NONE;
    for (const Node *item = n->list; item; item = item->next) {
        Text t = print_str(&run->room, evaluate(run, item));
        v = item == n->list ? value_text(&run->room, t) : text_join2(&run->room, *v.text, t);
    }
    return v;
}

/* v | name(...), v being what the filter stands behind. */
static Value run_filter(Run *run, const Node *n, Value v)
{
    Call call = arguments(run, n);
    run->room.line = n->line;
    return filter_run(&run->room, n->name, v, &call);
}

/* Filters before a block: the innermost one has no operand but the block's text. */
static Value filter_block(Run *run, const Node *n, Value text)
{
    return run_filter(run, n, n->a ? filter_block(run, n->a, text) : text);
}

static Value run_test(Run *run, const Node *n)
{
    Value v = evaluate(run, n->a);
    Call call = arguments(run, n);
    run->room.line = n->line;
    return value_bool(test_run(&run->room, n->name, v, &call));
}

static Value operate(Run *run, const Node *n)
{
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**"};
    Value a = evaluate(run, n->a), b = evaluate(run, n->b);
    run->room.line = n->line;
    return value_operate(&run->room, names[n->kind - N_ADD], a, b);
}

static Value attribute(Run *run, const Node *n)
{
    Value v = evaluate(run, n->a);
    run->room.line = n->line;
    return value_attribute(&run->room, v, *n->value.text);
}

static Value evaluate_inner(Run *run, const Node *n)
{
    Room *r = &run->room;
    Value a, b;
    Call call;
    switch (n->kind) {
    case N_CONST: return n->value;
    case N_NAME: return look_up(run, n->name);
    case N_LIST:
    case N_TUPLE: return make_list(run, n);
    case N_DICT: return make_dict(run, n);
    case N_ATTRIBUTE: return attribute(run, n);
    case N_ITEM:
        a = evaluate(run, n->a);
        b = evaluate(run, n->b);
        return value_item(r, a, b);
    case N_SLICE: return make_slice(run, n);
    case N_CALL:
        a = evaluate(run, n->a);
        call = arguments(run, n);
        r->line = n->line;
        return call_value(run, a, &call);
    case N_FILTER: return run_filter(run, n, evaluate(run, n->a));
    case N_TEST: return run_test(run, n);
    case N_NOT: return value_bool(!value_truth(evaluate(run, n->a)));
    case N_NEGATIVE:
    case N_POSITIVE: return value_negative(r, evaluate(run, n->a), n->kind == N_NEGATIVE);
    case N_CONCAT: return concat(run, n);
    case N_COMPARE: return compare(run, n);
    case N_AND:
    case N_OR:
        a = evaluate(run, n->a);
        return value_truth(a) == (n->kind == N_OR) ? a : evaluate(run, n->b);
    case N_CHOICE:
        if (value_truth(evaluate(run, n->b)))
            return evaluate(run, n->a);
        return n->c ? evaluate(run, n->c)
                    : value_undefined("the inline if-expression evaluated to false and no else "
                                      "section was defined.");
    default: return operate(run, n);
    }
}

static Value evaluate(Run *run, const Node *n)
{
    room_enter(&run->room);
    run->room.line = n->line;
    Value v = evaluate_inner(run, n);
    room_leave(&run->room);
    return v;
}

/* ---- statements ------------------------------------------------------------------------------ */

/* The items of a loop that pass its condition, each tested when it is asked for. */
typedef struct {
    Run *run;
    const Node *node;
    Scope *scope;
} Condition;

static bool next_passing(Room *r, Iter *it, Value *out)
{
    Condition *c = it->more;
    while (iter_next(r, it->inner, out)) {
        Scope *before = c->run->scope;
        c->run->scope = c->scope = scope_again(c->run, c->scope);
        assign(c->run, c->run->scope, c->node->a, *out);
        bool passes = value_truth(evaluate(c->run, c->node->c));
        c->run->scope = before;
        if (passes)
            return true;
    }
    return false;
}

static Value passing(Run *run, const Node *n, Value items)
{
    Condition *c = room_alloc(&run->room, 1, sizeof *c);
    Iter *it = room_alloc(&run->room, 1, sizeof *it);
    *c = (Condition){run, n, scope_new(run, scope_keep(run->scope))};
    *it = (Iter){.next = next_passing, .inner = value_iter(&run->room, items), .more = c};
    return (Value){.type = V_ITER, .iter = it};
}

static void run_loop(Run *run, const Node *n, Value items, int depth0)
{
    Room *r = &run->room;
    Scope *outer = run->scope, *pass = scope_new(run, outer);
    Loop *l = room_alloc(r, 1, sizeof *l);
    Value item;
    bool any = false; // a pass came to its end: jinja2 counts none that was left before
    if (n->c)
        items = passing(run, n, items);
    *l = (Loop){.items = value_iter(r, items),
                .source = items,
                .index0 = -1,
                .length = -1,
                .depth0 = depth0,
                .again = n->recursive ? n : NULL,
                .scope = n->recursive ? scope_keep(outer) : outer};
    while (run->jump != BREAK && loop_next(r, l, &item)) {
        run->scope = pass = scope_again(run, pass);
        scope_set(run, run->scope, run->tree->loop, (Value){.type = V_LOOP, .loop = l});
        assign(run, run->scope, n->a, item);
        execute(run, n->body);
        any |= run->jump == GO_ON;
        if (run->jump == CONTINUE)
            run->jump = GO_ON;
    }
    run->jump = GO_ON;
    run->scope = scope_again(run, pass);
    if (!any)
        execute(run, n->other);
    run->scope = outer;
}

static Value make_macro(Run *run, const Node *n)
{
    Macro *m = room_alloc(&run->room, 1, sizeof *m);
    *m = (Macro){n, scope_keep(run->scope)};
    return (Value){.type = V_MACRO, .macro = m};
}

/* The call of a {% call %}, with caller() as one more argument. */
static void run_call_block(Run *run, const Node *n)
{
    Room *r = &run->room;
    Value f = evaluate(run, n->a->a);
    Call call = arguments(run, n->a);
    Arguments a = {.named = list_new(r)};
    for (size_t i = 0; i < call.n_named; i++)
        add_named(run, &a, call.names[i], call.named[i]);
    add_named(run, &a, (Str){"caller", 6}, make_macro(run, n));
    call.names = a.names;
    call.named = a.named->items;
    call.n_named = a.named->n;
    print_value(&run->out, call_value(run, f, &call));
}

static void run_with(Run *run, const Node *n)
{
    Scope *outer = run->scope, *scope = scope_new(run, outer);
    for (const Node *target = n->list; target; target = target->next->next)
        assign(run, scope, target, evaluate(run, target->next));
    run->scope = scope;
    execute(run, n->body);
    run->scope = outer;
}

static void run_block(Run *run, const Node *n)
{
    Value v = captured(run, scope_new(run, run->scope), n->body);
    if (run->jump != GO_ON) // what was written is dropped
        return;
    const Node *filters = n->kind == N_SET_BLOCK ? n->c : n->a;
    v = filters ? filter_block(run, filters, v) : v;
    if (n->kind == N_SET_BLOCK)
        assign(run, run->scope, n->a, v);
    else
        print_value(&run->out, v);
}

static void run_statement(Run *run, const Node *n)
{
    switch (n->kind) {
    case N_DATA: build_add(&run->out, *n->value.text); break;
    case N_OUTPUT: print_value(&run->out, evaluate(run, n->a)); break;
    case N_FOR: run_loop(run, n, evaluate(run, n->b), 0); break;
    case N_IF: execute(run, value_truth(evaluate(run, n->a)) ? n->body : n->other); break;
    case N_SET: assign(run, run->scope, n->a, evaluate(run, n->b)); break;
    case N_MACRO: scope_set(run, run->scope, n->name, make_macro(run, n)); break;
    case N_CALL_BLOCK: run_call_block(run, n); break;
    case N_WITH: run_with(run, n); break;
    case N_SCOPE: print_value(&run->out, captured(run, scope_new(run, run->scope), n->body)); break;
    case N_BREAK: run->jump = BREAK; break;
    case N_CONTINUE: run->jump = CONTINUE; break;
    default: run_block(run, n); // N_SET_BLOCK, N_FILTER_BLOCK
    }
}

static void execute(Run *run, const Node *body)
{
    room_enter(&run->room);
    for (; body && run->jump == GO_ON; body = body->next) {
        run->room.line = body->line;
        run_statement(run, body);
        if (run->out.rope->used > MAX_OUTPUT)
            room_fail(&run->room, "its text is longer than %d MB", MAX_OUTPUT >> 20);
    }
    room_leave(&run->room);
}

/* ---- input ----------------------------------------------------------------------------------- */

static Text content(Room *r, Str s)
{
    return text_of(r, s, MARK_CONTENT);
}

/* A JSON number as Python reads it: whole unless it has a point or an exponent. */
static Value number_value(Run *run, const JsonNode *n)
{
    int64_t whole;
    for (size_t i = 0; i < n->raw.len; i++)
        if (strchr(".eE", n->raw.ptr[i]))
            return value_float(n->number);
    if (json_integer(n, INT64_MIN, INT64_MAX, &whole))
        return value_int(whole);
    Value v = value_text(&run->room, content(&run->room, n->raw));
    v.type = V_BIG;
    return v;
}

static Value json_to_value(Run *run, const JsonDoc *d, const JsonNode *n)
{
    Room *r = &run->room;
    Value v;
    room_enter(r);
    if (n->type == JSON_LIST) {
        List *l = list_new(r);
        for (const JsonNode *i = json_first(d, n); i; i = json_next(d, n, i))
            list_add(r, l, json_to_value(run, d, i));
        v = value_list(l);
    } else if (n->type == JSON_OBJECT) {
        Dict *o = dict_new(r);
        for (const JsonNode *i = json_first(d, n); i; i = json_next(d, n, i))
            dict_set(r, o, value_text(r, content(r, i->key)), json_to_value(run, d, i));
        v = value_dict(o);
    } else if (n->type == JSON_STRING) {
        v = value_text(r, content(r, n->string));
    } else if (n->type == JSON_NUMBER) {
        v = number_value(run, n);
    } else {
        v = n->type == JSON_NULL ? NONE : value_bool(n->type == JSON_TRUE);
    }
    room_leave(r);
    return v;
}

static _Noreturn void bad_input(Run *run, const char *what)
{
    room_raise(&run->room, (Str){what, strlen(what)});
}

/* A role that is a plain word may be a part of the template's tokens. */
static Value role_value(Run *run, Str role)
{
    bool plain = role.len > 0 && role.len <= 64;
    for (size_t i = 0; i < role.len && plain; i++) {
        char c = role.ptr[i];
        plain = (c >= '0' && c <= '9') || c == '_' || ((c | 32) >= 'a' && (c | 32) <= 'z');
    }
    return value_text(&run->room, text_of(&run->room, role, plain ? MARK_TEMPLATE : MARK_CONTENT));
}

/* A message as transformers hands it on: without what is null, and with the reasoning under each
 * of the names that templates read. */
static Value message_value(Run *run, const JsonDoc *d, const JsonNode *n)
{
    static const char *const reasoning[] = {"reasoning_content", "thinking", "reasoning"};
    Room *r = &run->room;
    Dict *plain = dict_new(r), *out = dict_new(r);
    Value found = UNDEFINED;
    if (n->type != JSON_OBJECT)
        bad_input(run, "messages: got something else than an object in the list, want only "
                       "objects");
    for (const JsonNode *i = json_first(d, n); i; i = json_next(d, n, i)) {
        Value v = i->type == JSON_STRING && str_eq(i->key, "role") ? role_value(run, i->string)
                                                                   : json_to_value(run, d, i);
        dict_set(r, plain, value_text(r, content(r, i->key)), v);
    }
    for (size_t i = 3; i-- > 0;) {
        Value v = dict_named(r, plain, reasoning[i]);
        found = v.type == V_UNDEFINED || v.type == V_NONE ? found : v;
    }
    if (found.type != V_UNDEFINED)
        dict_set(r, out, value_words(r, "thinking"), found);
    for (size_t i = 0; i < plain->n; i++)
        if (plain->values[i].type != V_NONE)
            dict_set(r, out, plain->keys[i], plain->values[i]);
    if (found.type != V_UNDEFINED)
        dict_set(r, out, value_words(r, "reasoning_content"), found);
    return value_dict(out);
}

static Value messages_value(Run *run, const JsonDoc *d)
{
    List *l = list_new(&run->room);
    if (d->nodes->type != JSON_LIST)
        bad_input(run, "messages: want a list of objects: [{\"role\": \"user\", \"content\": "
                       "\"...\"}]");
    for (const JsonNode *i = json_first(d, d->nodes); i; i = json_next(d, d->nodes, i))
        list_add(&run->room, l, message_value(run, d, i));
    if (!l->n)
        bad_input(run, "messages: the list is empty, want at least one message");
    return value_list(l);
}

static Value tools_value(Run *run, const JsonDoc *d)
{
    if (!d)
        return NONE;
    bool fine = d->nodes->type == JSON_LIST;
    for (const JsonNode *i = fine ? json_first(d, d->nodes) : NULL; i;
         i = json_next(d, d->nodes, i))
        fine &= i->type == JSON_OBJECT;
    if (!fine)
        bad_input(run, "tools: want a list of objects, the functions' descriptions");
    return json_to_value(run, d, d->nodes);
}

static Scope *input_scope(Run *run, const TemplateInput *in)
{
    Room *r = &run->room;
    Scope *s = scope_new(run, NULL);
    scope_set_named(run, s, (Str){"documents", 9}, NONE);
    for (size_t i = 0; i < in->n_texts; i++)
        scope_set_named(run, s, (Str){in->texts[i].name, strlen(in->texts[i].name)},
                        value_text(r, text_of(r, in->texts[i].value, MARK_TEMPLATE)));
    scope_set_named(run, s, (Str){"messages", 8}, messages_value(run, in->messages));
    scope_set_named(run, s, (Str){"tools", 5}, tools_value(run, in->tools));
    scope_set_named(run, s, (Str){"add_generation_prompt", 21},
                    value_bool(in->add_generation_prompt));
    const JsonDoc *d = in->variables;
    if (d && d->nodes->type != JSON_OBJECT)
        bad_input(run, "the template's variables: want an object: {\"enable_thinking\": false}");
    for (const JsonNode *i = d ? json_first(d, d->nodes) : NULL; i; i = json_next(d, d->nodes, i))
        scope_set_named(run, s, i->key, json_to_value(run, d, i));
    return s;
}

/* ---- interface ------------------------------------------------------------------------------- */

Template *template_open(Str source, Err *e)
{
    Template *t = mem_zalloc(1, sizeof *t);
    if (!t)
        err_set(e, EXIT_MEMORY, "out of memory for the chat template");
    if (t && tree_parse(&t->tree, source, e)) {
        template_close(t);
        return NULL;
    }
    return t;
}

void template_close(Template *t)
{
    if (t)
        tree_free(&t->tree);
    free(t);
}

/* The text and its parts: runs of bytes with one mark. */
static void add_parts(Room *r, Text t, Rendered *out)
{
    buf_add(&out->text, t.bytes, t.len);
    for (size_t i = 0, end; i < t.len; i = end) {
        for (end = i + 1; end < t.len && t.marks[end] == t.marks[i]; end++)
            ;
        if (out->text.failed
            || !mem_room(&out->parts, out->n_parts + 1, &out->cap, sizeof *out->parts)) {
            err_set(r->err, EXIT_MEMORY, "out of memory for the chat's text");
            longjmp(r->escape, 1);
        }
        out->parts[out->n_parts++] = (TextPart){end, t.marks[i] == MARK_TEMPLATE};
    }
}

/* template_render() in a room of its own. */
static int render(Run *run, const TemplateInput *in, Rendered *out)
{
    if (setjmp(run->room.escape))
        return -1;
    run->scope = scope_new(run, input_scope(run, in));
    run->out = build_begin(&run->room);
    execute(run, run->tree->body);
    add_parts(&run->room, build_text(&run->out), out);
    return 0;
}

int template_render(const Template *t, const TemplateInput *in, Rendered *out, Err *e)
{
    Run run = {.room = {.err = e,
                        .max_bytes = MAX_BYTES,
                        .max_steps = in->max_steps ? in->max_steps : USUAL_STEPS,
                        .line = 1,
                        .now = in->now}};
    run.tree = &t->tree;
    int rc = render(&run, in, out);
    room_free(&run.room);
    return rc;
}

void rendered_free(Rendered *r)
{
    buf_free(&r->text);
    free(r->parts);
    *r = (Rendered){0};
}
