/** @file
 * C++17 over libshmserve (shmserve.h): a client, loans and replies that are given back by leaving a block, typed
 * spans.
 *
 *     shmserve::Options options;
 *     options.service = "arm";
 *     auto client = shmserve::Client::open(options, 10'000'000'000).value();
 *     auto schema = client.declare({shmserve::array<float>("joints", {6})}).value();
 *     auto loan = client.loan(schema);                                 // [R] from here
 *     if (loan && loan->copy("joints", joints, 6)) {
 *         auto reply = loan->ask(shmserve::now_ns() + 15'000'000);     // publishes and waits
 *         if (reply)
 *             if (auto action = reply->span<float>("action"))
 *                 move(*action);
 *     }
 *
 * [S] and [R] mean what they mean in shmserve.h. No [R] call throws; `Result::value`, for set-up, does. Nothing copies:
 * every handle can only be moved. One client, with its loans and replies, serves one thread at a time. docs/how-to/c-client.md
 * is the guide; shmserve_action_chunks.hpp plays the action chunks of a policy.
 */

#ifndef SHMSERVE_HPP
#define SHMSERVE_HPP

#include <shmserve.h>

#include <shmserve_entries.hpp>
#include <shmserve_result.hpp>
#include <shmserve_span.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace shmserve {

namespace detail {

/** The client, as long as a handle of it lives. */
struct Connection {
    shmserve_client *client = nullptr;
    int opened = SHMSERVE_OK; /**< how shmserve_open ended */
    char text[768] = "";

    Connection() = default;
    Connection(const Connection &) = delete;
    Connection &operator=(const Connection &) = delete;
    ~Connection() { shmserve_close(client); }

    Error last(int status) const noexcept { return {static_cast<Status>(status), shmserve_last_error(client)}; }
    Result<void> ended(int status) const noexcept { return status == SHMSERVE_OK ? Result<void>() : last(status); }
    template <class... Values> Error mismatch(const char *format, Values... values) noexcept
    {
        (void)std::snprintf(text, sizeof text, format, values...);
        return {Status::mismatch, text};
    }
};
using Shared = std::shared_ptr<Connection>;

} // namespace detail

/** A typed entry by its path, which is looked up once and checked at each use. `path` must outlive it. `count`: items
 * that it must have. Works on loans and replies alike. */
template <class T> class Field {
  public:
    explicit constexpr Field(const char *path, std::uint64_t count = any_count) noexcept : path_(path), count_(count) {}

    /** [R] As it was given. */
    const char *path() const noexcept { return path_; }

    /** [R] The items of this entry among the places of a structure. */
    template <class Item, class Place>
    Result<span<Item>> in(detail::Connection &connection, const shmserve_schema *schema, const Place *places) noexcept
    {
        const shmserve_entry *entries;
        std::size_t entries_count = shmserve_entries(schema, &entries);
        if (index_ < 0 || static_cast<std::size_t>(index_) >= entries_count ||
            std::strcmp(entries[index_].path, path_) != 0)
            index_ = shmserve_find(schema, path_);
        if (index_ < 0)
            return connection.mismatch("there is no entry '%.200s': compare with shmserve_entries", path_);
        const shmserve_entry &entry = entries[index_];
        const Place &place = places[index_];
        if (!detail::fits<T>(entry) || place.data == nullptr)
            return connection.mismatch("entry '%.200s' has kind %d and dtype %d; the type of its span has dtype %d",
                                       path_, static_cast<int>(entry.kind), static_cast<int>(entry.dtype),
                                       detail::dtype_number<T>);
        if (place.bytes % sizeof(T) != 0 || (count_ != any_count && place.bytes / sizeof(T) != count_))
            return connection.mismatch("entry '%.200s' has %llu bytes; %llu items of %llu bytes were expected", path_,
                                       static_cast<unsigned long long>(place.bytes),
                                       static_cast<unsigned long long>(count_),
                                       static_cast<unsigned long long>(sizeof(T)));
        return span<Item>(static_cast<Item *>(place.data), static_cast<std::size_t>(place.bytes / sizeof(T)));
    }

  private:
    const char *path_;
    std::uint64_t count_;
    int index_ = -1;
};

