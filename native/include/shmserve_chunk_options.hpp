/** @file
 * Choices of ActionChunks: what a step does without an action, how overlapping rows combine, and when the next chunk is
 * requested; with the checks of these choices, and the delay that is learned.
 */

#ifndef SHMSERVE_CHUNK_OPTIONS_HPP
#define SHMSERVE_CHUNK_OPTIONS_HPP

#include <shmserve_span.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <type_traits>

namespace shmserve {

/** What a step gives where the policy has no action for it. Before the first chunk all four give
 * Status::no_fresh_action. */
enum class Fallback {
    hold,        /**< the last action, for ever: position control stands still */
    repeat_last, /**< the last action until its observation is max_age_ns old, then as raise */
    zero,        /**< zeros: velocity control stops */
    raise        /**< Status::no_fresh_action; nothing is thrown */
};

/** How the rows of the previous and of the next chunk for one step combine when the next one takes over. */
enum class Aggregate {
    latest,           /**< the next one's */
    weighted_average, /**< 0.3 of the previous and 0.7 of the next; of integers, as latest */
    own               /**< a RowFunction's */
};

/** Fills `row` from the rows of both chunks for one step, `width` values each. It does not throw. */
template <class T> using RowFunction = std::function<void(span<const T> previous, span<const T> next, span<T> row)>;

struct ChunkOptions {
    std::uint32_t steps = 0;          /**< rows of a chunk to execute before the next chunk takes over */
    /** Between two steps, by which rows are aligned; 0 counts steps instead. A model that states another `rate_hz` in its
     * contract is refused: Status::mismatch of each step. */
    std::uint64_t period_ns = 0;
    std::uint32_t width = 0;          /**< values of one row: all of its dimensions, multiplied */
    std::optional<Fallback> fallback; /**< must be chosen */
    std::optional<std::uint64_t> max_age_ns; /**< for Fallback::repeat_last, and no other */
    std::uint64_t max_wait_ns = 0;           /**< how long a step waits for a chunk where it has no action */
    /** Request the next chunk this many steps before the current one ends. Empty: as many as 95 % of the recent chunks
     * took from their observation to their arrival, steps - 1 at most. */
    std::optional<std::uint32_t> prefetch;
    std::uint32_t overrun_steps = 0; /**< further rows to execute while the next chunk is late */
    Aggregate aggregate = Aggregate::latest;
    std::uint32_t chunk_rows =
        0; /**< rows of a chunk that are kept, where more than steps + overrun_steps are needed */
    /** The structure has the entries `inference_delay`, an integer, and `prev_chunk_left_over`, an array of T with the
     * shape {any_count, width}, which ActionChunks fills for a policy that declares real-time chunking. */
    bool real_time_chunking = false;
    const char *actions = "actions"; /**< the path of the chunk in the model's result: an array, the rows first */
};

/** Of one step; zeros are the defaults. */
struct StepOptions {
    std::uint64_t capture_ns = 0;             /**< when the observation was captured; 0: now */
    std::optional<std::uint64_t> max_wait_ns; /**< instead of that of ChunkOptions */
    span<const std::uint64_t> sizes;          /**< of the observation; empty: the declared ones */
};

namespace detail {

/** Null, or why the options make no sense. */
inline const char *fault_of(const ChunkOptions &options, bool has_function = false) noexcept
{
    if (options.steps < 1 || options.width < 1)
        return "steps and width must be 1 or more";
    if (options.prefetch.value_or(0) >= options.steps)
        return "prefetch must be less than steps";
    if (options.period_ns != 0 && (options.period_ns < 1000 || options.period_ns > 3'600'000'000'000))
        return "period_ns must be 1,000 ns to one hour, or 0 to count steps";
    if (!options.fallback)
        return "fallback must be chosen: hold, repeat_last, zero or raise";
    if ((*options.fallback == Fallback::repeat_last) != options.max_age_ns.has_value())
        return "Fallback::repeat_last needs max_age_ns, and no other fallback takes it";
    if ((options.aggregate == Aggregate::own) != has_function)
        return "Aggregate::own needs a function, and no other aggregate takes one";
    if ((options.aggregate != Aggregate::latest || options.real_time_chunking) && options.chunk_rows <= options.steps)
        return "an aggregate or real_time_chunking needs chunk_rows, the rows of a chunk, more than steps: those after "
               "`steps` are what two chunks have in common";
    return nullptr;
}

/** Delay of chunks in rows, from their observations to their arrival: that of 95 % of the latest 32.
 *
 * The first reply of a connection and of a model version does not count; until another one has arrived, its delay is
 * used all the same. */
class ChunkDelay {
  public:
    void add(std::int64_t rows, std::uint64_t version) noexcept
    {
        bool counts = is_known_ && version == version_;
        is_known_ = true;
        version_ = version;
        if (!counts) {
            if (count_ == 0)
                rows_ = rows;
            return;
        }
        recent_[next_++ % recent_.size()] = rows;
        count_ = std::min(count_ + 1, recent_.size());
        std::array<std::int64_t, 32> sorted = recent_;
        std::sort(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(count_));
        rows_ = sorted[(95 * count_ + 99) / 100 - 1];
    }
    void begin_connection() noexcept { is_known_ = false; }
    std::int64_t rows() const noexcept { return rows_; }
    /** 0 until a chunk has arrived that counts. */
    std::int64_t measured_rows() const noexcept { return count_ == 0 ? 0 : rows_; }

  private:
    std::array<std::int64_t, 32> recent_{};
    std::size_t count_ = 0, next_ = 0;
    std::int64_t rows_ = 0;
    std::uint64_t version_ = 0;
    bool is_known_ = false;
};

/** One number of both chunks; of integers, which may be choices, the next one's. */
template <class T> T weighted(T previous, T next) noexcept
{
    if constexpr (std::is_floating_point_v<T>)
        return static_cast<T>(0.3) * previous + static_cast<T>(0.7) * next;
    else
        return next;
}

} // namespace detail
} // namespace shmserve

#endif
