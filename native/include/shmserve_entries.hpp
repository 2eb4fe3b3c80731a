/** @file
 * Entries of a structure, for Client::declare. A size may be any_count, which each loan then says. */

#ifndef SHMSERVE_ENTRIES_HPP
#define SHMSERVE_ENTRIES_HPP

#include <shmserve_span.hpp>

#include <initializer_list>

namespace shmserve {

/** An entry of any kind: for containers and constants, and those that have no function here. */
inline shmserve_entry entry(shmserve_kind kind, const char *path) noexcept
{
    shmserve_entry made{};
    made.path = path;
    made.kind = kind;
    return made;
}
/** An array of T; as many dimensions as `shape` has. */
template <class T> shmserve_entry array(const char *path, std::initializer_list<std::uint64_t> shape) noexcept
{
    shmserve_entry made = entry(SHMSERVE_ARRAY, path);
    made.dtype = detail::dtype_of<T>::value;
    made.dims = static_cast<std::uint32_t>(shape.size());
    for (std::size_t at = 0; at < shape.size() && at < SHMSERVE_MAX_DIMS; at++)
        made.shape[at] = shape.begin()[at];
    return made;
}
/** A list of std::int64_t, double or bool alone. */
template <class T> shmserve_entry list(const char *path, std::uint64_t count = any_count) noexcept
{
    shmserve_entry made = array<T>(path, {count});
    made.kind = SHMSERVE_LIST;
    return made;
}
/** An int: a std::int64_t. */
inline shmserve_entry integer(const char *path) noexcept { return entry(SHMSERVE_INT, path); }
/** A float: a double. */
inline shmserve_entry number(const char *path) noexcept { return entry(SHMSERVE_FLOAT, path); }
/** A bool: a std::int64_t, 0 or 1. */
inline shmserve_entry truth(const char *path) noexcept { return entry(SHMSERVE_BOOL, path); }
/** A str of UTF-8. */
inline shmserve_entry text(const char *path, std::uint64_t bytes = any_count) noexcept
{
    shmserve_entry made = list<std::uint8_t>(path, bytes);
    made.kind = SHMSERVE_STR;
    return made;
}
/** Bytes of any value. */
inline shmserve_entry bytes(const char *path, std::uint64_t count = any_count) noexcept
{
    shmserve_entry made = list<std::uint8_t>(path, count);
    made.kind = SHMSERVE_BYTES;
    return made;
}

} // namespace shmserve

#endif
