/** @file
 * libshmserve: C and C++ programs ask a shmserve daemon of this host, through shared memory.
 *
 * C11, Linux, no dependency but the C library. docs/how-to/c-client.md is the guide; examples/c_minimal is a complete program.
 *
 *     shmserve_open, shmserve_declare, then again and again:
 *     shmserve_loan, fill it, shmserve_publish, shmserve_wait, shmserve_release
 *
 * Two kinds of calls:
 *
 * [S] set-up: may allocate memory, ask the daemon, and block up to its timeout.
 *
 * [R] real time: allocates nothing, takes no lock, and makes at most one wake-up of the engine and one sleep, which its
 * deadline bounds (`shmserve_wait` sleeps again after each 50 ms, to see whether the daemon lives; with `options.robot` or
 * `shmserve_state_period` it asks the daemon once for each model version).
 *
 * One client serves one thread at a time; threads that ask at the same time have a client each. A client belongs to the
 * process that opened it: a forked child opens its own.
 *
 * Times are CLOCK_MONOTONIC nanoseconds (`shmserve_now_ns`), never those of the wall clock. Timeouts are durations in
 * nanoseconds.
 *
 * Every call that can fail returns 0 (SHMSERVE_OK) or a status. `shmserve_last_error` has its text: what happened, and
 * what to do. Texts and names are UTF-8 that ends with NUL; other memory has its length beside it.
 */

#ifndef SHMSERVE_H
#define SHMSERVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Of this header: a library with the same number takes every program that was built with it. */
#define SHMSERVE_ABI 1
/** Dimensions of one array. */
#define SHMSERVE_MAX_DIMS 16
/** Requests that can be in flight at a time. */
#define SHMSERVE_MAX_SLOTS 64
/** A size that is not fixed: in `shmserve_entry.shape`. */
#define SHMSERVE_ANY_SIZE UINT64_MAX

/** A connection to one service, and its channel. */
typedef struct shmserve_client shmserve_client;
/** The structure of an observation or of an action: its entries, without sizes. */
typedef struct shmserve_schema shmserve_schema;
/** Names one request of a client for ever; never 0. */
typedef uint64_t shmserve_sequence;

/** How a request or a call ended. 1 to 9 came with the reply of the engine (docs/reference/wire-format.md), negative ones are of
 * this side. `shmserve_status_text` has the remedy for each. */
enum shmserve_status {
    SHMSERVE_OK = 0,
    SHMSERVE_RESIZE_REQUIRED = 1, /**< larger slots are needed: shmserve_recover, then the same call again */
    SHMSERVE_EXPIRED = 2,         /**< its deadline had passed when its turn came; it did not run */
    SHMSERVE_CANCELLED = 3,       /**< cancelled before it ran */
    SHMSERVE_SUPERSEDED = 4,      /**< replaced by a newer request of this client before it ran */
    SHMSERVE_STALE = 5,           /**< the observation was older than max_age_ns when its turn came; it did not run */
    SHMSERVE_REJECTED = 6,        /**< the request itself cannot be served; sending it again changes nothing */
    SHMSERVE_FAILED = 7,          /**< the model raised */
    SHMSERVE_ENGINE_LOST = 8,     /**< the engine died while it ran it; another engine serves the next one */
    SHMSERVE_STOPPING = 9,        /**< the daemon is going away and did not start it: recover, then send it again */

