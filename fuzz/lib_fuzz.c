/* The readers of libshmserve, for inputs from standard input: a kind ('m' metadata, 'j' a reply of the daemon), 4 bytes
 * of length, and the input. Writes '1' for each that is accepted, '0' for each that is refused.
 *
 * Metadata that is accepted has entries, and these entries have the same metadata again.
 */

#include "lib/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAIL(...) (fprintf(stderr, __VA_ARGS__), abort())

static shmserve_client client;
static uint8_t again[METADATA_LIMIT];

static int metadata_is_read(const uint8_t *metadata, size_t count)
{
    StructureRoom needed = client.room;
    shmserve_schema *schema = &client.structures[0];
    Schema tree;
    size_t bytes;
    int found = schema_read_into(&tree, &client.reader, metadata, count);
    if (found == SCHEMA_ROOM)
        FAIL("no room for %zu bytes of metadata\n", count);
    if (!found || tree.devices_count) /* the library reads no GPU memory */
        return 0;
    int filled = structure_fill(schema, &tree, metadata, client.path, &client.room, &needed);
    if (filled == SCHEMA_ROOM) {
        /* Deep paths take more text than their keys. */
        structures_end(&client);
        if (structures_begin(&client, &needed) != SHMSERVE_OK)
            FAIL("no memory\n");
        return metadata_is_read(metadata, count);
    }
    /* A list of entries alone cannot say how many items a list has, or that a dict has none, but by these. */
    if (schema->entries_count &&
        (metadata_of(&client, schema->entries, schema->entries_count, again, &bytes) != SHMSERVE_OK || bytes != count ||
         memcmp(again, metadata, count) != 0))
        FAIL("the entries of a structure are another one: %s\n", client.text);
    return 1;
}

int main(void)
{
    Json json = {0};
    uint32_t count;
    int kind;
    memset(&client, 0, sizeof client);
    client.options.slots = 1;
    client.path = malloc(STRUCTURE_PATH_ROOM);
    StructureRoom room = {NODE_LIMIT, 1 << 20};
    if (client.path == NULL || structures_begin(&client, &room) != SHMSERVE_OK)
        FAIL("no memory\n");
    while ((kind = getchar()) != EOF) {
        if (fread(&count, sizeof count, 1, stdin) != 1)
            FAIL("an input is cut short\n");
        /* Exactly as large as the input, so that a read behind it is seen. */
        uint8_t *input = malloc(count ? count : 1);
        if (input == NULL || fread(input, 1, count, stdin) != count)
            FAIL("an input is cut short\n");
        int accepted = kind == 'm' ? metadata_is_read(input, count)
                                   : json_read(&json, (const char *)input, count) && is_reply(&json);
        putchar(accepted ? '1' : '0');
        free(input);
    }
    json_free(&json);
    structures_end(&client);
    free(client.path);
    return 0;
}
