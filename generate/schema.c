/* schema.c - JSON schemas to grammars; the contract is in schema.h.
 *
 * A schema is first gathered into facts: its own keywords and those of what it refers to or
 * combines (allOf), so that one place knows how each keyword narrows another. Alternatives (anyOf,
 * oneOf) are facts for each one joined with what stands beside them. A plain reference becomes a
 * call of a rule, so that schemas may contain themselves.
 */
#include "generate/schema.h"

#include <stdlib.h>
#include <string.h>

#include "base/json_read.h"
#include "generate/json_expr.h"
#include "generate/regex.h"

#define SEQUENCE(b, ...)                                                                           \
    expr_sequence(b, (Expr[]){__VA_ARGS__}, sizeof((Expr[]){__VA_ARGS__}) / sizeof(Expr))

enum {
    MAX_TEXT = 1 << 22,
    MAX_GATHER = 64,      // schemas that are joined within each other
    MAX_JOINED = 1 << 17, // schemas that are joined at all
    MAX_WITHIN = 100,     // schemas within each other that are read in one go
    MAX_ITEMS = 500,      // of prefixItems
    MAX_WORK = 20 << 20,  // names and values that are compared
    MAX_NAME = 256,       // bytes of a property's name beside additionalProperties
    MAX_COUNT = 1 << 20   // minLength and the like
};

/* Bits of types. */
enum {
    TYPE_NULL = 1,
    TYPE_BOOLEAN = 2,
    TYPE_INTEGER = 4,
    TYPE_NUMBER = 8, // with TYPE_INTEGER
    TYPE_STRING = 16,
    TYPE_ARRAY = 32,
    TYPE_OBJECT = 64,
    TYPES_ALL = 127
};

typedef struct {
    Str name;
    const JsonNode *schema; // NULL: only required
    bool required;
} Property;

/* What is known of a value. */
typedef struct {
    unsigned types;
    unsigned about;       // types that a keyword speaks of
    bool never;           // the schema false
    const JsonNode *list; // enum, or NULL
    const JsonNode *only; // const, or NULL
    NumberRange range;
    int64_t min_length, max_length; // characters; -1: no most
    const JsonNode *pattern, *format;
    const JsonNode *items;        // NULL: not said
    const JsonNode *prefix;       // list of schemas, or NULL
    int64_t min_items, max_items; // -1: not said
    Property *properties;
    size_t n_properties, cap_properties;
    int n_with_properties;      // schemas that have some
    const JsonNode *additional; // NULL: not said
    bool additional_alone;      // by a schema without properties
    const JsonNode *choices;    // anyOf or oneOf, or NULL
    bool one_of;
} Facts;

/* A member of an object, for looking it up. */
typedef struct {
    const JsonNode *object, *member;
} Member;

/* A schema that is referred to. */
typedef struct {
    const JsonNode *schema;
    int rule;
} Target;

typedef struct {
    JsonDoc doc;
    JsonExprs j;
    Builder *b;
    int *rule_of;  // (nodes) rule + 1 of what is referred to
    bool *is_open; // (nodes) schemas that are being read
    Target *targets;
    Member *members; // (n_places, a power of two) by hash
    size_t n_targets, cap_targets, n_places;
    int n_joined, n_within;
    size_t n_work;
    Err *e;
} Reader;

static int read_schema(Reader *r, const JsonNode *schema, Expr *out);
static int read_facts(Reader *r, const JsonNode *schema, const Facts *f, Expr *out);

/* ---- errors ---------------------------------------------------------------------------------- */

/* The JSON pointer of a node: "#/properties/a". */
static void add_pointer(const Reader *r, const JsonNode *node, Buf *out)
{
    const JsonNode *at = r->doc.nodes;
    buf_text(out, "#");
    while (at && at != node && out->len < 300) {
        const JsonNode *n = json_first(&r->doc, at);
        for (size_t i = 0; n; n = json_next(&r->doc, at, n), i++) {
            char index[32];
            if (node < n || node >= r->doc.nodes + n->next)
                continue;
            snprintf(index, sizeof index, "%zu", i);
            buf_text(out, "/");
            if (at->type == JSON_OBJECT)
                buf_add(out, n->key.ptr, n->key.len);
            else
                buf_text(out, index);
            break;
        }
        at = n;
    }
}

static int no_memory(const Reader *r)
{
    return err_set(r->e, EXIT_MEMORY, "out of memory for the schema");
}

/* "#/properties/a: WHAT". */
static int wrong(const Reader *r, const JsonNode *at, const char *what)
{
    Buf where = {0};
    char seen[200];
    add_pointer(r, at, &where);
    if (where.failed)
        return no_memory(r);
    str_escape((Str){where.ptr, where.len}, seen, sizeof seen);
    buf_free(&where);
    return err_set(r->e, EXIT_USAGE, "%s: %s", seen, what);
}

/* The same with a text of the schema in it: "#: keyword "x" WHAT". */
static int wrong_word(const Reader *r, const JsonNode *at, const char *kind, Str word,
                      const char *what)
{
    char text[300], seen[100];
    snprintf(text, sizeof text, "%s \"%s\" %s", kind, str_escape(word, seen, sizeof seen), what);
    return wrong(r, at, text);
}

/* ---- references ------------------------------------------------------------------------------ */

/* One step of a pointer, decoded: %HH, ~0 and ~1. */
static void decode_step(Str step, Buf *out)
{
    out->len = 0;
    for (size_t i = 0; i < step.len; i++) {
        char c = step.ptr[i], hex[3] = {0};
        if (c == '%' && i + 2 < step.len) {
            char *end;
            memcpy(hex, step.ptr + i + 1, 2);
            long byte = strtol(hex, &end, 16);
            if (end == hex + 2 && hex[0] != '+' && hex[0] != '-' && hex[0] != ' ') {
                c = (char)byte;
                i += 2;
            }
        }
        if (c == '~' && i + 1 < step.len && (step.ptr[i + 1] == '0' || step.ptr[i + 1] == '1'))
            c = step.ptr[++i] == '0' ? '~' : '/';
        buf_add(out, &c, 1);
    }
}