    SHMSERVE_TIMEOUT = -1,     /**< no reply until then: wait again, or shmserve_abandon; a late reply is discarded */
    SHMSERVE_EXHAUSTED = -2,   /**< every slot is in use: wait for replies, release them, or open with more slots */
    SHMSERVE_RESTARTED = -3,   /**< the daemon went away; the request may have run: shmserve_recover */
    SHMSERVE_UNAVAILABLE = -4, /**< no daemon serves this name, or it refuses this client for now */
    SHMSERVE_FOREIGN = -5,   /**< another user's daemon or directory, which the caller did not name; nothing was sent */
    SHMSERVE_PROTOCOL = -6,  /**< the other side speaks another wire version, or is not shmserve */
    SHMSERVE_MISMATCH = -7,  /**< not what the model was declared to take, or not what `options.robot` states of its
                                numbers; the text names each difference */
    SHMSERVE_TOO_LARGE = -8, /**< more bytes than the service allows a channel */
    SHMSERVE_ARGUMENT = -9,  /**< an argument has no meaning */
    SHMSERVE_MEMORY = -10,   /**< this process has no memory, or may open no more files */
    SHMSERVE_EVICTED = -11,  /**< the daemon serves this process no more, for a while */
    SHMSERVE_ENDED = -12,    /**< no request, loan or reply of this client has this sequence (any longer) */
    SHMSERVE_RUNNING = -13,  /**< shmserve_cancel: an engine has taken the request already */
    SHMSERVE_FORKED = -14    /**< this client belongs to the parent process: open one here */
};

/** What an entry is in Python, where models run. */
enum shmserve_kind {
    SHMSERVE_ARRAY,    /**< numpy array of `dtype`, C order; 0 to 16 dimensions */
    SHMSERVE_SCALAR,   /**< numpy scalar of `dtype`; 0 dimensions */
    SHMSERVE_INT,      /**< int: an int64_t */
    SHMSERVE_FLOAT,    /**< float: a double */
    SHMSERVE_BOOL,     /**< bool: an int64_t, 0 or 1 */
    SHMSERVE_BYTES,    /**< bytes; one size */
    SHMSERVE_STR,      /**< str: UTF-8, no NUL at its end; one size, in bytes */
    SHMSERVE_LIST,     /**< list of int (I64), float (F64) or bool (BOOL8) alone; one size, 1 or more */
    SHMSERVE_NONE,     /**< None: part of the structure */
    SHMSERVE_LONG,     /**< int of more than 64 bits: `constant`, part of the structure */
    SHMSERVE_DICT,     /**< dict. Needed for an empty one only: any other exists by the paths of its entries */
    SHMSERVE_SEQUENCE, /**< list of other values, or an empty one; its items follow it as "path/0", "path/1", ... */
    SHMSERVE_TUPLE     /**< tuple; its items follow it */
};

/** Of SHMSERVE_ARRAY, SHMSERVE_SCALAR and SHMSERVE_LIST; the others have one dtype, and theirs is ignored. */
enum shmserve_dtype {
    SHMSERVE_BOOL8, /**< numpy.bool_: 0 or 1 in a byte */
    SHMSERVE_I8,
    SHMSERVE_U8,
    SHMSERVE_I16,
    SHMSERVE_U16,
    SHMSERVE_F16,
    SHMSERVE_BF16,
    SHMSERVE_I32,
    SHMSERVE_U32,
    SHMSERVE_F32,
    SHMSERVE_I64,
    SHMSERVE_U64,
    SHMSERVE_F64,
    SHMSERVE_C64, /**< two floats */
    SHMSERVE_C128 /**< two doubles */
};

/** One entry of a tree.
 *
 * `path` names it from the outside inwards: "robot/joints" is entry "joints" of the dict at "robot", and "" is the
 * whole tree. In a step "/" is written "~1", "~" is "~0", a NUL byte "~3", and the empty key "~4". A step of a dict
 * that begins with "#" is an integer key, as "#7" or "#-1"; a text key that begins with "#" has "~2" in its place.
 *
 * The entries of a container lie one after another, in the order of its keys, which is part of the structure. */
typedef struct {
    const char *path; /**< unique among the entries of its structure */
    enum shmserve_kind kind;
    enum shmserve_dtype dtype; /**< of arrays, scalars and lists */
    uint32_t dims;             /**< of an array; the others have those of their kind */
    /** Declaring: the sizes of a loan that gives none, and SHMSERVE_ANY_SIZE (or 0) where each loan says it. */
    uint64_t shape[SHMSERVE_MAX_DIMS];
    /** SHMSERVE_LONG: 9 to 16 bytes, two's complement, little-endian, no byte more than needed. */
    const uint8_t *constant;
    uint32_t constant_bytes;
    /** Given back: the place of its first size among those of a request; each entry has `dims` of them. */
    uint32_t first_size;
} shmserve_entry;

