// Stand-in: prints to standard error.

#ifndef STAND_IN_RCLCPP_LOGGING_HPP
#define STAND_IN_RCLCPP_LOGGING_HPP

#include <cstdio>

#define STAND_IN_LOG(logger, ...)                                                                                      \
    do {                                                                                                               \
        (void)(logger);                                                                                                \
        (void)std::fprintf(stderr, __VA_ARGS__);                                                                       \
        (void)std::fputc('\n', stderr);                                                                                \
    } while (false)
#define RCLCPP_ERROR(logger, ...) STAND_IN_LOG(logger, __VA_ARGS__)
#define RCLCPP_INFO(logger, ...) STAND_IN_LOG(logger, __VA_ARGS__)

#endif