/* Where a member is in the table of all members, or the free place for it. */
static size_t find_place(const Reader *r, const JsonNode *object, Str key)
{
    uint64_t hash = 0xcbf29ce484222325u ^ (uint64_t)(object - r->doc.nodes) << 20;
    for (size_t i = 0; i < key.len; i++)
        hash = (hash ^ (uint8_t)key.ptr[i]) * 0x100000001b3u;
    size_t place = (hash ^ hash >> 32) & (r->n_places - 1);
    while (r->members[place].object
           && (r->members[place].object != object || str_cmp(r->members[place].member->key, key)))
        place = (place + 1) & (r->n_places - 1);
    return place;
}

/* Enter all members of all objects, the last of each name. */
static int index_members(Reader *r)
{
    r->n_places = 64;
    while (r->n_places < 2 * r->doc.n)
        r->n_places *= 2;
    r->members = mem_zalloc(r->n_places, sizeof *r->members);
    if (!r->members)
        return no_memory(r);
    for (const JsonNode *x = r->doc.nodes; x < r->doc.nodes + r->doc.n; x++)
        for (const JsonNode *n = x->type == JSON_OBJECT ? json_first(&r->doc, x) : NULL; n;
             n = json_next(&r->doc, x, n))
            r->members[find_place(r, x, n->key)] = (Member){x, n};
    return 0;
}

/* The member or item that a step leads to, NULL for none. */
static const JsonNode *take_step(Reader *r, const JsonNode *from, Str step)
{
    size_t index = 0, i = 0;
    if (from->type == JSON_OBJECT)
        return r->members[find_place(r, from, step)].member;
    if (from->type != JSON_LIST || !step.len || step.len > 6)
        return NULL;
    for (; i < step.len && step.ptr[i] >= '0' && step.ptr[i] <= '9'; i++)
        index = 10 * index + (size_t)(step.ptr[i] - '0');
    const JsonNode *n = i == step.len ? json_first(&r->doc, from) : NULL;
    for (; n && index > 0 && ++r->n_work < MAX_WORK; index--)
        n = json_next(&r->doc, from, n);
    return n;
}

/* The schema that a $ref names. */
static int find_target(Reader *r, const JsonNode *ref, const JsonNode **out)
{
    Buf step = {0};
    Str text = ref->string;
    const JsonNode *at = r->doc.nodes;
    if (ref->type != JSON_STRING)
        return wrong(r, ref, "want a string");
    if (!text.len || text.ptr[0] != '#' || (text.len > 1 && text.ptr[1] != '/'))
        return wrong_word(r, ref, "the reference", text,
                          "is not supported, want # or #/... within this schema");
    for (size_t i = 1; i < text.len && at;) {
        size_t end = ++i;
        while (end < text.len && text.ptr[end] != '/')
            end++;
        decode_step((Str){text.ptr + i, end - i}, &step);
        at = step.failed ? NULL : take_step(r, at, (Str){step.ptr ? step.ptr : "", step.len});
        i = end;
    }
    bool failed = step.failed;
    buf_free(&step);
    if (failed)
        return no_memory(r);
    *out = at;
    return at ? 0 : wrong_word(r, ref, "the reference", text, "leads nowhere");
}

/* A call of the rule for a schema that is referred to. */
static int call_target(Reader *r, const JsonNode *target, Expr *out)
{
    int *rule = &r->rule_of[target - r->doc.nodes];
    if (!*rule) {
        if (!mem_room(&r->targets, r->n_targets + 1, &r->cap_targets, sizeof *r->targets))
            return no_memory(r);
        *rule = 1 + builder_rule(r->b, target == r->doc.nodes ? (Str){"#", 1} : target->key);
        r->targets[r->n_targets++] = (Target){target, *rule - 1};
    }
    *out = expr_rule(r->b, *rule - 1);
    return 0;
}

/* ---- keywords -------------------------------------------------------------------------------- */

static bool is_schema(const JsonNode *n)
{
    return n->type == JSON_OBJECT || n->type == JSON_TRUE || n->type == JSON_FALSE;
}

static int read_types(Reader *r, const JsonNode *n, Facts *f)
{
    static const struct {
        const char *name;
        unsigned types;
    } names[] = {{"null", TYPE_NULL},       {"boolean", TYPE_BOOLEAN},
                 {"integer", TYPE_INTEGER}, {"number", TYPE_NUMBER | TYPE_INTEGER},
                 {"string", TYPE_STRING},   {"array", TYPE_ARRAY},
                 {"object", TYPE_OBJECT}};
    unsigned types = 0;
    const JsonNode *item = n->type == JSON_LIST ? json_first(&r->doc, n) : n;
    for (; item; item = n->type == JSON_LIST ? json_next(&r->doc, n, item) : NULL) {
        size_t i = 0;
        while (i < 7 && !(item->type == JSON_STRING && str_eq(item->string, names[i].name)))
            i++;
        if (i == 7)
            return wrong_word(r, item, "the type",
                              item->type == JSON_STRING ? item->string : item->raw, "is none");
        types |= names[i].types;
    }
    f->types &= types;
    return 0;
}

/* A count, into *out if it is more (`least`) or less than what is there. */
static int read_count(Reader *r, const JsonNode *n, bool least, int64_t *out)
{
    int64_t count;
    if (!json_integer(n, 0, INT64_MAX, &count))
        return wrong(r, n, "want a whole number from 0");
    if (least && count > MAX_COUNT)
        return wrong(r, n, "so many are too many");
    if (least ? count > *out : *out < 0 || count < *out)
        *out = count;
    return 0;
}

/* A bound of numbers; `over`: the bound itself is outside. */
static int read_bound(Reader *r, const JsonNode *n, bool low, bool over, NumberRange *range)
{
    Decimal d;
    if (n->type != JSON_NUMBER)
        return wrong(r, n, "want a number");
    if (!decimal_read(n, &d))
        return wrong(r, n, "the number has too many digits");
    bool has = low ? range->has_low : range->has_high;
    int order = has ? decimal_compare(&d, low ? &range->low : &range->high) : 0;
    bool tighter = !has || (low ? order > 0 : order < 0) || (order == 0 && over);
    if (tighter && low) {
        range->has_low = true;
        range->low = d;
        range->over_low = over;
    } else if (tighter) {
        range->has_high = true;
        range->high = d;
        range->under_high = over;
    }
    return 0;
}

