/* One pass over the text, without recursion beyond JSON_DEPTH_LIMIT. */

#include "json.h"
#include "core/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    Json *json;
    const char *source;
    size_t at, bytes;
} Reader;

static int peek(const Reader *reader)
{
    return reader->at < reader->bytes ? (unsigned char)reader->source[reader->at] : -1;
}

static void skip_space(Reader *reader)
{
    for (int next; (next = peek(reader)) == ' ' || next == '\t' || next == '\n' || next == '\r';)
        reader->at++;
}

static bool take(Reader *reader, char expected)
{
    if (peek(reader) != expected)
        return false;
    reader->at++;
    return true;
}

/* The index of a new value, or UINT32_MAX. */
static uint32_t new_value(Reader *reader, enum json_type type)
{
    Json *json = reader->json;
    if (json->count == json->room) {
        uint32_t room = json->room ? 2 * json->room : 64;
        JsonValue *values = json->is_fixed ? NULL : realloc(json->values, room * sizeof *values);
        if (values == NULL)
            return UINT32_MAX;
        json->values = values;
        json->room = room;
    }
    json->values[json->count] = (JsonValue){.type = (uint8_t)type, .at = (uint32_t)reader->at, .next = json->count + 1};
    return json->count++;
}

static bool put(Json *json, const uint8_t *bytes, size_t count)
{
    if (count > json->text_room - json->text_bytes)
        return false;
    memcpy(json->text + json->text_bytes, bytes, count);
    json->text_bytes += count;
    return true;
}

static bool put_character(Json *json, uint32_t character)
{
    uint8_t bytes[4];
    size_t count = character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
    for (size_t index = count - 1; index > 0; index--, character >>= 6)
        bytes[index] = (uint8_t)(0x80 | (character & 0x3f));
    bytes[0] = (uint8_t)(count == 1 ? character : (0xf00u >> count & 0xff) | character);
    return put(json, bytes, count);
}

static bool read_hex(Reader *reader, uint32_t *number)
{
    *number = 0;
    for (int digit = 0; digit < 4; digit++) {
        int next = peek(reader);
        int value = next >= '0' && next <= '9'   ? next - '0'
                    : next >= 'a' && next <= 'f' ? next - 'a' + 10
                    : next >= 'A' && next <= 'F' ? next - 'A' + 10
                                                 : -1;
        if (value < 0)
            return false;
        *number = *number << 4 | (uint32_t)value;
        reader->at++;
    }
    return true;
}

static bool read_escape(Reader *reader)
{
    static const char names[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    int next = peek(reader);
    reader->at++;
    if (next == 'u') {
        uint32_t high, low;
        if (!read_hex(reader, &high) || (high >= 0xdc00 && high < 0xe000))
            return false;
        if (high < 0xd800 || high >= 0xe000)
            return put_character(reader->json, high);
        if (!take(reader, '\\') || !take(reader, 'u') || !read_hex(reader, &low) || low < 0xdc00 || low >= 0xe000)
            return false;
        return put_character(reader->json, 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
    }
    const char *found = next > 0 ? strchr(names, next) : NULL;
    return found != NULL && put_character(reader->json, (unsigned char)meant[found - names]);
}

static bool read_string(Reader *reader)
{
    Json *json = reader->json;
    uint32_t index = new_value(reader, JSON_STRING);
    if (index == UINT32_MAX || !take(reader, '"'))
        return false;
    size_t begin = json->text_bytes;
    for (int next; (next = peek(reader)) != '"';) {
        uint32_t character;
        size_t length = 1;
        if (next < 0x20)
            return false; /* the end, or a control character */
        if (next == '\\') {
            reader->at++;
            if (!read_escape(reader))
                return false;
            continue;
        }
        if (next >= 0x80)
            length =
                utf8_character((const uint8_t *)reader->source + reader->at, reader->bytes - reader->at, &character);
        if (!length || !put(json, (const uint8_t *)reader->source + reader->at, length))
            return false;
        reader->at += length;
    }
    reader->at++;
    uint64_t hash = 14695981039346656037u;
    for (size_t at = begin; at < json->text_bytes; at++)
        hash = (hash ^ (uint8_t)json->text[at]) * 1099511628211u;
    JsonValue *value = &json->values[index];
    value->at = (uint32_t)begin;
    value->bytes = (uint32_t)(json->text_bytes - begin);
    value->number = hash;
    return put(json, (const uint8_t *)"", 1);
}

static size_t read_digits(Reader *reader)
{
    size_t begin = reader->at;
    for (int next; (next = peek(reader)) >= '0' && next <= '9';)
        reader->at++;
    return reader->at - begin;
}

static bool read_number(Reader *reader)
{
    size_t begin = reader->at;
    uint32_t index = new_value(reader, JSON_INTEGER);
    if (index == UINT32_MAX)
        return false;
    bool is_negative = take(reader, '-');
    size_t first = reader->at, digits;
    if (take(reader, '0'))
        digits = 1;
    else if ((digits = read_digits(reader)) == 0)
        return false;
    bool is_double = false;
    size_t here = reader->at;
    if (take(reader, '.')) {
        if (!read_digits(reader))
            return false;
        is_double = true;
        here = reader->at;
    }
    if (peek(reader) == 'e' || peek(reader) == 'E') {
        reader->at++;
        if (!take(reader, '+'))
            (void)take(reader, '-');
        if (!read_digits(reader))
            return false;
        is_double = true;
        here = reader->at;
    }
    reader->at = here;
    JsonValue *value = &reader->json->values[index];
    value->bytes = (uint32_t)(reader->at - begin);
    value->is_negative = is_negative;
    if (is_double) {
        value->type = JSON_DOUBLE;
        /* The character behind the number ends it; there is one, because the number lies in an object. */
        return reader->at < reader->bytes && isfinite(strtod(reader->source + begin, NULL));
    }
    if (digits + is_negative > 20)
        return false;
    uint64_t number = 0;
    for (size_t at = first; at < reader->at; at++)
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(reader->source[at] - '0'), &number))
            return false;
    value->number = number;
    return !is_negative || number <= (uint64_t)1 << 63;
}

