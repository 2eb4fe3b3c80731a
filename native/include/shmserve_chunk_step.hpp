/** @file
 * What a step of ActionChunks gives, and what passes between its rules and the service. */

#ifndef SHMSERVE_CHUNK_STEP_HPP
#define SHMSERVE_CHUNK_STEP_HPP

#include <shmserve_result.hpp>
#include <shmserve_span.hpp>

#include <cstdint>

namespace shmserve {

enum class Source { chunk, overrun, hold, repeat_last, zero };

/** The action of one control step, and its provenance. */
template <class T> struct ActionStep {
    span<const T> action; /**< `width` values, until the next step */
    bool fresh;           /**< the policy's action for this very step; false: an overrun row or the fallback */
    Source source;
    std::uint64_t version; /**< of the model that computed it; 0 for Source::zero */
    std::uint64_t chunk;   /**< chunks count from 1 */
    std::int64_t index;    /**< the row in the chunk; -1 for Source::zero */
    std::int64_t age_ns;   /**< since the observation behind it was captured */
    Status error;          /**< of the latest request; ok if it succeeded */
};

/** Counts of steps and chunks. */
struct ChunkStats {
    std::uint64_t fresh = 0;       /**< steps with the policy's action for them */
    std::uint64_t overrun = 0;     /**< steps with a row beyond `steps`, while the next chunk was late */
    std::uint64_t fallback = 0;    /**< steps with the fallback's action */
    std::uint64_t raised = 0;      /**< steps without one */
    std::uint64_t skipped = 0;     /**< rows whose time had passed */
    std::uint64_t chunks = 0;      /**< chunks that arrived */
    std::uint64_t late_chunks = 0; /**< of these, those that arrived after the time of their last row */
    std::uint64_t version_changes = 0;
    std::uint64_t errors = 0; /**< requests that failed */
};

/** The reply to the request in flight, as a Port gives it; valid until Port::release. */
template <class T> struct ChunkReply {
    Status status = Status::ok;
    const char *text = "";   /**< of a failure */
    const T *rows = nullptr; /**< `count` rows of `width` values */
    std::uint64_t count = 0;
    std::uint64_t version = 0;
};

/** What a policy with real-time chunking gets: the rest of the chunk that is executed, from the row for the time of the
 * observation on, and how many of its rows are executed before the reply is used. */
template <class T> struct Continuation {
    const T *rows = nullptr; /**< `count` rows of `width` values, valid during the call */
    std::uint64_t count = 0;
    std::int64_t delay = 0;
};

} // namespace shmserve

#endif