static Property *find_property(Reader *r, const Facts *f, Str name)
{
    r->n_work += f->n_properties;
    for (size_t i = 0; i < f->n_properties; i++)
        if (!str_cmp(f->properties[i].name, name))
            return &f->properties[i];
    return NULL;
}

static int add_property(Reader *r, Facts *f, Property p)
{
    if (r->n_work > MAX_WORK)
        return wrong(r, r->doc.nodes, "the schema is too large: there are too many properties");
    if (!mem_room(&f->properties, f->n_properties + 1, &f->cap_properties, sizeof *f->properties))
        return no_memory(r);
    f->properties[f->n_properties++] = p;
    return 0;
}

static int read_properties(Reader *r, const JsonNode *n, Facts *f)
{
    if (n->type != JSON_OBJECT)
        return wrong(r, n, "want an object");
    f->n_with_properties++;
    for (const JsonNode *m = json_first(&r->doc, n); m; m = json_next(&r->doc, n, m)) {
        Property *old = find_property(r, f, m->key);
        if (!is_schema(m))
            return wrong(r, m, "want a schema: an object, true or false");
        if (old && old->schema && m->type != JSON_TRUE && old->schema->type != JSON_TRUE)
            return wrong_word(r, m, "the property", m->key,
                              "is there twice, and both are not joined");
        if (old && (!old->schema || old->schema->type == JSON_TRUE))
            old->schema = m;
        if (!old && add_property(r, f, (Property){m->key, m, false}))
            return -1;
    }
    return 0;
}

static int read_required(Reader *r, const JsonNode *n, Facts *f)
{
    if (n->type != JSON_LIST)
        return wrong(r, n, "want a list of names");
    for (const JsonNode *m = json_first(&r->doc, n); m; m = json_next(&r->doc, n, m)) {
        if (m->type != JSON_STRING)
            return wrong(r, m, "want a name");
        Property *p = find_property(r, f, m->string);
        if (p)
            p->required = true;
        else if (add_property(r, f, (Property){m->string, NULL, true}))
            return -1;
    }
    return 0;
}

static int gather(Reader *r, const JsonNode *schema, Facts *f, int depth);

/* What a keyword is about; its value goes where `kind` says. */
typedef enum {
    KEY_NOTE, // says nothing about the value
    KEY_TYPE,
    KEY_ENUM,
    KEY_CONST,
    KEY_REF,
    KEY_ALL_OF,
    KEY_ANY_OF,
    KEY_ONE_OF,
    KEY_MIN_LENGTH,
    KEY_MAX_LENGTH,
    KEY_PATTERN,
    KEY_FORMAT,
    KEY_MINIMUM,
    KEY_MAXIMUM,
    KEY_OVER,
    KEY_UNDER,
    KEY_ITEMS,
    KEY_PREFIX,
    KEY_MORE_ITEMS,
    KEY_MIN_ITEMS,
    KEY_MAX_ITEMS,
    KEY_PROPERTIES,
    KEY_REQUIRED,
    KEY_ADDITIONAL
} Key;

static const struct {
    const char *name;
    Key key;
    unsigned about; // types
} keywords[] = {{"type", KEY_TYPE, 0},
                {"enum", KEY_ENUM, 0},
                {"const", KEY_CONST, 0},
                {"$ref", KEY_REF, 0},
                {"allOf", KEY_ALL_OF, 0},
                {"anyOf", KEY_ANY_OF, 0},
                {"oneOf", KEY_ONE_OF, 0},
                {"minLength", KEY_MIN_LENGTH, TYPE_STRING},
                {"maxLength", KEY_MAX_LENGTH, TYPE_STRING},
                {"pattern", KEY_PATTERN, TYPE_STRING},
                {"format", KEY_FORMAT, TYPE_STRING},
                {"minimum", KEY_MINIMUM, TYPE_NUMBER | TYPE_INTEGER},
                {"maximum", KEY_MAXIMUM, TYPE_NUMBER | TYPE_INTEGER},
                {"exclusiveMinimum", KEY_OVER, TYPE_NUMBER | TYPE_INTEGER},
                {"exclusiveMaximum", KEY_UNDER, TYPE_NUMBER | TYPE_INTEGER},
                {"items", KEY_ITEMS, TYPE_ARRAY},
                {"prefixItems", KEY_PREFIX, TYPE_ARRAY},
                {"additionalItems", KEY_MORE_ITEMS, TYPE_ARRAY},
                {"minItems", KEY_MIN_ITEMS, TYPE_ARRAY},
                {"maxItems", KEY_MAX_ITEMS, TYPE_ARRAY},
                {"properties", KEY_PROPERTIES, TYPE_OBJECT},
                {"required", KEY_REQUIRED, TYPE_OBJECT},
                {"additionalProperties", KEY_ADDITIONAL, TYPE_OBJECT},
                {"title", KEY_NOTE, 0},
                {"description", KEY_NOTE, 0},
                {"default", KEY_NOTE, 0},
                {"example", KEY_NOTE, 0},
                {"examples", KEY_NOTE, 0},
                {"deprecated", KEY_NOTE, 0},
                {"readOnly", KEY_NOTE, 0},
                {"writeOnly", KEY_NOTE, 0},
                {"$schema", KEY_NOTE, 0},
                {"$id", KEY_NOTE, 0},
                {"id", KEY_NOTE, 0},
                {"$comment", KEY_NOTE, 0},
                {"$defs", KEY_NOTE, 0},
                {"definitions", KEY_NOTE, 0}};
enum { N_KEYWORDS = sizeof keywords / sizeof *keywords };

static int find_keyword(Str name)
{
    for (int i = 0; i < N_KEYWORDS; i++)
        if (str_eq(name, keywords[i].name))
            return i;
    return -1;
}

/* Set what only one of several schemas that are joined may say. */
static int set_once(Reader *r, const JsonNode *n, const JsonNode **field)
{
    if (*field && *field != n)
        return wrong(r, n, "this keyword is there twice in schemas that are joined");
    *field = n;
    return 0;
}

static int set_schema(Reader *r, const JsonNode *n, const JsonNode **field)
{
    if (!is_schema(n))
        return wrong(r, n, "want a schema: an object, true or false");
    return set_once(r, n, field);
}