/** A reply that is read in its slot, which leaving the block releases. */
class Reply {
  public:
    Reply(detail::Shared connection, const shmserve_reply *reply) noexcept
        : connection_(std::move(connection)), reply_(reply), sequence_(reply->sequence)
    {
    }
    Reply(Reply &&other) noexcept
        : connection_(std::move(other.connection_)), reply_(std::exchange(other.reply_, nullptr)),
          sequence_(other.sequence_)
    {
    }
    Reply &operator=(Reply &&other) noexcept
    {
        release();
        connection_ = std::move(other.connection_);
        reply_ = std::exchange(other.reply_, nullptr);
        sequence_ = other.sequence_;
        return *this;
    }
    ~Reply() { release(); }

    /** [R] The items of one entry, in the slot itself. A reply's bools are read as std::uint8_t. */
    template <class T> Result<shmserve::span<const T>> span_of(Field<T> &field) const noexcept
    {
        static_assert(!std::is_same_v<T, bool>, "the engine's bytes may be other than 0 and 1: read std::uint8_t");
        return field.template in<const T>(*connection_, reply_->schema, reply_->views);
    }
    template <class T>
    Result<shmserve::span<const T>> span(const char *path, std::uint64_t count = any_count) const noexcept
    {
        Field<T> field(path, count);
        return span_of(field);
    }
    /** [R] One int, float, bool, numpy scalar, or array of one item. */
    template <class T> Result<T> get(const char *path) const noexcept
    {
        auto items = span<T>(path, 1);
        if (!items)
            return items.error();
        return T((*items)[0]);
    }
    /** [R] A str, which is not checked to be UTF-8. */
    Result<std::string_view> text(const char *path) const noexcept
    {
        auto items = span<char>(path);
        if (!items)
            return items.error();
        return std::string_view(items->data(), items->size());
    }
    /** [R] Versions, durations, shapes. */
    const shmserve_reply &info() const noexcept { return *reply_; }
    /** [R] Give the slot back early; do not read this reply afterwards. */
    void release() noexcept
    {
        if (std::exchange(reply_, nullptr) != nullptr)
            (void)shmserve_release(connection_->client, sequence_);
    }

  private:
    detail::Shared connection_;
    const shmserve_reply *reply_;
    shmserve_sequence sequence_;
};

/** A request in flight; leaving the block abandons it. */
class Pending {
  public:
    Pending(detail::Shared connection, shmserve_sequence sequence) noexcept
        : connection_(std::move(connection)), sequence_(sequence)
    {
    }
    Pending(Pending &&other) noexcept
        : connection_(std::move(other.connection_)), sequence_(std::exchange(other.sequence_, 0))
    {
    }
    Pending &operator=(Pending &&other) noexcept
    {
        abandon();
        connection_ = std::move(other.connection_);
        sequence_ = std::exchange(other.sequence_, 0);
        return *this;
    }
    ~Pending() { abandon(); }

    /** [R] Wait for the reply until then; 0: look. After timeout, resize_required and exhausted it is still in flight.
     */
    Result<Reply> wait(std::uint64_t until_ns) noexcept
    {
        const shmserve_reply *reply;
        int status = shmserve_wait(connection_->client, sequence_, until_ns, &reply);
        if (status != SHMSERVE_TIMEOUT && status != SHMSERVE_RESIZE_REQUIRED && status != SHMSERVE_EXHAUSTED)
            sequence_ = 0;
        if (status != SHMSERVE_OK)
            return connection_->last(status);
        return Reply(connection_, reply);
    }
    /** [R] Withdraw it if no engine has taken it: ok, running or ended. */
    Result<void> cancel() noexcept { return connection_->ended(shmserve_cancel(connection_->client, sequence_)); }
    /** [R] Discard the reply: no caller waits for it. */
    void abandon() noexcept
    {
        if (sequence_ != 0)
            (void)shmserve_abandon(connection_->client, std::exchange(sequence_, 0));
    }
    /** [R] Its name in the calls of shmserve.h. */
    shmserve_sequence sequence() const noexcept { return sequence_; }

  private:
    detail::Shared connection_;
    shmserve_sequence sequence_;
};

