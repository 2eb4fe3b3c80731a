/* UTF-8, as Python decodes it: the shortest form, no surrogates, nothing beyond U+10FFFF. */

#ifndef SHMSERVE_CORE_UTF8_H
#define SHMSERVE_CORE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* The bytes of the character at the beginning of this text, and its number; 0: it is none. */
size_t utf8_character(const uint8_t *text, size_t bytes, uint32_t *character);

/* Whether all of it is UTF-8. */
int is_utf8(const uint8_t *text, size_t bytes);

#endif