static int set_list(Reader *r, const JsonNode *n, const JsonNode **field)
{
    if (n->type != JSON_LIST || !json_first(&r->doc, n))
        return wrong(r, n, "want a list that is not empty");
    return set_once(r, n, field);
}

static int gather_all(Reader *r, const JsonNode *list, Facts *f, int depth)
{
    const JsonNode *none = NULL;
    if (set_list(r, list, &none))
        return -1;
    for (const JsonNode *n = json_first(&r->doc, list); n; n = json_next(&r->doc, list, n))
        if (gather(r, n, f, depth + 1))
            return -1;
    return 0;
}

static int gather_ref(Reader *r, const JsonNode *ref, Facts *f, int depth)
{
    const JsonNode *target;
    return find_target(r, ref, &target) || gather(r, target, f, depth + 1) ? -1 : 0;
}

/* The draft-4 form of exclusiveMinimum, true, is about the minimum beside it. */
static int gather_bound(Reader *r, const JsonNode *schema, const JsonNode *n, Key key, Facts *f)
{
    bool low = key == KEY_MINIMUM || key == KEY_OVER;
    const JsonNode *over = json_member(&r->doc, schema,
                                       low ? "exclusiveMinimum" : "exclusiveMaximum");
    if (key == KEY_MINIMUM || key == KEY_MAXIMUM)
        return read_bound(r, n, low, over && over->type == JSON_TRUE, &f->range);
    if (n->type == JSON_TRUE || n->type == JSON_FALSE)
        return 0;
    return read_bound(r, n, low, true, &f->range);
}

static int gather_keyword(Reader *r, const JsonNode *schema, const JsonNode *n, Key key, Facts *f,
                          int depth)
{
    switch (key) {
    case KEY_NOTE: return 0;
    case KEY_TYPE: return read_types(r, n, f);
    case KEY_ENUM: return set_list(r, n, &f->list);
    case KEY_CONST: return set_once(r, n, &f->only);
    case KEY_REF: return gather_ref(r, n, f, depth);
    case KEY_ALL_OF: return gather_all(r, n, f, depth);
    case KEY_ANY_OF:
    case KEY_ONE_OF: f->one_of = key == KEY_ONE_OF; return set_list(r, n, &f->choices);
    case KEY_MIN_LENGTH: return read_count(r, n, true, &f->min_length);
    case KEY_MAX_LENGTH: return read_count(r, n, false, &f->max_length);
    case KEY_PATTERN: return set_once(r, n, &f->pattern);
    case KEY_FORMAT: return set_once(r, n, &f->format);
    case KEY_MINIMUM:
    case KEY_MAXIMUM:
    case KEY_OVER:
    case KEY_UNDER: return gather_bound(r, schema, n, key, f);
    case KEY_ITEMS: // before draft 2020 a list was what prefixItems is
        return n->type == JSON_LIST ? set_list(r, n, &f->prefix) : set_schema(r, n, &f->items);
    case KEY_PREFIX: return set_list(r, n, &f->prefix);
    case KEY_MORE_ITEMS: {
        const JsonNode *items = json_member(&r->doc, schema, "items");
        return items && items->type == JSON_LIST ? set_schema(r, n, &f->items) : 0;
    }
    case KEY_MIN_ITEMS: return read_count(r, n, true, &f->min_items);
    case KEY_MAX_ITEMS: return read_count(r, n, false, &f->max_items);
    case KEY_PROPERTIES: return read_properties(r, n, f);
    case KEY_REQUIRED: return read_required(r, n, f);
    case KEY_ADDITIONAL: return set_schema(r, n, &f->additional);
    }
    return 0;
}

/* Join a schema's keywords into the facts. */
static int gather(Reader *r, const JsonNode *schema, Facts *f, int depth)
{
    if (!is_schema(schema))
        return wrong(r, schema, "want a schema: an object, true or false");
    if (depth > MAX_GATHER || ++r->n_joined > MAX_JOINED)
        return wrong(r, schema, "too many schemas are joined here, or one with itself");
    f->never = f->never || schema->type == JSON_FALSE;
    if (schema->type != JSON_OBJECT)
        return 0;
    const JsonNode *last[N_KEYWORDS] = {NULL}; // of each name
    for (const JsonNode *n = json_first(&r->doc, schema); n; n = json_next(&r->doc, schema, n)) {
        int i = find_keyword(n->key);
        if (i < 0)
            return wrong_word(r, schema, "the keyword", n->key, "is not supported");
        last[i] = n;
    }
    for (int i = 0; i < N_KEYWORDS; i++) {
        Key key = keywords[i].key;
        f->about |= last[i] ? keywords[i].about : 0;
        if (last[i] && gather_keyword(r, schema, last[i], key, f, depth))
            return -1;
        if (last[i] && key == KEY_ADDITIONAL && !json_member(&r->doc, schema, "properties"))
            f->additional_alone = true;
    }
    return 0;
}

static Facts no_facts(void)
{
    return (Facts){.types = TYPES_ALL, .min_items = -1, .max_items = -1, .max_length = -1};
}

static void facts_free(Facts *f)
{
    free(f->properties);
    f->properties = NULL;
}

/* A copy with its own list. */
static int facts_copy(const Reader *r, const Facts *f, Facts *out)
{
    *out = *f;
    out->cap_properties = f->n_properties;
    out->properties = mem_alloc(f->n_properties, sizeof *f->properties);
    if (!out->properties)
        return no_memory(r);
    if (f->n_properties)
        memcpy(out->properties, f->properties, f->n_properties * sizeof *f->properties);
    return 0;
}

/* ---- strings --------------------------------------------------------------------------------- */

#define YEAR "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
#define FOURTH "(?:0[48]|[2468][048]|[13579][26])" // of a hundred years, but for the first
#define DAYS                                                                                       \
    "(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)"                   \
    "|(?:0[13578]|1[02])-31)"
#define DATE "(?:" YEAR "-" DAYS "|(?:[0-9]{2}" FOURTH "|" FOURTH "00)-02-29)"
#define CLOCK "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
#define TIME CLOCK ":[0-5][0-9](?:\\.[0-9]{1,6})?(?:Z|[+-]" CLOCK ")"
#define HEX "[0-9a-fA-F]"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