/** Where the leaf of one entry lies in a request on loan, until it is published. */
typedef struct {
    void *data; /**< NULL for containers and constants; on a 64-byte boundary, or a word for int, float and bool */
    uint64_t bytes;
    const uint64_t *shape; /**< its sizes: `dims` of its entry */
} shmserve_place;

/** The same of a reply. It is memory of the engine, mapped read-only: bytes are not checked to be UTF-8, or to be 0
 * or 1. */
typedef struct {
    const void *data;
    uint64_t bytes;
    const uint64_t *shape;
} shmserve_view;

/** How a client is opened; begin with `shmserve_default_options`. */
typedef struct {
    size_t size;             /**< sizeof(shmserve_options): the structure may grow at its end */
    const char *service;     /**< "default" */
    const char *runtime_dir; /**< NULL: $SHMSERVE_RUNTIME_DIR, else /run/shmserve or the user's own */
    const char *program;     /**< NULL: this process's name; what `shmserve-admin clients` shows */
    uint32_t slots;          /**< 4: requests in flight and replies not released, at a time; 1 to 64 */
    uint32_t max_retries;    /**< 3: how often an unavailable service is tried again */
    uint64_t retry_delay_ns; /**< 1 s: between two attempts */
    uint64_t request_bytes;  /**< 0: room for a request's payload; by default what the model's example needs */
    uint64_t reply_bytes;    /**< 0: room for a reply's payload, likewise */
    uint64_t period_ns;      /**< 0: the time between two requests of a loop, before which the engine wakes up */
    int64_t spin_ns;         /**< -1: how long a wait polls before it sleeps; -1: learnt, 0: not at all */
    uint32_t check_contract; /**< 1: compare structures and sizes with the model's contract */
    uint32_t lock_memory;    /**< 0; 1: mlock the channel and the client */
    /** NULL: nothing is stated. Else what this robot's numbers mean, as JSON with the keys of [contract] in model.toml:
     * {"rate_hz": 50, "action": {"actions": {"units": "rad", "names": ["pan", "lift"]}}}. The daemon compares it with
     * the model, by the rules of the Python client. No request is sent to a model that states something else, and no
     * reply of a model is given before it was compared (MISMATCH). */
    const char *robot;
} shmserve_options;

/** How one request is treated; NULL or zeros: as any other. */
typedef struct {
    uint64_t deadline_ns; /**< answered EXPIRED if its turn comes later; 0: none */
    uint64_t capture_ns;  /**< when the observation was captured; 0: unknown, or now if there is a max_age_ns */
    uint64_t max_age_ns;  /**< answered STALE if it is older when its turn comes; 0: never */
    uint32_t supersede;   /**< 1: this client's requests that have not begun end with SUPERSEDED */
    uint32_t repeatable;  /**< 1: may run again if an engine dies under it, even with state */
    /** 1: the observation has the entries of real-time chunking (inference_delay, prev_chunk_left_over). The engine
     * removes them where no row is left over, for a policy that does not declare them, or if another version
     * made the latest result. */
    uint32_t real_time_chunking;
    uint32_t reserved;
} shmserve_terms;

/** A request on loan: memory of its slot, to be filled and published. */
typedef struct {
    shmserve_sequence sequence;
    const shmserve_schema *schema;
    const shmserve_place *places; /**< of each entry, in the order of `shmserve_entries` */
    void *payload;                /**< the whole of it */
    uint64_t payload_bytes;
} shmserve_request;

