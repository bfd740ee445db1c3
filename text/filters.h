/* filters.h - the filters, tests and global functions of Jinja that chat templates use, with
 * tojson, raise_exception, strftime_now, dict and namespace as transformers defines them. Other
 * ones of Jinja are refused by name where they are used. */
#ifndef FILTERS_H
#define FILTERS_H

#include "text/methods.h"

typedef enum {
    KNOWN_NOT,
    KNOWN_ELSEWHERE, // Jinja has it
    KNOWN
} Known;

Known filter_known(const char *name);
Known test_known(const char *name);

Value filter_run(Room *r, const char *name, Value v, const Call *call);
bool test_run(Room *r, const char *name, Value v, const Call *call);

/* The global function of that name; undefined if there is none. */
Value global_find(const char *name);

#endif
