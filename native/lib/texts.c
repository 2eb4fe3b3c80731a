/* Texts of errors and statuses. Nothing here allocates. */

#include "client.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)SHMSERVE_OK == STATUS_OK && (int)SHMSERVE_RESIZE_REQUIRED == STATUS_RESIZE_REQUIRED &&
                   (int)SHMSERVE_EXPIRED == STATUS_EXPIRED && (int)SHMSERVE_CANCELLED == STATUS_CANCELLED &&
                   (int)SHMSERVE_SUPERSEDED == STATUS_SUPERSEDED && (int)SHMSERVE_STALE == STATUS_STALE &&
                   (int)SHMSERVE_REJECTED == STATUS_REJECTED && (int)SHMSERVE_FAILED == STATUS_FAILED &&
                   (int)SHMSERVE_ENGINE_LOST == STATUS_ENGINE_LOST && (int)SHMSERVE_STOPPING == STATUS_STOPPING,
               "the header numbers the statuses as the wire does");

/* Of the latest shmserve_open of this thread that failed; freed with the thread. Not an array: a thread with a small
 * stack would have no room for it. */
static _Thread_local char *no_client_text;
static pthread_key_t text_key;
static pthread_once_t text_key_made = PTHREAD_ONCE_INIT;

static void make_text_key(void) { (void)pthread_key_create(&text_key, free); }

static char *own_text(void)
{
    (void)pthread_once(&text_key_made, make_text_key);
    if (no_client_text == NULL && (no_client_text = malloc(TEXT_ROOM)) != NULL)
        (void)pthread_setspecific(text_key, no_client_text);
    return no_client_text;
}

/* Remove a character that was cut. */
static void end_at_a_character(char *text, size_t bytes)
{
    size_t first = bytes;
    while (first && (text[first - 1] & 0xc0) == 0x80)
        first--;
    if (!first--)
        return;
    unsigned char lead = (unsigned char)text[first];
    if (first + (lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4) > bytes)
        text[first] = '\0';
}

static void write_text(char *to, size_t room, const char *format, va_list arguments)
{
    int count = vsnprintf(to, room, format, arguments);
    if (count < 0)
        to[0] = '\0';
    else if ((size_t)count >= room)
        end_at_a_character(to, room - 1);
}

int fail(shmserve_client *client, int status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text = client != NULL ? client->text : own_text();
    if (text != NULL)
        write_text(text, TEXT_ROOM, format, arguments);
    va_end(arguments);
    return status;
}

void text_begin(Text *text, char *bytes, size_t room)
{
    *text = (Text){.bytes = bytes, .room = room};
    bytes[0] = '\0';
}

void text_add_bytes(Text *text, const char *bytes, size_t count)
{
    size_t left = text->room - text->count - 1;
    if (count > left)
        count = left;
    memcpy(text->bytes + text->count, bytes, count);
    text->count += count;
    text->bytes[text->count] = '\0';
}

void text_add(Text *text, const char *format, ...)
{
    va_list arguments;
    size_t left = text->room - text->count;
    va_start(arguments, format);
    int count = vsnprintf(text->bytes + text->count, left, format, arguments);
    va_end(arguments);
    if (count > 0)
        text->count += (size_t)count < left ? (size_t)count : left - 1;
}

EXPORTED const char *shmserve_last_error(const shmserve_client *client)
{
    const char *text = client != NULL ? client->text : no_client_text;
    return text != NULL ? text : "";
}

EXPORTED const char *shmserve_status_text(int status)
{
    switch (status) {
    case SHMSERVE_OK:
        return "OK";
    case SHMSERVE_RESIZE_REQUIRED:
        return "the request or its reply needs larger slots: call shmserve_recover, then make the same call again";
    case SHMSERVE_EXPIRED:
        return "the deadline had passed when the request's turn came; the model did not run: send it earlier, or give "
               "it "
               "more time";
    case SHMSERVE_CANCELLED:
        return "the request was cancelled before it ran";
    case SHMSERVE_SUPERSEDED:
        return "a newer request of this client replaced this one before it ran: wait for the newer one";
    case SHMSERVE_STALE:
        return "the observation was too old when its turn came; the model did not run: capture a new one";
    case SHMSERVE_REJECTED:
        return "the request itself cannot be served; sending it again changes nothing: see shmserve_last_error";
    case SHMSERVE_FAILED:
        return "the model raised an error; the traceback is in the daemon's log";
    case SHMSERVE_ENGINE_LOST:
        return "the engine died while it ran the request; another engine serves the next one";
    case SHMSERVE_STOPPING:
        return "the daemon is stopping and did not start the request: call shmserve_recover, and send it again";
    case SHMSERVE_TIMEOUT:
        return "no reply in time: wait again, or call shmserve_abandon; a late reply is discarded";
    case SHMSERVE_EXHAUSTED:
        return "every slot is in use: wait for replies and release them, or open the client with more slots";
    case SHMSERVE_RESTARTED:
        return "the daemon went away, and requests in flight may have run: call shmserve_recover";
    case SHMSERVE_UNAVAILABLE:
        return "no daemon serves this name, or it refuses this client for now: start it, or call shmserve_recover "
               "later";
    case SHMSERVE_FOREIGN:
        return "another user's daemon or directory; nothing was sent: name its runtime directory if it is the right "
               "one";
    case SHMSERVE_PROTOCOL:
        return "the other side speaks another wire version, or sent what cannot be read: install the same shmserve on "
               "both "
               "sides";
    case SHMSERVE_MISMATCH:
        return "the entries are not those that were declared, or robot and model mean different things by their "
               "numbers: see shmserve_last_error, which names each difference";
    case SHMSERVE_TOO_LARGE:
        return "the request or the reply needs more bytes than the service allows a channel: send less, use fewer "
               "slots, or "
               "ask the operator for more (max_channel_bytes)";
    case SHMSERVE_ARGUMENT:
        return "an argument has no meaning: see shmserve_last_error";
    case SHMSERVE_MEMORY:
        return "this process has no memory, or may open no more files: raise its limits (ulimit), or ask for fewer "
               "slots";
    case SHMSERVE_EVICTED:
        return "the daemon serves this process no more, for a while: see shmserve_last_error";
    case SHMSERVE_ENDED:
        return "no request, loan or reply of this client has this sequence any longer: lend a new one";
    case SHMSERVE_RUNNING:
        return "an engine runs the request already, and nothing has changed: wait for its reply";
    case SHMSERVE_FORKED:
        return "this client belongs to the parent process: open one in this process";
    default:
        return "a status that this library does not know: install the same shmserve on both sides";
    }
}
