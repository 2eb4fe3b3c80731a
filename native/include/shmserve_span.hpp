/** @file
 * span: typed memory of a request or a reply, and which C++ type an entry is. */

#ifndef SHMSERVE_SPAN_HPP
#define SHMSERVE_SPAN_HPP

#include <shmserve.h>

#include <complex>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if __cplusplus >= 202002L && __has_include(<ranges>)
#include <ranges>
#endif

namespace shmserve {

/** Items that lie one after another in memory of another owner. In C++20 a std::span is made of it. */
template <class T> class span {
  public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using iterator = T *;

    constexpr span() noexcept = default;
    constexpr span(T *items, std::size_t count) noexcept : items_(items), count_(count) {}
    template <std::size_t count> constexpr span(T (&items)[count]) noexcept : items_(items), count_(count) {}
    /** Of a vector, an array, a std::span, or a span whose items may be written. */
    template <class Items, class = std::enable_if_t<std::is_convertible_v<
                               std::remove_pointer_t<decltype(std::declval<Items &>().data())> (*)[], T (*)[]>>>
    constexpr span(Items &&items) noexcept : items_(items.data()), count_(items.size())
    {
    }

    constexpr T *data() const noexcept { return items_; }
    constexpr std::size_t size() const noexcept { return count_; }
    constexpr bool empty() const noexcept { return count_ == 0; }
    constexpr T &operator[](std::size_t index) const noexcept { return items_[index]; }
    constexpr T *begin() const noexcept { return items_; }
    constexpr T *end() const noexcept { return items_ + count_; }

  private:
    T *items_ = nullptr;
    std::size_t count_ = 0;
};

/** A number of items that is not fixed. */
constexpr std::uint64_t any_count = SHMSERVE_ANY_SIZE;

/** Items that C++17 has no type for. */
struct float16 {
    std::uint16_t bits;
};
struct bfloat16 {
    std::uint16_t bits;
};

namespace detail {

template <class T> struct dtype_of;
#define SHMSERVE_DTYPE_(type, number)                                                                                  \
    template <> struct dtype_of<type> {                                                                                \
        static constexpr shmserve_dtype value = number;                                                                \
    }
SHMSERVE_DTYPE_(bool, SHMSERVE_BOOL8);
SHMSERVE_DTYPE_(std::int8_t, SHMSERVE_I8);
SHMSERVE_DTYPE_(std::uint8_t, SHMSERVE_U8);
SHMSERVE_DTYPE_(std::int16_t, SHMSERVE_I16);
SHMSERVE_DTYPE_(std::uint16_t, SHMSERVE_U16);
SHMSERVE_DTYPE_(float16, SHMSERVE_F16);
SHMSERVE_DTYPE_(bfloat16, SHMSERVE_BF16);
SHMSERVE_DTYPE_(std::int32_t, SHMSERVE_I32);
SHMSERVE_DTYPE_(std::uint32_t, SHMSERVE_U32);
SHMSERVE_DTYPE_(float, SHMSERVE_F32);
SHMSERVE_DTYPE_(std::int64_t, SHMSERVE_I64);
SHMSERVE_DTYPE_(std::uint64_t, SHMSERVE_U64);
SHMSERVE_DTYPE_(double, SHMSERVE_F64);
SHMSERVE_DTYPE_(std::complex<float>, SHMSERVE_C64);
SHMSERVE_DTYPE_(std::complex<double>, SHMSERVE_C128);
#undef SHMSERVE_DTYPE_

template <class T, class = void> constexpr int dtype_number = -1;
template <class T> constexpr int dtype_number<T, std::void_t<decltype(dtype_of<T>::value)>> = dtype_of<T>::value;

/** Whether a span of T may stand for an entry. */
template <class T> bool fits(const shmserve_entry &entry) noexcept
{
    constexpr bool is_octet = std::is_same_v<T, std::uint8_t> || std::is_same_v<T, std::byte>;
    switch (entry.kind) {
    case SHMSERVE_ARRAY:
    case SHMSERVE_SCALAR:
    case SHMSERVE_LIST:
        return static_cast<int>(entry.dtype) == dtype_number<T> ||
               (is_octet && (entry.dtype == SHMSERVE_BOOL8 || entry.dtype == SHMSERVE_U8));
    case SHMSERVE_INT:
    case SHMSERVE_BOOL:
        return std::is_same_v<T, std::int64_t>;
    case SHMSERVE_FLOAT:
        return std::is_same_v<T, double>;
    case SHMSERVE_BYTES:
        return is_octet || std::is_same_v<T, char>;
    case SHMSERVE_STR:
        return std::is_same_v<T, char>;
    default:
        return false;
    }
}

} // namespace detail

} // namespace shmserve

#if defined(__cpp_lib_ranges)
template <class T> inline constexpr bool std::ranges::enable_borrowed_range<shmserve::span<T>> = true;
#endif

#endif
