/** @file
 * Rules of action chunks: which row of which chunk a control step executes, and what it does without one.
 *
 * They are those of client/action_chunks.py, which a test compares step by step. Time and the service are behind a
 * Port; the one of a real service is in shmserve_action_chunks.hpp. After the constructor nothing here allocates, locks
 * or throws.
 */

#ifndef SHMSERVE_CHUNK_RULES_HPP
#define SHMSERVE_CHUNK_RULES_HPP

#include <shmserve_chunk_options.hpp>
#include <shmserve_chunk_step.hpp>
#include <shmserve_result.hpp>
#include <shmserve_span.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace shmserve {

namespace detail {

/** Whether the service is away, so that another attempt needs a connection first. */
inline bool is_away(Status status) noexcept
{
    return status == Status::restarted || status == Status::unavailable || status == Status::evicted ||
           status == Status::stopping;
}

/** The row meant for that long after its observation: the nearest, so that jitter is harmless. */
inline std::int64_t row_due(std::int64_t elapsed_ns, std::int64_t period_ns) noexcept
{
    return elapsed_ns <= 0 ? 0 : (2 * elapsed_ns + period_ns) / (2 * period_ns);
}

constexpr std::uint64_t reconnect_ns = 20'000'000;    /**< the pause before the first attempt after a failure */
constexpr std::uint64_t furthest_ns = 10'000'000'000; /**< the furthest ahead that a request is announced */

} // namespace detail

