// A ros2_control controller that plays the action chunks of a shmserve policy as joint positions.

#ifndef ROS2_CONTROL_POLICY_POLICY_CONTROLLER_HPP
#define ROS2_CONTROL_POLICY_POLICY_CONTROLLER_HPP

#include <controller_interface/controller_interface.hpp>
#include <shmserve_action_chunks.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ros2_control_policy {

class PolicyController : public controller_interface::ControllerInterface {
  public:
    controller_interface::CallbackReturn on_init() override;
    controller_interface::InterfaceConfiguration command_interface_configuration() const override;
    controller_interface::InterfaceConfiguration state_interface_configuration() const override;
    controller_interface::CallbackReturn on_configure(const rclcpp_lifecycle::State &before) override;
    controller_interface::CallbackReturn on_activate(const rclcpp_lifecycle::State &before) override;
    controller_interface::CallbackReturn on_deactivate(const rclcpp_lifecycle::State &before) override;

    // In the real-time thread: sends a request or looks for its reply, and waits for neither.
    controller_interface::return_type update(const rclcpp::Time &time, const rclcpp::Duration &period) override;

  private:
    controller_interface::InterfaceConfiguration interfaces() const;

    std::vector<std::string> joints_;
    std::vector<float> positions_;
    std::uint64_t row_ns_ = 0, next_row_ns_ = 0;
    std::optional<shmserve::ActionChunks<float>> chunks_;
};

} // namespace ros2_control_policy

#endif