/** A request that is filled; leaving the block gives it back, unless it was published. */
class Loan {
  public:
    Loan(detail::Shared connection, const shmserve_request *request) noexcept
        : connection_(std::move(connection)), request_(request), sequence_(request->sequence)
    {
    }
    Loan(Loan &&other) noexcept
        : connection_(std::move(other.connection_)), request_(std::exchange(other.request_, nullptr)),
          sequence_(other.sequence_)
    {
    }
    Loan &operator=(Loan &&other) noexcept
    {
        give_back();
        connection_ = std::move(other.connection_);
        request_ = std::exchange(other.request_, nullptr);
        sequence_ = other.sequence_;
        return *this;
    }
    ~Loan() { give_back(); }

    /** [R] The items of one entry, in the slot itself; their contents are arbitrary. */
    template <class T> Result<shmserve::span<T>> span_of(Field<T> &field) noexcept
    {
        return field.template in<T>(*connection_, request_->schema, request_->places);
    }
    template <class T> Result<shmserve::span<T>> span(const char *path, std::uint64_t count = any_count) noexcept
    {
        Field<T> field(path, count);
        return span_of(field);
    }
    /** [R] Copy all items of one entry. */
    template <class T> Result<void> copy(const char *path, const T *items, std::size_t count) noexcept
    {
        auto into = span<T>(path, count);
        if (!into)
            return into.error();
        if (count != 0)
            std::memcpy(static_cast<void *>(into->data()), items, count * sizeof(T));
        return {};
    }
    Result<void> copy(const char *path, std::string_view text) noexcept { return copy(path, text.data(), text.size()); }
    /** [R] Write one int (std::int64_t), float (double), bool (std::int64_t), numpy scalar, or array of one item. */
    template <class T> Result<void> set(const char *path, T value) noexcept { return copy(path, &value, 1); }

    /** [R] Send it; do not write to its memory afterwards. */
    Result<Pending> publish(const shmserve_terms &terms = {}) noexcept
    {
        int status = shmserve_publish(connection_->client, sequence_, &terms);
        if (status != SHMSERVE_OK)
            return connection_->last(status);
        request_ = nullptr;
        return Pending(connection_, sequence_);
    }
    /** [R] Send it, and wait until the deadline, which the engine knows as well; then it is abandoned. */
    Result<Reply> ask(std::uint64_t deadline_ns, shmserve_terms terms = {}) noexcept
    {
        terms.deadline_ns = deadline_ns;
        auto pending = publish(terms);
        if (!pending)
            return pending.error();
        return pending->wait(deadline_ns);
    }
    /** [R] Do not send it. */
    void give_back() noexcept
    {
        if (std::exchange(request_, nullptr) != nullptr)
            (void)shmserve_give_back(connection_->client, sequence_);
    }

  private:
    detail::Shared connection_;
    const shmserve_request *request_;
    shmserve_sequence sequence_;
};

/** The structure of an observation, which its client keeps. */
class Schema {
  public:
    explicit Schema(const shmserve_schema *schema) noexcept : schema_(schema) {}

    /** [R] For the calls of shmserve.h. */
    const shmserve_schema *get() const noexcept { return schema_; }
    /** [R] The entries, in the order of their declaration. */
    span<const shmserve_entry> entries() const noexcept
    {
        const shmserve_entry *first;
        std::size_t count = shmserve_entries(schema_, &first);
        return {first, count};
    }
    /** How many sizes a request of it has. */
    std::size_t sizes() const noexcept { return shmserve_sizes(schema_); }

  private:
    const shmserve_schema *schema_;
};

/** shmserve_options with its defaults. Its texts are copied by Client::open. */
struct Options : shmserve_options {
    Options() noexcept { shmserve_default_options(this, sizeof(shmserve_options)); }

    /** In place of `shmserve_options::robot`; empty: nothing is stated. */
    std::string robot;
};

/** These options are for Client::open: shmserve_open would not see the robot's statement. */
int shmserve_open(shmserve_client **client, const Options *options, std::uint64_t timeout_ns) = delete;

/** A connection to one service. */
class Client {
  public:
    Client(Client &&) noexcept = default;
    Client &operator=(Client &&) noexcept = default;

    /** [S] Attach to the service within this time. */
    static Result<Client> open(const Options &options, std::uint64_t timeout_ns)
    {
        auto made = make(options, timeout_ns);
        if (!made || made->connection_->opened == SHMSERVE_OK)
            return made;
        return not_opened(made->connection_->opened);
    }
    /** [S] A client that attaches later (`recover`, or ActionChunks): for a robot that may start before its daemon. */
    static Result<Client> open_later(const Options &options) { return make(options, 0); }