static bool read_word(Reader *reader, const char *word, enum json_type type)
{
    size_t count = strlen(word);
    if (new_value(reader, type) == UINT32_MAX || count > reader->bytes - reader->at ||
        memcmp(reader->source + reader->at, word, count) != 0)
        return false;
    reader->at += count;
    return true;
}

static bool is_same_key(const Json *json, const JsonValue *one, const JsonValue *other)
{
    return one->number == other->number && one->bytes == other->bytes &&
           memcmp(json->text + one->at, json->text + other->at, one->bytes) == 0;
}

/* Whether an object has the key that was read last, in another member. */
static bool has_key(const Json *json, uint32_t object, uint32_t key)
{
    for (uint32_t at = object + 1; at < key; at = json->values[at + 1].next)
        if (is_same_key(json, &json->values[at], &json->values[key]))
            return true;
    return false;
}

static bool read_value(Reader *reader, int depth);

static bool read_container(Reader *reader, int depth, enum json_type type)
{
    Json *json = reader->json;
    char end = type == JSON_OBJECT ? '}' : ']';
    uint32_t index = new_value(reader, type), count = 0;
    if (index == UINT32_MAX || depth == JSON_DEPTH_LIMIT)
        return false;
    reader->at++;
    skip_space(reader);
    while (count > 0 || !take(reader, end)) {
        if (type == JSON_OBJECT) {
            uint32_t key = json->count;
            skip_space(reader);
            if (!read_string(reader) || has_key(json, index, key))
                return false;
            skip_space(reader);
            if (!take(reader, ':'))
                return false;
        }
        skip_space(reader);
        if (!read_value(reader, depth + 1))
            return false;
        count++;
        skip_space(reader);
        if (take(reader, end))
            break;
        if (!take(reader, ','))
            return false;
    }
    json->values[index].count = count;
    json->values[index].next = json->count;
    json->values[index].bytes = (uint32_t)reader->at - json->values[index].at;
    return true;
}

static bool read_value(Reader *reader, int depth)
{
    switch (peek(reader)) {
    case '{':
        return read_container(reader, depth, JSON_OBJECT);
    case '[':
        return read_container(reader, depth, JSON_ARRAY);
    case '"':
        return read_string(reader);
    case 'n':
        return read_word(reader, "null", JSON_NULL);
    case 't':
        return read_word(reader, "true", JSON_TRUE);
    case 'f':
        return read_word(reader, "false", JSON_FALSE);
    default:
        return read_number(reader);
    }
}

bool json_read(Json *json, const char *source, size_t bytes)
{
    Reader reader = {.json = json, .source = source, .bytes = bytes};
    json->count = 0;
    json->text_bytes = 0;
    /* No text is longer than its source: a NUL takes the place of a quote. */
    if (!json->is_fixed && json->text_room < bytes + 1) {
        char *text = realloc(json->text, bytes + 1);
        if (text == NULL)
            return false;
        json->text = text;
        json->text_room = bytes + 1;
    }
    skip_space(&reader);
    if (peek(&reader) != '{' || !read_value(&reader, 0))
        return false;
    skip_space(&reader);
    return reader.at == bytes;
}

void json_free(Json *json)
{
    if (!json->is_fixed) {
        free(json->values);
        free(json->text);
    }
    *json = (Json){0};
}

const JsonValue *json_member(const Json *json, const JsonValue *object, const char *name)
{
    size_t bytes = strlen(name);
    if (!json_is(object, JSON_OBJECT))
        return NULL;
    uint32_t end = object->next;
    for (uint32_t at = (uint32_t)(object - json->values) + 1; at < end; at = json->values[at + 1].next) {
        const JsonValue *key = &json->values[at];
        if (key->bytes == bytes && memcmp(json->text + key->at, name, bytes) == 0)
            return &json->values[at + 1];
    }
    return NULL;
}

const char *json_text(const Json *json, const JsonValue *value)
{
    if (!json_is(value, JSON_STRING) || strlen(json->text + value->at) != value->bytes)
        return NULL;
    return json->text + value->at;
}

bool json_word(const JsonValue *value, uint64_t *number)
{
    if (!json_is(value, JSON_INTEGER) || (value->is_negative && value->number))
        return false;
    *number = value->number;
    return true;
}

size_t json_escape(char *to, size_t room, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    size_t at = 0;
    for (; *text; text++) {
        unsigned char next = (unsigned char)*text;
        if (room - at < 7)
            return 0;
        if (next < 0x20) {
            memcpy(to + at, "\\u00", 4);
            to[at + 4] = hex[next >> 4];
            to[at + 5] = hex[next & 15];
            at += 6;
            continue;
        }
        if (next == '"' || next == '\\')
            to[at++] = '\\';
        to[at++] = (char)next;
    }
    if (room - at < 1)
        return 0;
    to[at] = '\0';
    return at;
}
