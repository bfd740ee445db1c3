/* json_expr.h - expressions for pieces of JSON texts: white space, strings, numbers, any value.
 *
 * Characters of strings stand for themselves, but for quotes, backslashes and control characters,
 * which are escaped: by their letter, or as \u00HH. Between any two tokens there may be a space, or
 * a newline and up to 20 spaces and tabs. Numbers have at most 16 digits before and after the point
 * and 2 in the exponent.
 */
#ifndef JSON_EXPR_H
#define JSON_EXPR_H

#include "base/json_read.h"
#include "generate/grammar.h"

enum { MAX_ESCAPE_SETS = 64 };

/* The rules that schemas share, made when they are first asked for; a zeroed one with a builder. */
typedef struct {
    Builder *b;
    int space, string, value; // rule + 1, 0: none yet
    struct {
        uint64_t bits[2]; // characters
        int rule;
    } escapes[MAX_ESCAPE_SETS];
    int n_escapes;
} JsonExprs;

Expr json_expr_text(JsonExprs *j, const char *bytes);
Expr json_expr_space(JsonExprs *j);
Expr json_expr_value(JsonExprs *j); // any
Expr json_expr_object(JsonExprs *j);
Expr json_expr_array(JsonExprs *j);
Expr json_expr_boolean(JsonExprs *j);
Expr json_expr_string(JsonExprs *j);

/* `inner` between quotes. */
Expr json_expr_quoted(JsonExprs *j, Expr inner);

/* One character of a string, of a set; a RegexChars, `context` being a JsonExprs. */
Expr json_expr_chars(void *context, const CharRange *ranges, size_t n);
Expr json_expr_any_char(JsonExprs *j);

/* A string that is none of n (decoded, UTF-8), with its quotes. They are sorted. */
Expr json_expr_other_string(JsonExprs *j, Str *strings, size_t n);

/* Exactly this value, objects in its own order. Numbers as they are written. */
Expr json_expr_literal(JsonExprs *j, const JsonDoc *d, const JsonNode *value);
Expr json_expr_literal_string(JsonExprs *j, Str decoded);

/* ---- numbers --------------------------------------------------------------------------------- */

enum { MAX_DIGITS = 40 };

/* A decimal fraction as it is written: digits d0 d1 ... with the point after n_whole of them. */
typedef struct {
    bool negative;
    int n, n_whole; // n_whole >= 1; no zero at the end of the part behind the point
    char digits[MAX_DIGITS + 1];
} Decimal;

typedef struct {
    bool has_low, has_high, over_low, under_high; // over, under: the bound itself is not allowed
    Decimal low, high;
} NumberRange;

/* The number of a node. False: it has too many digits. */
bool decimal_read(const JsonNode *number, Decimal *out);
int decimal_compare(const Decimal *a, const Decimal *b);

/* Numbers in a range, without an exponent where it has a bound. -1 and an Err (EXIT_USAGE) where
 * nothing is in it or a bound has more digits than doubles tell apart. */
int json_expr_number(JsonExprs *j, const NumberRange *r, bool whole, Expr *out, Err *e);

#endif
