// Stand-in: a function that makes the controller.

#ifndef STAND_IN_CLASS_LIST_MACROS_HPP
#define STAND_IN_CLASS_LIST_MACROS_HPP

#include <memory>

#define PLUGINLIB_EXPORT_CLASS(derived, base)                                                                          \
    std::unique_ptr<base> make_controller();                                                                           \
    std::unique_ptr<base> make_controller() { return std::make_unique<derived>(); }

#endif
