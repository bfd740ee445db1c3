/* token.c - see token.h. */
#include "text/token.h"

#include <stdlib.h>
#include <string.h>

void tokens_free(TokenList *list)
{
    free(list->ids);
    *list = (TokenList){0};
}

int piece_named_byte(Str piece)
{
    int v = 0;
    if (piece.len != 6 || memcmp(piece.ptr, "<0x", 3) != 0 || piece.ptr[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = piece.ptr[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return -1;
        v = 16 * v + digit;
    }
    return v;
}

int piece_char_to_byte(uint32_t cp)
{
    int b = cp < 256      ? (int)cp
          : cp < 256 + 33 ? (int)cp - 256
          : cp < 256 + 67 ? (int)cp - 256 - 33 + 127
                          : 173;
    return cp <= 256 + 67 && piece_byte_to_char(b) == cp ? b : -1;
}