/** The reply to one request. */
typedef struct {
    shmserve_sequence sequence;
    int status;
    uint32_t clamped;       /**< 1: a number was outside its declared range and was brought back to it */
    uint32_t in_place;      /**< 1: the model read the slot itself */
    uint32_t stateful;      /**< 1: the policy keeps state */
    uint32_t attempts;      /**< how often an engine has begun to run it */
    uint32_t source;        /**< 0: this machine's model; of a link, 1: the remote model, 2: the fallback in its package */
    uint64_t model_version; /**< the first 8 bytes of the model's content address */
    uint64_t queued_ns, staged_ns, infer_ns, copied_ns; /**< the duration of each step in the engine */
    const shmserve_schema *schema; /**< of OK: the structure, until the reply is released. NULL for a reset */
    const shmserve_view *views;    /**< of OK: of each entry */
    const void *payload;
    uint64_t payload_bytes;
    /** Of REJECTED, FAILED, ENGINE_LOST: the exception's type and text; else "". */
    const char *error_type, *error_text;
    /** A number for the structure, never another one's: indices from shmserve_find hold while it is the same. */
    uint64_t structure;
} shmserve_reply;

/** One entry of a reply that `shmserve_infer` copies. */
typedef struct {
    const char *path;
    enum shmserve_kind kind;   /**< SHMSERVE_ARRAY and SHMSERVE_SCALAR stand for each other */
    enum shmserve_dtype dtype; /**< of an array, a scalar or a list */
    void *into;
    uint64_t room;  /**< bytes at `into` */
    uint64_t bytes; /**< given back: how many were copied */
    uint32_t dims;  /**< given back */
    uint64_t shape[SHMSERVE_MAX_DIMS];
} shmserve_output;

/** Counts since the client was opened. */
typedef struct {
    uint64_t published;                  /**< requests */
    uint64_t late_replies;               /**< that came after their request was abandoned, and were discarded */
    uint64_t attached;                   /**< how often it got a channel */
    uint64_t resized;                    /**< how often the channel grew */
    uint64_t request_bytes, reply_bytes; /**< the room of one slot now */
    uint32_t slots, is_attached;
} shmserve_stats;

/* --- Connecting ---------------------------------------------------------------------------- */

/** [R] The number of the library that runs: `SHMSERVE_ABI` of its header. */
int shmserve_abi(void);

/** [R] Now, CLOCK_MONOTONIC. */
uint64_t shmserve_now_ns(void);

/** [R] What a status means and what to do; never NULL. */
const char *shmserve_status_text(int status);

/** [R] Write the defaults; `size` is sizeof(shmserve_options). */
void shmserve_default_options(shmserve_options *options, size_t size);

/** [S] Attach to the service.
 *
 * `*client` is a client unless the status is ARGUMENT or MEMORY, when it is NULL: one that could not be attached has
 * the error text, may try again with `shmserve_recover`, and must be closed. Retries an unavailable service as the
 * options say, within `timeout_ns`. UNAVAILABLE, EVICTED, FOREIGN, PROTOCOL, TOO_LARGE, ARGUMENT, MEMORY. MISMATCH: the
 * model states something else than `options.robot`, and the client is attached. PROTOCOL also for a daemon that is too
 * old to compare. */
int shmserve_open(shmserve_client **client, const shmserve_options *options, uint64_t timeout_ns);

/** [S] Make the client usable again, or do nothing if it is: attach to the daemon's successor after RESTARTED, STOPPING
 * or EVICTED; grow the channel after RESIZE_REQUIRED, which needs that no other request is in flight and no loan or
 * reply is held (EXHAUSTED). Requests that wait for a larger slot are waited for again afterwards, by the same
 * sequence.
 *
 * Schemas stay valid. Requests in flight and loans of a lost channel have ended (ENDED). Structures and what the robot
 * states are compared with the contract of the new daemon's model: MISMATCH, and the client is attached. */
int shmserve_recover(shmserve_client *client, uint64_t timeout_ns);

/** [S] State the time between two steps of this robot, in which it plays the rows of an action one after another; 0: none.
 *
 * A part of what `options.robot` states, and treated as that: a model whose contract has a `rate_hz` that differs by more
 * than 2 % is refused from then on (MISMATCH). ARGUMENT if `options.robot` states another rate. A client that is not
 * attached states it when it is. UNAVAILABLE: the daemon did not answer within `timeout_ns`, and each reply is withheld
 * until it was compared. ActionChunks of shmserve_action_chunks.hpp calls this. */