static const struct {
    const char *name, *pattern;
} formats[] = {{"date", "^" DATE "$"},
               {"time", "^" TIME "$"},
               {"date-time", "^" DATE "T" TIME "$"},
               {"uuid", "^" HEX "{8}-" HEX "{4}-" HEX "{4}-" HEX "{4}-" HEX "{12}$"},
               {"ipv4", "^" BYTE "(?:\\." BYTE "){3}$"},
               {"email", "^[A-Za-z0-9_+-]+(?:\\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
                         "(?:\\.[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)+$"}};

static int read_pattern(Reader *r, const JsonNode *at, Str pattern, const Facts *f, Expr *out)
{
    Regex x;
    char text[400];
    Err own;
    if (regex_read(r->b, pattern, json_expr_chars, &r->j, &x, &own)) {
        snprintf(text, sizeof text, "%.390s", own.text);
        return own.code == EXIT_MEMORY ? no_memory(r) : wrong(r, at, text);
    }
    if (x.min < f->min_length || (f->max_length >= 0 && x.max > f->max_length))
        return wrong(r, at,
                     "minLength or maxLength beside it is not supported, unless all of its "
                     "texts are of such a length");
    *out = json_expr_quoted(&r->j, x.expr);
    return 0;
}

static int read_format(Reader *r, const Facts *f, Expr *out)
{
    enum { N_FORMATS = sizeof formats / sizeof *formats };
    const JsonNode *n = f->format;
    if (f->pattern)
        return wrong(r, n, "a pattern beside a format is not supported");
    for (int i = 0; i < N_FORMATS && n->type == JSON_STRING; i++)
        if (str_eq(n->string, formats[i].name))
            return read_pattern(r, n, (Str){formats[i].pattern, strlen(formats[i].pattern)}, f,
                                out);
    return wrong_word(r, n, "the format", n->type == JSON_STRING ? n->string : n->raw,
                      "is not supported");
}

static int read_string(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    if (f->format)
        return read_format(r, f, out);
    if (f->pattern && f->pattern->type != JSON_STRING)
        return wrong(r, f->pattern, "want a string");
    if (f->pattern)
        return read_pattern(r, f->pattern, f->pattern->string, f, out);
    if (f->max_length >= 0 && f->max_length < f->min_length)
        return wrong(r, schema, "maxLength is less than minLength");
    if (!f->min_length && f->max_length < 0) {
        *out = json_expr_string(&r->j);
        return 0;
    }
    int most = f->max_length < 0         ? REPEAT_ANY
             : f->max_length < MAX_COUNT ? (int)f->max_length
                                         : MAX_COUNT;
    Expr c = json_expr_any_char(&r->j);
    *out = json_expr_quoted(&r->j, expr_repeat(r->b, c, (int)f->min_length, most));
    return 0;
}

/* ---- arrays ---------------------------------------------------------------------------------- */

/* A rule for an expression that is used more than once. */
static Expr as_rule(Reader *r, const char *name, Expr x)
{
    int rule = builder_rule(r->b, (Str){name, strlen(name)});
    builder_define(r->b, rule, x);
    return expr_rule(r->b, rule);
}

/* min to max of an item with commas between them, and one before the first if there is something
 * before it; max may be REPEAT_ANY. */
static Expr repeat_items(Reader *r, Expr item, bool first, int64_t min, int64_t max)
{
    Builder *b = r->b;
    Expr s = json_expr_space(&r->j);
    Expr more = SEQUENCE(b, json_expr_text(&r->j, ","), s, item, s);
    int most = (int)(max < MAX_COUNT ? max : MAX_COUNT);
    if (!max)
        return json_expr_text(&r->j, "");
    if (!first)
        return expr_repeat(b, more, (int)min, most);
    int left = max == REPEAT_ANY ? REPEAT_ANY : most - 1;
    Expr all = SEQUENCE(b, item, s, expr_repeat(b, more, min ? (int)min - 1 : 0, left));
    return min ? all : expr_optional(b, all);
}

/* The items of `prefix` from number i on, and what follows them. */
static int read_prefix(Reader *r, const Facts *f, const JsonNode *item, int64_t i, int64_t min,
                       int64_t max, Expr *out)
{
    Expr x, rest, s = json_expr_space(&r->j);
    *out = json_expr_text(&r->j, "");
    if (i == max)
        return 0;
    if (!item) {
        int64_t least = min > i ? min - i : 0;
        bool has = f->items && f->items->type != JSON_FALSE;
        if (!has && least)
            return wrong(r, f->prefix, "minItems is more than there are items");
        if (has && read_schema(r, f->items, &x))
            return -1;
        if (has)
            *out = repeat_items(r, as_rule(r, "items", x), i == 0, least,
                                max < 0 ? REPEAT_ANY : max - i);
        return 0;
    }
    if (read_schema(r, item, &x)
        || read_prefix(r, f, json_next(&r->doc, f->prefix, item), i + 1, min, max, &rest))
        return -1;
    Expr comma = json_expr_text(&r->j, i ? "," : "");
    *out = SEQUENCE(r->b, comma, i ? s : comma, x, s, rest);
    if (i >= min)
        *out = expr_optional(r->b, *out);
    return 0;
}

static int read_array(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    Builder *b = r->b;
    Expr items = 0, s = json_expr_space(&r->j);
    int64_t min = f->min_items < 0 ? 0 : f->min_items, max = f->max_items, n = 0;
    if (max >= 0 && max < min)
        return wrong(r, schema, "maxItems is less than minItems");
    if (f->prefix) {
        for (const JsonNode *p = json_first(&r->doc, f->prefix); p;
             p = json_next(&r->doc, f->prefix, p))
            n++;
        if (n > MAX_ITEMS)
            return wrong(r, f->prefix, "so many items are too many");
        if (f->min_items < 0)
            min = max >= 0 && max < n ? max : n;
        if (read_prefix(r, f, json_first(&r->doc, f->prefix), 0, min, max, &items))
            return -1;
    } else if (f->items && f->items->type == JSON_FALSE) {
        if (min)
            return wrong(r, schema, "minItems is more than there are items");
        items = json_expr_text(&r->j, "");
    } else {
        Expr item = json_expr_value(&r->j);
        if (f->items && read_schema(r, f->items, &item))
            return -1;
        items = repeat_items(r, as_rule(r, "items", item), true, min, max < 0 ? REPEAT_ANY : max);
    }
    *out = SEQUENCE(b, json_expr_text(&r->j, "["), s, items, json_expr_text(&r->j, "]"));
    return 0;
}

