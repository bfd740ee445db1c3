/* unicode.h - what characters are: letters, digits, white space, upper and lower case, as Python's
 * str methods see them. */
#ifndef UNICODE_H
#define UNICODE_H

#include "base/util.h"

bool unicode_space(uint32_t cp);     // str.isspace()
bool unicode_printable(uint32_t cp); // str.isprintable()
bool unicode_letter(uint32_t cp);    // str.isalpha()
bool unicode_decimal(uint32_t cp);   // str.isdecimal()
bool unicode_upper_is(uint32_t cp);  // str.isupper() of one character
bool unicode_lower_is(uint32_t cp);  // str.islower()

typedef enum { CASE_UPPER, CASE_LOWER, CASE_TITLE } LetterCase;

/* The character in that case: how many characters it becomes, 1 to 3, in `out`. */
int unicode_case(uint32_t cp, LetterCase to, uint32_t out[3]);

/* What BERT's normaliser takes a character for. */
typedef enum { BERT_PLAIN, BERT_DROPPED, BERT_ACCENT, BERT_PUNCTUATION } BertClass;
BertClass unicode_bert(uint32_t cp);
bool unicode_bert_space(uint32_t cp);

/* unicode_case() to lower case, of all characters that Hugging Face's tokenizers knows. */
int unicode_bert_lower(uint32_t cp, uint32_t out[3]);

#endif