int shmserve_state_period(shmserve_client *client, uint64_t step_ns, uint64_t timeout_ns);

/** [S] Give the channel back and free everything, schemas and texts included. NULL is allowed; a forked child frees its
 * copy. */
void shmserve_close(shmserve_client *client);

/** [R] The text of the latest status of this client that was not OK; "" if there is none. Valid until its next call.
 * NULL: of this thread's latest `shmserve_open` that failed, also after its client was closed. Valid until the next one
 * that fails. */
const char *shmserve_last_error(const shmserve_client *client);

/** [R] OK while the daemon holds the channel, else RESTARTED or EVICTED. One system call, no wait. */
int shmserve_alive(shmserve_client *client);

/** [R] Descriptors for poll or epoll, of which each is -1 if there is none: `*reply_fd` becomes readable when a reply
 * may have come (transport `sealed` only; look with `shmserve_wait` and 0, which empties it, and poll again after
 * TIMEOUT), `*lease_fd` hangs up (EPOLLRDHUP) when the daemon goes away. Of a robot that states something a withheld reply
 * makes neither of them readable: look each few milliseconds while a request is in flight. Valid until the next [S]
 * call. */
int shmserve_pollable(const shmserve_client *client, int *reply_fd, int *lease_fd);

/** [R] Whether the policy keeps state: 1 or 0; -1: not known yet. A request that a restart cut off may be sent again if
 * this is 0, or if it is harmless to run it twice. */
int shmserve_is_stateful(const shmserve_client *client);

/** [R] Counts; `size` is sizeof(shmserve_stats). */
void shmserve_get_stats(const shmserve_client *client, shmserve_stats *stats, size_t size);

/** [S] The daemon's description of itself and its model, as JSON: service, state, epoch, model (null until one is
 * ready; its contract is in it). Writes at most `*room` bytes with the NUL, and gives back in `*room` how many it
 * takes; 65,536 are always enough. RESIZE_REQUIRED: there was too little room. */
int shmserve_describe(shmserve_client *client, char *json, size_t *room, uint64_t timeout_ns);

/* --- Structures ---------------------------------------------------------------------------- */

/** [S] Declare the structure of an observation, once; the client keeps it until it is closed. The same structure again
 * gives the same schema, with the sizes of the latest call.
 *
 * MISMATCH: it is not what the model was declared to take (entries that the model does not know are ignored). ARGUMENT:
 * an entry is not one; the text names it. While the service has no model yet, nothing is compared. */
int shmserve_declare(shmserve_client *client, const shmserve_entry *entries, size_t count,
                     const shmserve_schema **schema);

/** [S] Declare what the model was declared to take (its contract), with its sizes: a program then writes no path twice.
 * UNAVAILABLE: the service has no model yet. MISMATCH: its model declares nothing, or something that has no safe form.
 */
int shmserve_declare_as_model(shmserve_client *client, const shmserve_schema **schema);

/** [R] The entries, in the order in which they were declared; of a reply in the order of its tree, containers without
 * entries of their own and lists and tuples included. */
size_t shmserve_entries(const shmserve_schema *schema, const shmserve_entry **entries);

/** [R] The number of sizes that a request of this structure has. */
size_t shmserve_sizes(const shmserve_schema *schema);

/** [R] The index of the entry at a path; -1 if there is none. Compares texts: look up once, and keep the index. */
int shmserve_find(const shmserve_schema *schema, const char *path);

/** [R] Bytes of one item of a dtype; 0 for a number that is none. */
size_t shmserve_dtype_bytes(enum shmserve_dtype dtype);

/* --- Asking ---------------------------------------------------------------------------- */