/* ---- objects --------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    const Str *x = a, *y = b;
    return str_cmp(*x, *y);
}

/* A property beyond those that are named: any other name. */
static int read_additional(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    Expr value = json_expr_value(&r->j), s = json_expr_space(&r->j);
    Str *names = mem_alloc(f->n_properties, sizeof *names);
    if (!names)
        return no_memory(r);
    int rc = 0;
    for (size_t i = 0; i < f->n_properties && !rc; i++) {
        names[i] = f->properties[i].name;
        if (names[i].len > MAX_NAME)
            rc = wrong_word(r, schema, "the property", names[i],
                            "has too long a name beside additionalProperties");
    }
    if (!rc && f->n_properties)
        qsort(names, f->n_properties, sizeof *names, by_name);
    rc = rc || (f->additional && read_schema(r, f->additional, &value));
    if (!rc)
        *out = SEQUENCE(r->b, json_expr_other_string(&r->j, names, f->n_properties), s,
                        json_expr_text(&r->j, ":"), s, value, s);
    free(names);
    return rc;
}

/* "name": value, and space. */
static int read_member(Reader *r, const JsonNode *schema, const Facts *f, const Property *p,
                       Expr *out)
{
    Expr value = json_expr_value(&r->j), s = json_expr_space(&r->j);
    const JsonNode *own = p->schema ? p->schema : f->additional;
    if (!p->schema && own && own->type == JSON_FALSE)
        return wrong_word(r, schema, "the property", p->name,
                          "is required and not among the properties");
    if (own && read_schema(r, own, &value))
        return -1;
    *out = SEQUENCE(r->b, json_expr_literal_string(&r->j, p->name), s, json_expr_text(&r->j, ":"),
                    s, value, s);
    return 0;
}

/* The members of an object on their way: expressions of the required ones, then of the others. */
typedef struct {
    Expr *items;
    size_t n_required, n;
    bool more; // others may follow, as `additional` says
    Expr additional;
} Members;

static int read_members(Reader *r, const JsonNode *schema, const Facts *f, Members *m)
{
    m->items = mem_alloc(f->n_properties, sizeof *m->items);
    if (!m->items)
        return no_memory(r);
    for (int required = 1; required >= 0; required--) {
        for (size_t i = 0; i < f->n_properties; i++) {
            const Property *p = &f->properties[i];
            bool absent = p->schema && p->schema->type == JSON_FALSE && !required;
            if (p->required != required || absent)
                continue;
            if (read_member(r, schema, f, p, &m->items[m->n]))
                return -1;
            m->n++;
        }
        m->n_required = required ? m->n : m->n_required;
    }
    m->more = f->additional ? f->additional->type != JSON_FALSE : !f->n_with_properties;
    if (m->more && read_additional(r, schema, f, &m->additional))
        return -1;
    m->additional = m->more ? as_rule(r, "additional", m->additional) : 0;
    return 0;
}

/* What may follow the required members: others, each with a comma before it. *first: the same
 * where there was no member yet. */
static Expr more_members(Reader *r, const Members *m, Expr *first)
{
    Builder *b = r->b;
    Expr s = json_expr_space(&r->j), comma = json_expr_text(&r->j, ",");
    Expr rest = json_expr_text(&r->j, "");
    *first = expr_choice(b, NULL, 0);
    if (m->more) {
        Expr more = SEQUENCE(b, comma, s, m->additional);
        rest = as_rule(r, "rest", expr_repeat(b, more, 0, REPEAT_ANY));
        *first = SEQUENCE(b, m->additional, rest);
    }
    for (size_t i = m->n; i-- > m->n_required;) {
        Expr member = as_rule(r, "member", m->items[i]), begins = SEQUENCE(b, member, rest);
        *first = as_rule(r, "first", expr_choice(b, (Expr[]){begins, *first}, 2));
        Expr more = expr_optional(b, SEQUENCE(b, comma, s, member));
        rest = as_rule(r, "rest", SEQUENCE(b, more, rest));
    }
    return rest;
}

static int read_object(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    Builder *b = r->b;
    Members m = {0};
    bool closes = f->additional && f->additional->type != JSON_TRUE;
    if (closes && f->n_with_properties > !f->additional_alone)
        return wrong(r, schema,
                     "additionalProperties beside the properties of other schemas that are joined "
                     "is not supported");
    int rc = read_members(r, schema, f, &m);
    Expr *list = mem_alloc(3 * m.n_required + 4, sizeof *list);
    if (!rc && !list)
        rc = no_memory(r);
    if (!rc) {
        size_t n = 0;
        Expr s = json_expr_space(&r->j), comma = json_expr_text(&r->j, ","), first;
        Expr rest = more_members(r, &m, &first);
        list[n++] = json_expr_text(&r->j, "{");
        list[n++] = s;
        for (size_t i = 0; i < m.n_required; i++) {
            if (i)
                list[n++] = comma;
            if (i)
                list[n++] = s;
            list[n++] = m.items[i];
        }
        list[n++] = m.n_required ? rest : expr_optional(b, first);
        list[n++] = json_expr_text(&r->j, "}");
        *out = expr_sequence(b, list, n);
    }
    free(list);
    free(m.items);
    return rc;
}

/* ---- values ---------------------------------------------------------------------------------- */

static unsigned type_of(const JsonNode *n)
{
    int64_t whole;
    switch (n->type) {
    case JSON_NULL: return TYPE_NULL;
    case JSON_FALSE:
    case JSON_TRUE: return TYPE_BOOLEAN;
    case JSON_NUMBER:
        return json_integer(n, INT64_MIN, INT64_MAX, &whole) ? TYPE_INTEGER : TYPE_NUMBER;
    case JSON_STRING: return TYPE_STRING;
    case JSON_LIST: return TYPE_ARRAY;
    case JSON_OBJECT: return TYPE_OBJECT;
    }
    return 0;
}

/* Whether two values of the schema are equal as JSON Schema sees it; an object's order counts,
 * which may only find fewer equal. */
