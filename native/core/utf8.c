/* Decoding of UTF-8. */

#include "utf8.h"

size_t utf8_character(const uint8_t *text, size_t bytes, uint32_t *character)
{
    if (!bytes)
        return 0;
    uint8_t first = text[0];
    size_t length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (!length || length > bytes)
        return 0;
    uint32_t found = length == 1 ? first : first & (0xffu >> (length + 1));
    for (size_t index = 1; index < length; index++) {
        if ((text[index] & 0xc0) != 0x80)
            return 0;
        found = found << 6 | (text[index] & 0x3f);
    }
    if ((length == 3 && (found < 0x800 || (found >= 0xd800 && found < 0xe000))) ||
        (length == 4 && (found < 0x10000 || found > 0x10ffff)))
        return 0;
    *character = found;
    return length;
}

int is_utf8(const uint8_t *text, size_t bytes)
{
    uint32_t character;
    for (size_t at = 0, length; at < bytes; at += length)
        if ((length = utf8_character(text + at, bytes - at, &character)) == 0)
            return 0;
    return 1;
}