/** [R] Lend the next free slot, laid out for these sizes: `sizes` has `shmserve_sizes(schema)` of them, in the order of
 * the entries; NULL: those of the declared shapes. The memory of each entry is in `(*request)->places`, its contents
 * are arbitrary; a camera driver may write there. The request is valid until it is published or given back.
 *
 * RESIZE_REQUIRED: these sizes need a larger slot. EXHAUSTED: no slot is free. MISMATCH: a size is not the declared
 * one, or the model states something else than `options.robot`; the daemon is asked again after 0.1 s, and not waited
 * for. RESTARTED. */
int shmserve_loan(shmserve_client *client, const shmserve_schema *schema, const uint64_t *sizes,
                  const shmserve_request **request);

/** [R] Send a request that was on loan. Its memory belongs to the service until the reply; it must not be written to.
 */
int shmserve_publish(shmserve_client *client, shmserve_sequence sequence, const shmserve_terms *terms);

/** [R] End a loan that is not sent. */
int shmserve_give_back(shmserve_client *client, shmserve_sequence sequence);

/** [R] Say that a request follows within this time (0: at once): wakes a sleeping engine, and touches the slot. */
int shmserve_expect(shmserve_client *client, uint64_t within_ns);

/** [R] Withdraw a request that no engine has taken. OK: it never runs, and `shmserve_wait` gives CANCELLED, once, or ENDED
 * after its slot was needed. RUNNING: an engine has taken it, and `shmserve_wait` gives its reply; that is CANCELLED if
 * the engine took it in this very moment and does not run it. ENDED: it is answered. */
int shmserve_cancel(shmserve_client *client, shmserve_sequence sequence);

/** [R] The caller waits for this request no longer: it is withdrawn if it has not begun, and its reply is discarded. */
int shmserve_abandon(shmserve_client *client, shmserve_sequence sequence);

/** [R] Tell the policy that this client begins a new episode, in the order of its requests; returns once the policy
 * has. At the deadline it is abandoned (TIMEOUT). 0: no deadline. */
int shmserve_reset(shmserve_client *client, uint64_t deadline_ns);

/* --- The reply ---------------------------------------------------------------------------- */

/** [R] Wait for the reply until `until_ns`; 0: look, and do not wait. Returns its status. A program that only looks
 * notices the daemon's end as well: a look without a reply asks for it, if the last time was 50 ms ago.
 *
 * OK: the reply is read in its slot, until `shmserve_release`. Other statuses of an engine end the request; `*reply`
 * has what is known of it, until the next call. TIMEOUT leaves the request in flight. RESIZE_REQUIRED: the reply waits
 * for a larger slot, or has a structure that is larger than any before. A reply that cannot be read (sizes, offsets or
 * metadata that contradict its slot) is PROTOCOL, and nothing outside the slot is read. `reply` may be NULL if only the
 * status matters; the slot is then released.
 *
 * With `options.robot` the first reply of another model version is withheld until the daemon has compared that model:
 * this call asks it, within `until_ns`, and TIMEOUT leaves the reply withheld. Then MISMATCH, which ends the request,
 * or OK. This takes a few more system calls and sleeps, once for each version, and allocates nothing. */
int shmserve_wait(shmserve_client *client, shmserve_sequence sequence, uint64_t until_ns, const shmserve_reply **reply);

/** [R] The reply was read: its slot is free for another request, and its memory must not be read again. */
int shmserve_release(shmserve_client *client, shmserve_sequence sequence);

/** [R] All in one, with copies: lend, copy `values[i]` for each entry (NULL for containers and constants), publish,
 * wait until the deadline of `terms`, copy the entries of the reply that `outputs` names, release. At the deadline the
 * request is abandoned (TIMEOUT), and so it is where its reply needs a larger slot (RESIZE_REQUIRED: after
 * shmserve_recover the same call sends it again). MISMATCH: an output is not in the reply, or of another kind or dtype,
 * or has too little room. */
int shmserve_infer(shmserve_client *client, const shmserve_schema *schema, const uint64_t *sizes,
                   const void *const *values, const shmserve_terms *terms, shmserve_output *outputs,
                   size_t outputs_count);

#ifdef __cplusplus
}
#endif

#endif
