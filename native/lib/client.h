/* The client, as the files of this folder share it. Each part of it has one file that writes it, named beside it. */

#ifndef SHMSERVE_LIB_CLIENT_H
#define SHMSERVE_LIB_CLIENT_H

#include "core/ring.h"
#include "core/schema.h"
#include "core/spin_budget.h"
#include "core/waiting.h"
#include "include/shmserve.h"
#include "json.h"

#include <semaphore.h>
#include <stdbool.h>
#include <sys/types.h>

#define EXPORTED __attribute__((visibility("default")))

enum {
    PATH_ROOM = 4096,
    SOCKET_PATH_LIMIT = 107,
    SERVICE_NAME_LIMIT = 64,
    MESSAGE_LIMIT = 65536,
    TEXT_ROOM = 16384,
    ERROR_TYPE_ROOM = 512, /* 100 characters and 400, of up to four bytes: daemon/engine/error_text.py */
    ERROR_TEXT_ROOM = 2048,
    REPLY_STRUCTURES = 16,  /* that a client remembers */
    FIRST_NODES_ROOM = 128, /* of each of them, until one needs more */
    FIRST_PATHS_ROOM = 8192,
    AGREED_VERSIONS = 16, /* model versions that a client remembers to agree with its robot */
    CHANNEL_DESCRIPTORS = 4,
    MOST_OWNERS = 4
};
/* Soonest at which a daemon whose model is still being loaded is asked for its contract again. */
#define REFRESH_NS 100000000u
/* No wait is longer without a check of the connection: this is how soon a daemon's end is noticed. */
#define LONGEST_WAIT_NS 50000000u

/* --- texts.c --- */