static bool same_value(const Reader *r, const JsonNode *a, const JsonNode *b)
{
    if (a->type != b->type)
        return false;
    if (a->type == JSON_NUMBER)
        return a->number == b->number;
    if (a->type == JSON_STRING)
        return !str_cmp(a->string, b->string);
    if (a->type != JSON_LIST && a->type != JSON_OBJECT)
        return true;
    const JsonNode *x = json_first(&r->doc, a), *y = json_first(&r->doc, b);
    for (; x && y; x = json_next(&r->doc, a, x), y = json_next(&r->doc, b, y))
        if ((a->type == JSON_OBJECT && str_cmp(x->key, y->key)) || !same_value(r, x, y))
            return false;
    return !x && !y;
}

/* Whether a value is one that `list` and `only` name. */
static bool is_listed(Reader *r, const Facts *f, const JsonNode *value)
{
    bool found = !f->list;
    for (const JsonNode *n = f->list ? json_first(&r->doc, f->list) : NULL;
         n && !found && ++r->n_work < MAX_WORK; n = json_next(&r->doc, f->list, n))
        found = same_value(r, n, value);
    return found && (!f->only || same_value(r, f->only, value));
}

/* enum and const: those values that have a type of the schema. */
static int read_listed(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    Expr *ways = NULL;
    size_t n_ways = 0, cap = 0;
    const JsonNode *n = f->only ? f->only : json_first(&r->doc, f->list);
    if (f->about & f->types)
        return wrong(r, schema,
                     "keywords for the same values beside enum or const are not "
                     "supported");
    for (; n; n = f->only ? NULL : json_next(&r->doc, f->list, n)) {
        if (!(type_of(n) & f->types) || (f->only && !is_listed(r, f, n)))
            continue;
        if (!mem_room(&ways, n_ways + 1, &cap, sizeof *ways)) {
            free(ways);
            return no_memory(r);
        }
        ways[n_ways++] = json_expr_literal(&r->j, &r->doc, n);
    }
    if (n_ways)
        *out = expr_choice(r->b, ways, n_ways);
    free(ways);
    return n_ways ? 0 : wrong(r, schema, "no value of enum or const is allowed by the rest");
}

/* Numbers, with a range. */
static int read_number(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    Err own;
    char text[200];
    if (!json_expr_number(&r->j, &f->range, !(f->types & TYPE_NUMBER), out, &own))
        return 0;
    snprintf(text, sizeof text, "%.190s", own.text);
    return wrong(r, schema, text);
}

/* One of the types that are left. */
static int read_typed(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    unsigned types = f->types;
    Expr ways[7];
    int n = 0, rc = 0;
    if (types == TYPES_ALL && f->about) // keywords choose the type
        types = f->about;
    if (types == TYPES_ALL) {
        *out = json_expr_value(&r->j);
        return 0;
    }
    if (types & TYPE_OBJECT)
        rc = f->about & TYPE_OBJECT ? read_object(r, schema, f, &ways[n++])
                                    : (ways[n++] = json_expr_object(&r->j), 0);
    if (!rc && types & TYPE_ARRAY)
        rc = f->about & TYPE_ARRAY ? read_array(r, schema, f, &ways[n++])
                                   : (ways[n++] = json_expr_array(&r->j), 0);
    if (!rc && types & TYPE_STRING)
        rc = read_string(r, schema, f, &ways[n++]);
    if (!rc && types & (TYPE_NUMBER | TYPE_INTEGER))
        rc = read_number(r, schema, f, &ways[n++]);
    if (!rc && types & TYPE_BOOLEAN)
        ways[n++] = json_expr_boolean(&r->j);
    if (!rc && types & TYPE_NULL)
        ways[n++] = json_expr_text(&r->j, "null");
    if (!rc && !n)
        rc = wrong(r, schema, "no type is allowed");
    if (!rc)
        *out = expr_choice(r->b, ways, (size_t)n);
    return rc;
}

/* ---- alternatives ---------------------------------------------------------------------------- */

static bool are_apart(Reader *r, const Facts *a, const Facts *b, int depth);

/* The facts of a property that both have to have; apart if they are. */
static bool property_apart(Reader *r, const Property *a, const Property *b, int depth)
{
    Facts x = no_facts(), y = no_facts();
    Err *e = r->e, own;
    r->e = &own;
    bool apart = depth < 8 && a->schema && b->schema && !gather(r, a->schema, &x, 1)
              && !gather(r, b->schema, &y, 1) && are_apart(r, &x, &y, depth + 1);
    r->e = e;
    facts_free(&x);
    facts_free(&y);
    return apart;
}

/* Objects are apart by a property that both require, or that one requires and the other has not. */
static bool objects_apart(Reader *r, const Facts *a, const Facts *b, int depth)
{
    for (size_t i = 0; i < a->n_properties; i++) {
        const Property *p = &a->properties[i], *q = find_property(r, b, p->name);
        if (p->required && q && q->required && property_apart(r, p, q, depth))
            return true;
        if (p->required && !q && b->additional && b->additional->type == JSON_FALSE)
            return true;
    }
    return false;
}

static bool ranges_apart(const NumberRange *a, const NumberRange *b)
{
    if (!a->has_high || !b->has_low)
        return false;
    int order = decimal_compare(&a->high, &b->low);
    return order < 0 || (!order && (a->under_high || b->over_low));
}

/* Whether no value that one names is allowed by the other, as far as values and types tell. */
static bool listed_apart(Reader *r, const Facts *a, const Facts *b)
{
    const JsonNode *n = a->only ? a->only : json_first(&r->doc, a->list);
    for (; n; n = a->only ? NULL : json_next(&r->doc, a->list, n))
        if (is_listed(r, a, n) && is_listed(r, b, n) && type_of(n) & b->types)
            return false;
    return true;
}

/* Whether it is certain that no value is allowed by both. */
static bool are_apart(Reader *r, const Facts *a, const Facts *b, int depth)
{
    unsigned common = a->types & b->types;
    if (a->never || b->never)
        return true;
    if (a->choices || b->choices) // not looked into
        return !common;
    if ((a->list || a->only) && listed_apart(r, a, b))
        return true;
    if ((b->list || b->only) && listed_apart(r, b, a))
        return true;
    if (common & TYPE_OBJECT && objects_apart(r, a, b, depth))
        common &= ~(unsigned)TYPE_OBJECT;
    else if (common & TYPE_OBJECT && objects_apart(r, b, a, depth))
        common &= ~(unsigned)TYPE_OBJECT;
    if (ranges_apart(&a->range, &b->range) || ranges_apart(&b->range, &a->range))
        common &= ~(unsigned)(TYPE_NUMBER | TYPE_INTEGER);
    return !common;
}

