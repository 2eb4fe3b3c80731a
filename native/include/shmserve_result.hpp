/** @file
 * Status, Error and Result: how a call of shmserve.hpp ended. */

#ifndef SHMSERVE_RESULT_HPP
#define SHMSERVE_RESULT_HPP

#include <shmserve.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <utility>
#include <variant>

namespace shmserve {

/** How a call ended: `enum shmserve_status`, and what only C++ has. */
enum class Status : int {
    ok = SHMSERVE_OK,
    resize_required = SHMSERVE_RESIZE_REQUIRED,
    expired = SHMSERVE_EXPIRED,
    cancelled = SHMSERVE_CANCELLED,
    superseded = SHMSERVE_SUPERSEDED,
    stale = SHMSERVE_STALE,
    rejected = SHMSERVE_REJECTED,
    failed = SHMSERVE_FAILED,
    engine_lost = SHMSERVE_ENGINE_LOST,
    stopping = SHMSERVE_STOPPING,
    timeout = SHMSERVE_TIMEOUT,
    exhausted = SHMSERVE_EXHAUSTED,
    restarted = SHMSERVE_RESTARTED,
    unavailable = SHMSERVE_UNAVAILABLE,
    foreign = SHMSERVE_FOREIGN,
    protocol = SHMSERVE_PROTOCOL,
    mismatch = SHMSERVE_MISMATCH,
    too_large = SHMSERVE_TOO_LARGE,
    argument = SHMSERVE_ARGUMENT,
    memory = SHMSERVE_MEMORY,
    evicted = SHMSERVE_EVICTED,
    ended = SHMSERVE_ENDED,
    running = SHMSERVE_RUNNING,
    forked = SHMSERVE_FORKED,
    no_fresh_action = -100 /**< ActionChunks: the policy has no action for this step, and the fallback gives none */
};

/** [R] What a status means and what to do; never null. */
inline const char *text_of(Status status) noexcept
{
    return status == Status::no_fresh_action
               ? "there is no action for this step: stop the robot as it stops without a policy"
               : shmserve_status_text(static_cast<int>(status));
}

/** [R] Now, CLOCK_MONOTONIC. */
inline std::uint64_t now_ns() noexcept { return shmserve_now_ns(); }

/** Why a call failed. `text` is valid until the next call of the same client, and never null. */
struct Error {
    Status status;
    const char *text;
};

/** A value or an Error, as std::expected of C++23. */
template <class T> class [[nodiscard]] Result {
  public:
    Result(T &&value) noexcept : held_(std::in_place_index<0>, std::move(value)) {}
    Result(const Error &error) noexcept : held_(std::in_place_index<1>, error) {}

    bool has_value() const noexcept { return held_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }
    /** Only where has_value(). */
    T &operator*() &noexcept { return *std::get_if<0>(&held_); }
    const T &operator*() const &noexcept { return *std::get_if<0>(&held_); }
    T &&operator*() &&noexcept { return std::move(*std::get_if<0>(&held_)); }
    T *operator->() noexcept { return std::get_if<0>(&held_); }
    const T *operator->() const noexcept { return std::get_if<0>(&held_); }
    /** Only where !has_value(). */
    const Error &error() const noexcept { return *std::get_if<1>(&held_); }
    Status status() const noexcept { return has_value() ? Status::ok : error().status; }
    /** [S] The value, or std::runtime_error with the text; without exceptions the program prints the text and aborts.
     */
    T value() &&
    {
        if (!has_value())
            fail();
        return std::move(**this);
    }

  private:
    [[noreturn]] void fail() const
    {
#ifdef __cpp_exceptions
        throw std::runtime_error(error().text);
#else
        (void)std::fprintf(stderr, "%s\n", error().text);
        std::abort();
#endif
    }

    std::variant<T, Error> held_;
};

/** Success, or an Error. */
template <> class [[nodiscard]] Result<void> {
  public:
    Result() noexcept : error_{Status::ok, ""} {}
    Result(const Error &error) noexcept : error_(error) {}

    bool has_value() const noexcept { return error_.status == Status::ok; }
    explicit operator bool() const noexcept { return has_value(); }
    const Error &error() const noexcept { return error_; }
    Status status() const noexcept { return error_.status; }

  private:
    Error error_;
};

} // namespace shmserve

#endif