template <class T, class Port> class BasicActionChunks {
  public:
    /** [S] `options` were checked by detail::fault_of. */
    BasicActionChunks(Port port, const ChunkOptions &options, RowFunction<T> function = nullptr)
        : port_(std::move(port)), options_(options), executable_(options.steps + options.overrun_steps),
          kept_(std::max<std::uint64_t>(executable_, options.chunk_rows)), function_(std::move(function)),
          last_(options.width), zeros_(options.width), row_(options.width)
    {
        for (Chunk *chunk : {&current_, &next_})
            chunk->rows.resize(static_cast<std::size_t>(kept_) * options.width);
        connected_ = port_.is_connected();
    }
    BasicActionChunks(BasicActionChunks &&) = default;

    /** [R] The action for now. `observe(loan)` fills the request, and is called only when one is sent; it does not
     * throw, and returns nothing, or a Result<void> whose error the step returns, as it returns an observation that
     * cannot be sent (mismatch, argument, too_large, forked). Any other failure is left to the fallback: the next step
     * requests again.
     */
    template <class Observe> Result<ActionStep<T>> step(Observe &&observe, const StepOptions &terms = {}) noexcept
    {
        std::uint64_t began_ns = port_.now_ns();
        std::uint64_t wait_ns = terms.max_wait_ns.value_or(options_.max_wait_ns);
        std::uint64_t until_ns = wait_ns > UINT64_MAX - began_ns ? UINT64_MAX : began_ns + wait_ns;
        std::uint64_t capture_ns = terms.capture_ns != 0 ? terms.capture_ns : began_ns;
        std::uint64_t failed_before = stats_.errors;
        tick_++;
        for (;;) {
            poll();
            std::int64_t row = select_row(port_.now_ns());
            /* After a failure in this step the next step requests again; after a reconnect, this one. */
            if (stats_.errors == failed_before || detail::is_away(error_)) {
                Result<void> requested = request_next(row, observe, terms, capture_ns);
                if (!requested)
                    return requested.error();
            }
            if (row >= 0) {
                expect_next(row);
                return execute(row);
            }
            if (!wait_for_progress(until_ns))
                return fall_back();
        }
    }

    /** [R] Forget every chunk and the last action, without a word to the policy and without waiting. */
    void forget() noexcept
    {
        current_.exists = next_.exists = has_last_ = false;
        error_ = Status::ok;
        if (in_flight_ && !is_discarded_) {
            if (!connecting_)
                port_.cancel();
            is_discarded_ = true;
        }
    }

    /** [R] Begin a new episode: forget, and reset the policy, which this waits for until the deadline. The chunks are
     * forgotten even if that fails; unavailable: the client is connecting, so the policy was not told. */
    Result<void> reset(std::uint64_t deadline_ns) noexcept
    {
        forget();
        if (connecting_) /* the client is not this thread's */
            return Error{Status::unavailable, text_of(Status::unavailable)};
        Result<void> ended = port_.reset(deadline_ns);
        if (detail::is_away(ended.status()))
            connected_ = false;
        return ended;
    }

    /** [R] Counts since the constructor. */
    const ChunkStats &stats() const noexcept { return stats_; }
    /** [R] The next chunk is requested this many steps before the current one ends: `prefetch`, or what was learned. */
    std::uint32_t lead() const noexcept
    {
        return options_.prefetch.value_or(
            static_cast<std::uint32_t>(std::min<std::int64_t>(delay_.rows(), options_.steps - 1)));
    }
    Port &port() noexcept { return port_; }

  private:
    struct Chunk {
        std::vector<T> rows;
        bool exists = false;
        bool is_continuous = true; /**< each step since its first row had an action of it */
        std::int64_t total = 0;    /**< rows that are kept */
        std::int64_t count = 0;    /**< of these, the ones that may be executed */
        std::uint64_t version = 0, number = 0, capture_ns = 0;
        std::int64_t tick = 0;  /* the step whose observation it answers */
        std::int64_t used = -1; /* the last row that was executed */
    };

    /* --- Requests --- */

    /** Request the next chunk if it is due and no request is in flight. */
    template <class Observe>
    Result<void> request_next(std::int64_t row, Observe &observe, const StepOptions &terms,
                              std::uint64_t capture_ns) noexcept
    {
        if (in_flight_ || connecting_ || next_.exists)
            return {};
        if (row >= 0 && row < static_cast<std::int64_t>(options_.steps) - lead())
            return {};
        if (!connected_) {
            connecting_ = true;
            port_.connect(error_ == Status::ok ? 0 : detail::reconnect_ns);
            return {};
        }
        std::uint64_t useful_ns = executable_ * options_.period_ns;
        Result<void> sent = port_.submit(observe, terms.sizes, capture_ns, useful_ns,
                                         row < 0 ? Continuation<T>{} : rest(row, capture_ns));
        if (sent) {
            in_flight_ = true;
            capture_ns_ = capture_ns;
            asked_tick_ = tick_;
        }
        else if (sent.status() == Status::resize_required)
            connected_ = false; /* the channel grows in the background, and a later step asks again */
        else if (detail::is_away(sent.status()) || sent.status() == Status::exhausted)
            fail(sent.status(), sent.error().text);
        else
            return sent; /* a fault of this very observation: the caller's to correct */
        return {};
    }

    /** The rest of the current chunk; `row` is the one for now. */
    Continuation<T> rest(std::int64_t row, std::uint64_t capture_ns) noexcept
    {
        std::int64_t since = options_.period_ns == 0
                                 ? 0
                                 : detail::row_due(static_cast<std::int64_t>(port_.now_ns() - capture_ns),
                                                   static_cast<std::int64_t>(options_.period_ns));
        std::int64_t start = std::max<std::int64_t>(0, row - since);
        /** The next chunk takes over after `steps` rows, or when it arrives; no row is executed beyond `count`. */
        std::int64_t until = std::max(static_cast<std::int64_t>(options_.steps) - start, delay_.measured_rows());
        return {row_of(current_, start), static_cast<std::uint64_t>(current_.total - start),
                std::min(until, current_.count - start)};
    }

    /** Announce that the next step requests a chunk. */
    void expect_next(std::int64_t row) noexcept
    {
        if (in_flight_ || next_.exists || !connected_ || options_.period_ns == 0 ||
            options_.period_ns > detail::furthest_ns)
            return;
        if (row + 1 == static_cast<std::int64_t>(options_.steps) - lead())
            port_.expect(options_.period_ns);
    }

    /** Wait until the request in flight or the connection attempt ends; false: not by `until_ns`. */
    bool wait_for_progress(std::uint64_t until_ns) noexcept
    {
        if (connecting_)
            return port_.wait_connected(until_ns);
        return in_flight_ && port_.wait(until_ns);
    }

    /** Process the connection attempt and the request, if they have ended. */
    void poll() noexcept
    {
        if (connecting_) {
            Status ended = Status::ok;
            if (port_.is_connecting(ended)) {
                if (ended != Status::ok)
                    (void)note(ended, text_of(ended)); /* of the latest attempt */
                return;
            }
            connecting_ = false;
            if (!connected_)
                delay_.begin_connection();
            connected_ = ended == Status::ok;
            if (!connected_) {
                fail(ended, port_.text());
                if (in_flight_) { /* it waited for a larger slot, and gets none */
                    in_flight_ = is_discarded_ = false;
                    port_.release();
                }
            }
        }
        ChunkReply<T> reply;
        if (!in_flight_ || !port_.look(reply))
            return;
        if (reply.status == Status::resize_required) { /* it is still in flight, and waits for a larger slot */
            connected_ = false;
            connecting_ = true;
            port_.connect(0);
            return;
        }
        in_flight_ = false;
        if (std::exchange(is_discarded_, false))
            ; /* of the episode before */
        else if (reply.status != Status::ok)
            fail(reply.status, reply.text);
        else if (reply.count < options_.steps)
            fail(Status::mismatch, "the chunk has fewer rows than steps");
        else
            take(reply);
        port_.release();
    }

    void take(const ChunkReply<T> &reply) noexcept
    {
        stats_.chunks++;
        error_ = Status::ok;
        if (current_.exists && current_.version != reply.version) {
            current_.exists = false; /* the plan of another model is not continued */
            stats_.version_changes++;
        }
        next_.exists = true;
        next_.is_continuous = true;
        next_.total = static_cast<std::int64_t>(std::min(reply.count, kept_));
        next_.count = static_cast<std::int64_t>(std::min(reply.count, executable_));
        next_.version = reply.version;
        next_.number = stats_.chunks;
        next_.capture_ns = capture_ns_;
        next_.tick = asked_tick_;
        next_.used = -1;
        std::copy_n(reply.rows, static_cast<std::size_t>(next_.total) * options_.width, next_.rows.begin());
        delay_.add(row_now(next_, port_.now_ns()), reply.version);
    }

    Error note(Status status, const char *text) noexcept
    {
        error_ = status;
        (void)std::snprintf(error_text_.data(), error_text_.size(), "%s", text);
        return {status, error_text_.data()};
    }

    void fail(Status status, const char *text) noexcept
    {
        (void)note(status, text);
        stats_.errors++;
        if (detail::is_away(status))
            connected_ = false;
    }

    /* --- Actions --- */

    /** The row of current_ for now, or -1. */
    std::int64_t select_row(std::uint64_t now_ns) noexcept
    {
        std::int64_t index = current_.exists ? row_now(current_, now_ns) : static_cast<std::int64_t>(executable_);
        if (index < options_.steps)
            return index;
        if (next_.exists) {
            next_.exists = false;
            std::int64_t row = row_now(next_, now_ns);
            if (row >= next_.count) {
                stats_.late_chunks++;
                fail(Status::timeout,
                     "the chunk arrived past the time of its executable rows: request it earlier (prefetch), "
                     "execute more rows (steps, overrun_steps), or count steps (period_ns = 0)");
            }
            else if (current_.exists && std::exchange(current_.is_continuous, false) && !combine(index, row))
                fail(Status::mismatch, "the aggregate gave numbers that are not finite");
            else {
                std::swap(current_, next_);
                current_.exists = true;
                next_.exists = false;
                return row;
            }
        }
        return current_.exists && index < current_.count ? index : -1;
    }

    /** Combine, into next_, the rows of both chunks from now on: row `index` of current_ is for the time of row `row`.
     */
    bool combine(std::int64_t index, std::int64_t row) noexcept
    {
        if (options_.aggregate == Aggregate::latest)
            return true;
        for (; index < current_.total && row < next_.total; index++, row++) {
            const T *previous = row_of(current_, index);
            T *next = row_of(next_, row);
            if (options_.aggregate == Aggregate::own) {
                function_({previous, options_.width}, {next, options_.width}, row_);
                if constexpr (std::is_floating_point_v<T>)
                    if (!std::all_of(row_.begin(), row_.end(), [](T value) { return std::isfinite(value); }))
                        return false;
                std::copy(row_.begin(), row_.end(), next);
            }
            else
                std::transform(previous, previous + options_.width, next, next, detail::weighted<T>);
        }
        return true;
    }

    T *row_of(Chunk &chunk, std::int64_t index) const noexcept
    {
        return chunk.rows.data() + static_cast<std::size_t>(index) * options_.width;
    }

    std::int64_t row_now(const Chunk &chunk, std::uint64_t now_ns) const noexcept
    {
        std::int64_t due = options_.period_ns == 0
                               ? tick_ - chunk.tick
                               : detail::row_due(static_cast<std::int64_t>(now_ns - chunk.capture_ns),
                                                 static_cast<std::int64_t>(options_.period_ns));
        /* Never the same row twice: a loop that is a little fast must not apply an increment again. */
        return std::max(due, chunk.used + 1);
    }

    ActionStep<T> execute(std::int64_t index) noexcept
    {
        bool fresh = index < options_.steps;
        stats_.skipped += static_cast<std::uint64_t>(index - current_.used - 1);
        (fresh ? stats_.fresh : stats_.overrun)++;
        current_.used = index;
        last_capture_ns_ = current_.capture_ns;
        last_version_ = current_.version;
        last_number_ = current_.number;
        last_index_ = index;
        has_last_ = true;
        std::copy_n(row_of(current_, index), options_.width, last_.begin());
        return {last_,    fresh, fresh ? Source::chunk : Source::overrun, last_version_, last_number_, index,
                age_ns(), error_};
    }

    Result<ActionStep<T>> fall_back() noexcept
    {
        current_.is_continuous = false;
        std::int64_t age = age_ns();
        bool too_old = options_.max_age_ns && age > 0 && static_cast<std::uint64_t>(age) > *options_.max_age_ns;
        if (!has_last_ || *options_.fallback == Fallback::raise || too_old) {
            stats_.raised++;
            (void)std::snprintf(step_text_.data(), step_text_.size(), "%s; %s",
                                !has_last_ ? "no chunk has arrived yet"
                                : too_old  ? "the last action's observation is older than max_age_ns"
                                           : "no chunk has an action for this step",
                                reason());
            return Error{Status::no_fresh_action, step_text_.data()};
        }
        stats_.fallback++;
        if (*options_.fallback == Fallback::zero)
            return ActionStep<T>{zeros_, false, Source::zero, 0, last_number_, -1, age, error_};
        return ActionStep<T>{
            last_,         false,        *options_.fallback == Fallback::hold ? Source::hold : Source::repeat_last,
            last_version_, last_number_, last_index_,
            age,           error_};
    }

    const char *reason() const noexcept
    {
        if (error_ != Status::ok)
            return error_text_.data();
        if (in_flight_ && !is_discarded_)
            return "the next chunk was requested and has not arrived within max_wait_ns";
        return connecting_ ? "the client is connecting to the service" : "none was requested";
    }

    std::int64_t age_ns() noexcept { return static_cast<std::int64_t>(port_.now_ns() - last_capture_ns_); }

    Port port_;
    ChunkOptions options_;
    std::uint64_t executable_, kept_; /* rows of a chunk */
    RowFunction<T> function_;
    std::vector<T> last_, zeros_, row_;
    detail::ChunkDelay delay_;
    Chunk current_, next_;
    std::int64_t tick_ = 0, asked_tick_ = 0, last_index_ = -1;
    std::uint64_t capture_ns_ = 0, last_capture_ns_ = 0, last_version_ = 0, last_number_ = 0;
    bool in_flight_ = false, is_discarded_ = false; /**< in flight when reset was called: its reply is discarded */
    bool connected_ = false, connecting_ = false, has_last_ = false;
    Status error_ = Status::ok;
    /** As long as the longest text of the client, which lists each difference of a contract. */
    std::vector<char> error_text_ = std::vector<char>(16384), step_text_ = std::vector<char>(16512);
    ChunkStats stats_;
};

} // namespace shmserve

#endif
