// Stand-in for the part of ros2_control (Jazzy) that a controller sees. Parameters and interfaces are filled by the
// test.

#ifndef STAND_IN_CONTROLLER_INTERFACE_HPP
#define STAND_IN_CONTROLLER_INTERFACE_HPP

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace rclcpp {

struct Time {};
struct Duration {};
struct Logger {};

class Parameter {
  public:
    using Value = std::variant<std::string, std::vector<std::string>, double, std::int64_t>;

    Parameter() = default;
    Parameter(Value value) : value_(std::move(value)) {}
    std::string as_string() const { return std::get<std::string>(value_); }
    std::vector<std::string> as_string_array() const { return std::get<std::vector<std::string>>(value_); }
    double as_double() const { return std::get<double>(value_); }
    std::int64_t as_int() const { return std::get<std::int64_t>(value_); }

  private:
    Value value_;
};

} // namespace rclcpp

namespace rclcpp_lifecycle {

struct State {};

class LifecycleNode {
  public:
    rclcpp::Parameter get_parameter(const std::string &name) const { return parameters.at(name); }
    rclcpp::Logger get_logger() const { return {}; }

    std::map<std::string, rclcpp::Parameter> parameters;
};

} // namespace rclcpp_lifecycle

namespace controller_interface {

enum class CallbackReturn { SUCCESS, FAILURE, ERROR };
enum class return_type { OK, ERROR };
enum class interface_configuration_type { ALL, INDIVIDUAL, NONE };

struct InterfaceConfiguration {
    interface_configuration_type type = interface_configuration_type::NONE;
    std::vector<std::string> names;
};

class LoanedStateInterface {
  public:
    explicit LoanedStateInterface(double *value) : value_(value) {}
    double get_value() const { return *value_; }

  private:
    double *value_;
};

class LoanedCommandInterface {
  public:
    explicit LoanedCommandInterface(double *value) : value_(value) {}
    [[nodiscard]] bool set_value(double value)
    {
        *value_ = value;
        return true;
    }

  private:
    double *value_;
};

class ControllerInterface {
  public:
    virtual ~ControllerInterface() = default;
    virtual CallbackReturn on_init() = 0;
    virtual InterfaceConfiguration command_interface_configuration() const = 0;
    virtual InterfaceConfiguration state_interface_configuration() const = 0;
    virtual CallbackReturn on_configure(const rclcpp_lifecycle::State &) { return CallbackReturn::SUCCESS; }
    virtual CallbackReturn on_activate(const rclcpp_lifecycle::State &) { return CallbackReturn::SUCCESS; }
    virtual CallbackReturn on_deactivate(const rclcpp_lifecycle::State &) { return CallbackReturn::SUCCESS; }
    virtual return_type update(const rclcpp::Time &time, const rclcpp::Duration &period) = 0;

    std::shared_ptr<rclcpp_lifecycle::LifecycleNode> get_node() const { return node_; }

    // As the controller manager assigns them.
    std::vector<LoanedCommandInterface> command_interfaces_;
    std::vector<LoanedStateInterface> state_interfaces_;

  protected:
    // An int parameter is an int64_t there.
    template <class T> void auto_declare(const std::string &name, const T &otherwise)
    {
        if constexpr (std::is_same_v<T, int>)
            node_->parameters.try_emplace(name, rclcpp::Parameter(std::int64_t{otherwise}));
        else
            node_->parameters.try_emplace(name, rclcpp::Parameter(otherwise));
    }

  private:
    std::shared_ptr<rclcpp_lifecycle::LifecycleNode> node_ = std::make_shared<rclcpp_lifecycle::LifecycleNode>();
};

} // namespace controller_interface

#endif