    /** [S] Make the client usable again after restarted, stopping, evicted and resize_required, as shmserve_recover. */
    Result<void> recover(std::uint64_t timeout_ns) noexcept { return ended(shmserve_recover(raw(), timeout_ns)); }
    /** [R] ok while the daemon holds the channel. */
    Result<void> alive() noexcept { return ended(shmserve_alive(raw())); }
    /** [S] The structure of an observation; texts are copied. */
    Result<Schema> declare(span<const shmserve_entry> entries) noexcept
    {
        const shmserve_schema *schema;
        int status = shmserve_declare(raw(), entries.data(), entries.size(), &schema);
        return made(status, schema);
    }
    Result<Schema> declare(std::initializer_list<shmserve_entry> entries) noexcept
    {
        return declare(span<const shmserve_entry>(entries.begin(), entries.size()));
    }
    /** [S] What the model was declared to take. */
    Result<Schema> declare_as_model() noexcept
    {
        const shmserve_schema *schema;
        int status = shmserve_declare_as_model(raw(), &schema);
        return made(status, schema);
    }
    /** [R] The next free slot, laid out for the declared sizes. */
    Result<Loan> loan(Schema schema) noexcept { return lend(schema, nullptr); }
    /** [R] The same for other sizes, in the order of the entries: mismatch if they are not `schema.sizes()`. */
    Result<Loan> loan(Schema schema, span<const std::uint64_t> sizes) noexcept
    {
        if (sizes.size() != schema.sizes())
            return connection_->mismatch("%llu sizes were given; the structure has %llu",
                                         static_cast<unsigned long long>(sizes.size()),
                                         static_cast<unsigned long long>(schema.sizes()));
        return lend(schema, sizes.data());
    }
    /** [R] A request follows within this time: wakes a sleeping engine. */
    Result<void> expect(std::uint64_t within_ns) noexcept { return ended(shmserve_expect(raw(), within_ns)); }
    /** [R] A new episode begins; returns once the policy knows, or at the deadline (0: none). */
    Result<void> reset(std::uint64_t deadline_ns) noexcept { return ended(shmserve_reset(raw(), deadline_ns)); }
    /** [S] The daemon's description of itself and its model, as JSON. */
    Result<std::string> describe(std::uint64_t timeout_ns)
    {
        std::string json(65536, '\0');
        std::size_t room = json.size();
        int status = shmserve_describe(raw(), json.data(), &room, timeout_ns);
        if (status != SHMSERVE_OK)
            return connection_->last(status);
        json.resize(std::strlen(json.c_str()));
        return json;
    }
    /** [R] Counts since it was opened. */
    shmserve_stats stats() const noexcept
    {
        shmserve_stats counts;
        shmserve_get_stats(raw(), &counts, sizeof counts);
        return counts;
    }
    /** [R] The C client, for every other call of shmserve.h. */
    shmserve_client *raw() const noexcept { return connection_->client; }
    const detail::Shared &connection() const noexcept { return connection_; }

  private:
    explicit Client(detail::Shared connection) noexcept : connection_(std::move(connection)) {}

    static Error not_opened(int status) noexcept { return {static_cast<Status>(status), shmserve_last_error(nullptr)}; }
    static Result<Client> make(const Options &options, std::uint64_t timeout_ns)
    {
        auto connection = std::make_shared<detail::Connection>();
        shmserve_options given = options;
        if (!options.robot.empty())
            given.robot = options.robot.c_str();
        connection->opened = ::shmserve_open(&connection->client, &given, timeout_ns);
        if (connection->client == nullptr)
            return not_opened(connection->opened);
        return Client(std::move(connection));
    }
    Result<void> ended(int status) const noexcept { return connection_->ended(status); }
    Result<Schema> made(int status, const shmserve_schema *schema) const noexcept
    {
        if (status != SHMSERVE_OK)
            return connection_->last(status);
        return Schema(schema);
    }
    Result<Loan> lend(Schema schema, const std::uint64_t *sizes) noexcept
    {
        const shmserve_request *request;
        int status = shmserve_loan(raw(), schema.get(), sizes, &request);
        if (status != SHMSERVE_OK)
            return connection_->last(status);
        return Loan(connection_, request);
    }

    detail::Shared connection_;
};

} // namespace shmserve

#endif
