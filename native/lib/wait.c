/* Waiting for a reply: poll for as long as it is likely soon, then sleep at the doorbell, as client/reply_waiter.py.
 * [R]. */

#include "client.h"
#include "core/clock.h"
#include "core/doorbell.h"

#include <poll.h>
#include <string.h>
#include <unistd.h>

static void take_tokens(const Channel *channel)
{
    char tokens[4096];
    if (channel->reply_bell != NULL)
        (void)doorbell_try_take(channel->reply_bell);
    else
        (void)read(channel->reply_pipe, tokens, sizeof tokens);
}

/* Sleep until a token came (and take it), the daemon went away or it is `until_ns`; whether there was a token. */
static bool sleep_until(const shmserve_client *client, uint64_t until_ns)
{
    const Channel *channel = &client->channel;
    if (channel->reply_bell != NULL)
        return doorbell_wait(channel->reply_bell, until_ns) > 0;
    uint64_t now_ns = monotonic_ns(), left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
    struct timespec left = {.tv_sec = (time_t)(left_ns / 1000000000u), .tv_nsec = (long)(left_ns % 1000000000u)};
    struct pollfd polled[] = {{.fd = channel->reply_pipe, .events = POLLIN},
                              {.fd = client->lease, .events = POLLRDHUP}};
    if (ppoll(polled, 2, &left, NULL) <= 0 || !polled[0].revents)
        return false;
    take_tokens(channel);
    return true;
}

/* Wait until the engine's count of replies is not the one that was seen, or a bounded time. */
static void wait_at_doorbell(shmserve_client *client, uint64_t seen, uint64_t until_ns)
{
    Channel *channel = &client->channel;
    CounterLine *line = channel->requests.ring.line;
    SpinClock clock = {.now_ns = monotonic_ns()};
    uint64_t began_ns = clock.now_ns;
    WatchSet set;
    set.count = 1;
    set.copiers_count = 0;
    set.watches[0] = (Watch){.line = channel->replies.ring.line, .last_seen = seen};
    /* While the engine is busy: learn from the last wait, and take the token that it left, which would wake this one.
     * If that is this reply's already, its counter has moved. */
    int64_t last_ns = client->waited_ns;
    client->waited_ns = 0;
    if (last_ns)
        spin_budget_waited(&client->budget, (uint64_t)(last_ns < 0 ? -last_ns : last_ns));
    if (last_ns < 0)
        take_tokens(channel);
    uint64_t spin_ns = client->budget.ns, left_ns = until_ns > began_ns ? until_ns - began_ns : 0;
    uint64_t spin_until_ns = began_ns + (spin_ns < left_ns ? spin_ns : left_ns);
    int found = has_moved(&set.watches[0]) ? 0 : NONE_MOVED;
    while (found == NONE_MOVED)
        found = spin_slice(&set, began_ns, spin_until_ns, &clock, false);
    if (found >= 0) {
        client->waited_ns = -(int64_t)spun_ns(&clock, began_ns);
        return;
    }
    uint64_t now_ns = monotonic_ns();
    note_asleep(line);
    if (now_ns < until_ns &&
        sleep_until(client, until_ns - now_ns > LONGEST_WAIT_NS ? now_ns + LONGEST_WAIT_NS : until_ns))
        client->waited_ns = (int64_t)(monotonic_ns() - began_ns);
    note_awake(line);
}

static int timed_out(shmserve_client *client, shmserve_sequence sequence, uint64_t waited_ns)
{
    return fail(client, SHMSERVE_TIMEOUT,
                "no reply from '%s' to request %llu within %.3g s: wait again, or call shmserve_abandon (a late one is "
                "discarded)",
                client->service, (unsigned long long)number_of(sequence), (double)waited_ns / 1e9);
}