/* Set the text of an error, and return its status. */
int fail(shmserve_client *client, int status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* A text that is written piece by piece, and cut at its end. */
typedef struct {
    char *bytes;
    size_t count, room;
} Text;
void text_begin(Text *text, char *bytes, size_t room);
void text_add(Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add_bytes(Text *text, const char *bytes, size_t count);

/* --- Structures (structure.c, declare.c) --- */

/* Memory for the entries of one structure. */
typedef struct {
    uint32_t nodes_room;
    size_t paths_room;
} StructureRoom;

struct shmserve_schema {
    shmserve_entry *entries;
    Leaf *leaves; /* those with a place, in the order of the entries */
    char *paths;  /* the texts of the entries */
    uint8_t *constants;
    uint32_t entries_count, leaves_count, numbers_count, sizes_count;
    uint64_t number; /* of this client's for a request, of the engine's for a reply; 0: unused */
    /* Of a reply. */
    uint64_t last_used;
    uint64_t structure; /* the number that the caller gets */
    uint32_t holders;   /* replies that are read */
    /* Of a request. */
    shmserve_client *owner;
    shmserve_schema *next; /* declared before */
    Schema tree;
    uint8_t *metadata;
    size_t metadata_bytes;
    uint64_t *default_sizes;
    uint64_t
        *declared_sizes; /* by the model's contract; SHMSERVE_ANY_SIZE: it does not say. NULL: nothing is declared */
    bool is_refused;     /* by the contract, whatever the sizes are */
    Place *places_room;  /* for lay_out */
    shmserve_place **places; /* by slot: of each entry */
    uint64_t **sizes;        /* by slot */
};

/* --- Slots (request.c, reply.c) --- */

enum slot_state {
    SLOT_FREE,
    SLOT_LOANED,    /* the caller fills it */
    SLOT_IN_FLIGHT, /* published; perhaps answered */
    SLOT_DEFERRED,  /* answered RESIZE_REQUIRED: delivered once the channel has been resized */
    SLOT_CANCELLED, /* withdrawn, and the caller has not been told by a wait */
    SLOT_ABANDONED, /* without a waiting caller: free again once the engine has answered */
    SLOT_HELD       /* the caller reads the reply */
};

typedef struct {
    shmserve_sequence sequence; /* as the caller names the request */
    uint64_t wire;              /* its sequence on the wire; given as it is published, because these have no gaps */
    enum slot_state state;
    bool is_reset;
    bool is_gone;            /* in a generation of the channel that is left: it will not be answered */
    uint64_t written_schema; /* whose metadata the slot has */
    uint64_t write_id;
    uint64_t withheld_ns; /* since when its reply waits for the comparison of its model with the robot; 0 */
    shmserve_request request;
    shmserve_reply reply;
    shmserve_schema *reply_schema;
    shmserve_view *views;
    uint64_t *reply_sizes;
    char error_type[ERROR_TYPE_ROOM], error_text[ERROR_TEXT_ROOM];
} Slot;

/* --- The connection (varlink.c, attach.c, channel.c) --- */

/* Where a service is, and who chose it: that decides whose daemon may answer. */
typedef struct {
    char runtime[PATH_ROOM], directory[PATH_ROOM + SERVICE_NAME_LIMIT + 2], socket[PATH_ROOM + SERVICE_NAME_LIMIT + 16];
    bool is_named, is_system;
    uid_t owners[MOST_OWNERS]; /* the users to whom the daemon and its memory may belong */
    int owners_count;          /* 0: anybody */
} ServicePlace;

/* What one slot of each direction must hold, in bytes. */
typedef struct {
    uint64_t request_metadata, request_bytes, reply_metadata, reply_bytes;
} Capacity;

typedef struct {
    void *memory; /* NULL: not mapped */
    size_t bytes;
    uint64_t metadata_bytes, payload_bytes;
    Ring ring;
} Segment;

typedef struct {
    Segment requests, replies;
    sem_t *request_bell, *reply_bell; /* of transport `named` */
    int request_pipe, reply_pipe;     /* of transport `sealed`; -1 */
    uint64_t rotating_slots;
} Channel;

/* The statement of the robot about its numbers, and the verdict of the daemon (robot.c). */
typedef struct {
    char *call; /* asks the daemon; NULL: nothing is stated, and nothing is compared */
    size_t room, statement_end, call_bytes;
    Json answer; /* the latest one; in separate memory, because an [R] call reads it */
    bool is_asked;
    uint64_t asked_ns; /* 0: not on this connection */
    uint64_t latest;   /* of the versions that agree */
    uint64_t agreed[AGREED_VERSIONS];
    uint32_t agreed_count; /* that were ever added */
    int refusal;           /* the status of every request, with its text; OK: none */
    char text[TEXT_ROOM];
} Robot;

struct shmserve_client {
    char service[SERVICE_NAME_LIMIT + 1];
    char program[64];
    char *runtime_dir;
    shmserve_options options;
    uint64_t forks; /* of this process when it was opened */
    /* attach.c */
    ServicePlace place;
    int lease; /* -1: not attached */
    bool is_lost;
    bool must_resize;     /* a reply waits for larger slots */
    uint32_t calls_ahead; /* replies that come before the one to the next call */
    Channel channel;
    Capacity wanted, granted;
    char *message; /* of MESSAGE_LIMIT bytes */
    size_t message_bytes;
    Json reply;
    /* The latest description of the model. */
    Json description;
    const JsonValue *model; /* NULL: none is ready */
    uint64_t described_ns;
    int is_stateful;
    Robot robot;
    /* request.c */
    uint64_t last_number; /* published on this channel */
    uint64_t last_name;   /* given to a request of this client, on whatever channel */
    uint32_t slots_count, abandoned_count;
    Slot slots[SHMSERVE_MAX_SLOTS];
    shmserve_schema *declared;
    uint64_t declared_count;
    /* reply.c */
    StructureRoom room, needed_room;
    shmserve_schema structures[REPLY_STRUCTURES];
    SchemaMemory reader;
    Place *places;
    uint8_t *metadata;
    char *path;
    uint64_t uses, structures_read;
    /* wait.c */
    SpinBudget budget;
    uint64_t looked_ns; /* when the connection was looked at */
    int64_t waited_ns;  /* how long the last wait was: negative if it ended while it spun, and left its token */
    shmserve_stats stats;
    char text[TEXT_ROOM];
};

/* Of this process. */
uint64_t forks_count(void);
/* OK, or why no [R] call is possible now. */
int check_usable(shmserve_client *client);

/* directories.c: find the service, check whose it is, and connect; *descriptor is the socket. */
int find_service(shmserve_client *client);
int check_owners(shmserve_client *client);
int check_daemon(shmserve_client *client, int descriptor);
/* Whether a file of this user may be mapped. */
bool is_owner(const ServicePlace *place, uid_t uid);

/* varlink.c: whether this is a reply to a call. */
bool is_reply(const Json *json);
typedef struct {
    int descriptors[CHANNEL_DESCRIPTORS];
    int count;
} Descriptors;
int connect_lease(shmserve_client *client, uint64_t deadline_ns);
/* Ask the daemon; its reply's parameters, or NULL with *status and the text. `descriptors` are the caller's. */
const JsonValue *call(shmserve_client *client, const char *method, const char *parameters, uint64_t deadline_ns,
                      Descriptors *descriptors, int *status);
/* The two halves of a call. Send the message, of which the NUL is a part; false with *status and the text. */
bool send_call(shmserve_client *client, const char *method, const char *message, size_t bytes, uint64_t deadline_ns,
               int *status);
/* Read the reply to the latest call: 1; 0: it has not come by then; -1: it cannot be read. Not 1: with *status and the
 * text. */
int take_answer(shmserve_client *client, const char *method, Json *reply, uint64_t deadline_ns,
                Descriptors *descriptors, int *status);
/* The error of a reply, or NULL; its status, with the text. */
const JsonValue *error_of(const Json *reply);
int daemon_error(shmserve_client *client, const Json *json);
void close_descriptors(Descriptors *descriptors);
/* Whether the call that failed was refused and changed nothing. */
bool was_refused(const shmserve_client *client);
/* Whether the daemon has gone away; one system call. */
bool is_peer_closed(int lease);
/* Note that it has, once, and set the text: RESTARTED or EVICTED. */
int note_lost(shmserve_client *client);
/* Why this process cannot have a channel of a daemon that is there. */
int attach_error(shmserve_client *client, int number, const char *what);
int unreadable(shmserve_client *client, const char *method, const char *what);

/* channel.c: open what a reply describes. `before`: the generation whose pipes a sealed channel keeps, or NULL. */
int channel_open(shmserve_client *client, Channel *channel, const JsonValue *info, Descriptors *descriptors,
                 const Channel *before);
void channel_close(Channel *channel, bool keeps_bells);
void ring_engine(const Channel *channel);

/* attach.c */
/* Attach, as often as the options say; the client is detached. */
int attach(shmserve_client *client, uint64_t deadline_ns);
/* Give the channel back, and end every request. */
void detach(shmserve_client *client);
/* Fetch the model's description. */
int refresh_model(shmserve_client *client, uint64_t deadline_ns);
bool is_version(const char *text);

/* robot.c: remember the statement of a robot, for the whole life of the client. */
int robot_begin(shmserve_client *client, const char *statement);
void robot_end(shmserve_client *client);
/* Another connection: nothing is compared. */
void robot_forget(shmserve_client *client);
/* Compare with the model, unless one that agrees is known. */
int robot_compare(shmserve_client *client, uint64_t deadline_ns);
/* [R] OK, or why no request may be sent; asks the daemon again, and does not wait for it. */
int robot_admit(shmserve_client *client);
/* [R] OK once the model that answered agrees; TIMEOUT: not known by then. Other statuses end the request. */
int robot_settle(shmserve_client *client, Slot *slot, uint64_t version, uint64_t until_ns);
/* Whether the robot is known to agree with a version; one comparison where it is the one of the latest reply. */
static inline bool robot_agrees(const shmserve_client *client, uint64_t version)
{
    return client->robot.call == NULL || (client->robot.agreed_count && version == client->robot.latest);
}

/* contract.c: compare every declared structure with the contract of the model. */
int compare_all(shmserve_client *client);

/* client.c: memory that is there, not only promised; NULL if there is none. */
void *new_memory(const shmserve_client *client, size_t count, size_t size);
static inline uint64_t after(uint64_t timeout_ns)
{
    uint64_t now_ns = shmserve_now_ns();
    return timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
}

/* structure.c: the entries of a tree of metadata; SCHEMA_ROOM: they need *needed. */
int structure_fill(shmserve_schema *schema, const Schema *tree, const uint8_t *metadata, char *path,
                   const StructureRoom *room, StructureRoom *needed);
int structures_begin(shmserve_client *client, const StructureRoom *room);
void structures_end(shmserve_client *client);
enum { STRUCTURE_PATH_ROOM = 2 * METADATA_LIMIT + 64 };
/* Metadata of entries, in `metadata` of METADATA_LIMIT bytes. */
int metadata_of(shmserve_client *client, const shmserve_entry *entries, size_t count, uint8_t *metadata, size_t *bytes);
void free_declared(shmserve_schema *schema);
/* Where the leaf of an entry lies; NULL for containers and constants. `leaf` and `word` count. */
char *entry_place(const shmserve_entry *entry, char *payload, uint32_t sizes_count, const Place *places, uint32_t *leaf,
                  uint32_t *word, uint64_t *bytes);

/* contract.c; the names that contracts have for dtypes */
extern const char *const contract_dtypes[DTYPES];
int compare_structure(shmserve_client *client, shmserve_schema *schema);
int compare_sizes(shmserve_client *client, const shmserve_schema *schema, const uint64_t *sizes);

/* reply.c: reads the copied head of a reply in this slot. */
int read_reply(shmserve_client *client, Slot *slot, const uint64_t words[REPLY_WORDS]);
/* Free the slots whose abandoned requests were answered. */
void reap_abandoned(shmserve_client *client);
/* The caller waits for this request no longer; keeps the text of the error that ended it. */
void abandon_quietly(shmserve_client *client, shmserve_sequence sequence);
Slot *slot_of_sequence(shmserve_client *client, shmserve_sequence sequence);

#endif