/* oneOf: every two alternatives must be apart, or a text could be of both. */
static int check_apart(Reader *r, const JsonNode *choices, const Facts *list, int n)
{
    char text[160];
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++)
            if (!are_apart(r, &list[k], &list[i], 0)) {
                snprintf(text, sizeof text,
                         "a value may be of both alternatives %d and %d; anyOf allows that", k, i);
                return wrong(r, choices, text);
            }
    return 0;
}

/* Whether the facts say nothing: an alternative stands alone then. */
static bool says_nothing(const Facts *f)
{
    return f->types == TYPES_ALL && !f->about && !f->list && !f->only && !f->never;
}

static int read_choices(Reader *r, const Facts *f, Expr *out)
{
    enum { MAX_CHOICES = 500 };
    const JsonNode *list = f->choices;
    Facts own = *f, *facts = mem_zalloc(MAX_CHOICES, sizeof *facts);
    Expr *ways = mem_alloc(MAX_CHOICES, sizeof *ways);
    int n = 0, rc = facts && ways ? 0 : no_memory(r);
    own.choices = NULL;
    if (!rc && ++r->n_within > 2 * MAX_WITHIN)
        rc = wrong(r, list, "too many alternatives within each other, or one within itself");
    for (const JsonNode *c = json_first(&r->doc, list); c && !rc; c = json_next(&r->doc, list, c)) {
        if (n == MAX_CHOICES) {
            rc = wrong(r, list, "so many alternatives are too many");
            break;
        }
        rc = facts_copy(r, &own, &facts[n]) || gather(r, c, &facts[n], 1);
        if (!rc)
            rc = says_nothing(&own) ? read_schema(r, c, &ways[n])
                                    : read_facts(r, c, &facts[n], &ways[n]);
        n++;
    }
    rc = rc || (f->one_of && check_apart(r, list, facts, n));
    if (!rc)
        *out = expr_choice(r->b, ways, (size_t)n);
    for (int i = 0; facts && i < MAX_CHOICES; i++)
        facts_free(&facts[i]);
    free(facts);
    free(ways);
    r->n_within--;
    if (!rc && r->n_work > MAX_WORK)
        rc = wrong(r, list, "the schema is too large: too many values are compared");
    return rc ? -1 : 0;
}

static int read_facts(Reader *r, const JsonNode *schema, const Facts *f, Expr *out)
{
    if (f->never) {
        *out = expr_choice(r->b, NULL, 0);
        return 0;
    }
    if (f->choices)
        return read_choices(r, f, out);
    return f->list || f->only ? read_listed(r, schema, f, out) : read_typed(r, schema, f, out);
}

/* The only keyword of a schema that says something, NULL where there is none or more. */
static const JsonNode *only_keyword(const Reader *r, const JsonNode *schema, Key *key)
{
    const JsonNode *only = NULL;
    if (schema->type != JSON_OBJECT)
        return NULL;
    for (const JsonNode *n = json_first(&r->doc, schema); n; n = json_next(&r->doc, schema, n)) {
        int i = find_keyword(n->key);
        if (i >= 0 && keywords[i].key == KEY_NOTE)
            continue;
        if (only || i < 0)
            return NULL;
        only = n;
        *key = keywords[i].key;
    }
    return only;
}

/* What a schema that only refers to another (with $ref, or allOf of one) refers to; a call of its
 * rule. 1 where it is no such schema. */
static int read_reference(Reader *r, const JsonNode *schema, Expr *out)
{
    Key key = KEY_NOTE;
    const JsonNode *only = only_keyword(r, schema, &key), *target;
    if (only && key == KEY_REF)
        return find_target(r, only, &target) || call_target(r, target, out) ? -1 : 0;
    const JsonNode *first = only && key == KEY_ALL_OF ? json_first(&r->doc, only) : NULL;
    if (first && only->type == JSON_LIST && !json_next(&r->doc, only, first))
        return call_target(r, first, out);
    return 1;
}

static int read_schema(Reader *r, const JsonNode *schema, Expr *out)
{
    Facts f = no_facts();
    int rc = read_reference(r, schema, out);
    bool *is_open = &r->is_open[schema - r->doc.nodes];
    if (rc <= 0)
        return rc;
    if (*is_open || r->n_within >= MAX_WITHIN) // it contains itself: not in one go
        return call_target(r, schema, out);
    *is_open = true;
    r->n_within++;
    rc = gather(r, schema, &f, 0) || read_facts(r, schema, &f, out);
    r->n_within--;
    *is_open = false;
    facts_free(&f);
    return rc ? -1 : 0;
}

static int read_all(Reader *r, int *root)
{
    Expr x;
    if (call_target(r, r->doc.nodes, &x))
        return -1;
    *root = 0;
    for (size_t i = 0; i < r->n_targets; i++) {
        Target t = r->targets[i];
        if (read_schema(r, t.schema, &x))
            return -1;
        builder_define(r->b, t.rule, x);
        *root = i ? *root : t.rule;
    }
    return 0;
}

int schema_compile(Grammar *g, Str text, Err *e)
{
    Reader r = {.e = e};
    int root = 0;
    *g = (Grammar){0};
    if (text.len > MAX_TEXT)
        return err_set(e, EXIT_USAGE, "the schema has %zu bytes, want at most %d", text.len,
                       MAX_TEXT);
    if (json_parse(&r.doc, text, e))
        return -1;
    r.j.b = r.b = builder_new();
    r.rule_of = mem_zalloc(r.doc.n, sizeof *r.rule_of);
    r.is_open = mem_zalloc(r.doc.n, sizeof *r.is_open);
    int rc = r.b && r.rule_of && r.is_open
               ? index_members(&r) || read_all(&r, &root) || grammar_compile(g, r.b, root, e)
               : no_memory(&r);
    builder_free(r.b);
    free(r.rule_of);
    free(r.is_open);
    free(r.targets);
    free(r.members);
    json_doc_free(&r.doc);
    return rc ? -1 : 0;
}