/* The request was withdrawn: its slot is free once the engine has answered. */
static int cancelled(shmserve_client *client, Slot *slot)
{
    slot->state = slot->is_gone ? SLOT_FREE : SLOT_ABANDONED;
    client->abandoned_count += !slot->is_gone;
    return fail(client, SHMSERVE_CANCELLED, "request %llu to '%s' was cancelled before it ran",
                (unsigned long long)number_of(slot->sequence), client->service);
}

/* Wait until the head of the reply is copied. */
static int await_head(shmserve_client *client, const Slot *slot, uint64_t until_ns, uint64_t words[REPLY_WORDS])
{
    const Ring *replies = &client->channel.replies.ring;
    const ReplyHead *head = ring_head(replies, slot->wire);
    uint64_t began_ns = 0;
    /* Before the look, so that no reply is missed: a caller's epoll would report them for ever. */
    if (!until_ns && client->channel.reply_pipe >= 0)
        take_tokens(&client->channel);
    for (;;) {
        /* ORDER: the counter before the sequence, so that a reply which is counted is found, or it is missed later;
         * pairs with ring_complete. */
        uint64_t seen = load_acquire(&replies->line->counter);
        if (ring_copy_reply(head, slot->wire, words))
            return SHMSERVE_OK;
        uint64_t now_ns = monotonic_ns();
        /* After each sleep; and where a program only looks, one look in each LONGEST_WAIT_NS. */
        if (began_ns || (now_ns >= until_ns && now_ns - client->looked_ns >= LONGEST_WAIT_NS)) {
            client->looked_ns = now_ns;
            if (is_peer_closed(client->lease))
                return ring_copy_reply(head, slot->wire, words) ? SHMSERVE_OK : note_lost(client);
        }
        began_ns = began_ns ? began_ns : now_ns;
        if (now_ns >= until_ns)
            return timed_out(client, slot->sequence, now_ns - began_ns);
        wait_at_doorbell(client, seen, until_ns);
    }
}

EXPORTED int shmserve_wait(shmserve_client *client, shmserve_sequence sequence, uint64_t until_ns,
                           const shmserve_reply **reply)
{
    uint64_t words[REPLY_WORDS];
    Slot *slot = slot_of_sequence(client, sequence);
    if (reply != NULL)
        *reply = NULL;
    int status = check_usable(client);
    bool is_lost = status == SHMSERVE_RESTARTED || status == SHMSERVE_EVICTED;
    if (status != SHMSERVE_OK && !(is_lost && client->lease >= 0))
        return status;
    if (slot == NULL || slot->state == SLOT_LOANED || slot->state == SLOT_ABANDONED)
        return fail(client, SHMSERVE_ENDED, "no request %llu of '%s' is in flight",
                    (unsigned long long)number_of(sequence), client->service);
    if (slot->state == SLOT_CANCELLED)
        return cancelled(client, slot);
    if (slot->state == SLOT_DEFERRED)
        return is_lost ? status
                       : fail(client, SHMSERVE_RESIZE_REQUIRED,
                              "a reply of '%s' needs larger slots: call shmserve_recover, then wait for the same "
                              "request again",
                              client->service);
    if (slot->state == SLOT_IN_FLIGHT) {
        /* Replies that a daemon gave before it went away are still there. */
        if (is_lost && !ring_copy_reply(ring_head(&client->channel.replies.ring, slot->wire), slot->wire, words))
            return status;
        if (!is_lost && (status = await_head(client, slot, until_ns, words)) != SHMSERVE_OK)
            return status;
        if (words[REPLY_STATUS] == STATUS_OK && !robot_agrees(client, words[REPLY_VERSION]) &&
            (status = robot_settle(client, slot, words[REPLY_VERSION], until_ns)) != SHMSERVE_OK)
            return status;
        if ((status = read_reply(client, slot, words)) == SHMSERVE_RESIZE_REQUIRED || status == SHMSERVE_EXHAUSTED)
            return status;
    }
    else
        status = slot->reply.status; /* it is held already */
    if (reply != NULL)
        *reply = &slot->reply;
    else if (slot->state == SLOT_HELD)
        (void)shmserve_release(client, sequence);
    return status;
}
