#include <ros2_control_policy/policy_controller.hpp>

#include <pluginlib/class_list_macros.hpp>
#include <rclcpp/logging.hpp>

#include <cmath>
#include <utility>

namespace ros2_control_policy {

using controller_interface::CallbackReturn;
using controller_interface::return_type;

CallbackReturn PolicyController::on_init()
{
    auto_declare<std::string>("service", "default");
    auto_declare<std::string>("robot", "");
    auto_declare<std::vector<std::string>>("joints", {});
    auto_declare<double>("action_period", 0.02); // seconds between two rows of a chunk
    auto_declare<int>("steps", 8);
    auto_declare<int>("prefetch", 4);
    auto_declare<int>("overrun_steps", 4);
    return CallbackReturn::SUCCESS;
}

controller_interface::InterfaceConfiguration PolicyController::interfaces() const
{
    controller_interface::InterfaceConfiguration found;
    found.type = controller_interface::interface_configuration_type::INDIVIDUAL;
    for (const std::string &joint : joints_)
        found.names.push_back(joint + "/position");
    return found;
}

controller_interface::InterfaceConfiguration PolicyController::command_interface_configuration() const
{
    return interfaces();
}

controller_interface::InterfaceConfiguration PolicyController::state_interface_configuration() const
{
    return interfaces();
}

// Not in the real-time thread: connects, allocates, starts the thread that reconnects. The daemon may be started later.
CallbackReturn PolicyController::on_configure(const rclcpp_lifecycle::State &)
{
    auto node = get_node();
    std::string service = node->get_parameter("service").as_string();
    joints_ = node->get_parameter("joints").as_string_array();
    positions_.assign(joints_.size(), 0.0F);

    shmserve::Options options;
    options.service = service.c_str();
    options.robot = node->get_parameter("robot").as_string();
    options.lock_memory = 1;
    auto client = shmserve::Client::open_later(options);
    if (!client) {
        RCLCPP_ERROR(node->get_logger(), "no client: %s", client.error().text);
        return CallbackReturn::ERROR;
    }
    auto schema = client->declare({shmserve::array<float>("joints", {positions_.size()})});
    if (!schema) {
        RCLCPP_ERROR(node->get_logger(), "another observation: %s", schema.error().text);
        return CallbackReturn::ERROR;
    }
    shmserve::ChunkOptions rules;
    rules.steps = static_cast<std::uint32_t>(node->get_parameter("steps").as_int());
    rules.prefetch = static_cast<std::uint32_t>(node->get_parameter("prefetch").as_int());
    rules.overrun_steps = static_cast<std::uint32_t>(node->get_parameter("overrun_steps").as_int());
    row_ns_ = static_cast<std::uint64_t>(std::llround(node->get_parameter("action_period").as_double() * 1e9));
    rules.period_ns = row_ns_;
    rules.width = static_cast<std::uint32_t>(positions_.size());
    rules.fallback = shmserve::Fallback::hold; // positions: stand still
    auto chunks = shmserve::ActionChunks<float>::make(std::move(*client), *schema, rules);
    if (!chunks) {
        RCLCPP_ERROR(node->get_logger(), "no chunks: %s", chunks.error().text);
        return CallbackReturn::ERROR;
    }
    chunks_.emplace(std::move(*chunks));
    return CallbackReturn::SUCCESS;
}

// In the real-time thread. Actions of an earlier activation must not move the robot, which may have been moved
// meanwhile.
CallbackReturn PolicyController::on_activate(const rclcpp_lifecycle::State &)
{
    chunks_->forget();
    next_row_ns_ = 0;
    return CallbackReturn::SUCCESS;
}

CallbackReturn PolicyController::on_deactivate(const rclcpp_lifecycle::State &)
{
    const shmserve::ChunkStats &stats = chunks_->stats();
    RCLCPP_INFO(get_node()->get_logger(), "steps: fresh %llu, overrun %llu, held %llu, without an action %llu",
                static_cast<unsigned long long>(stats.fresh), static_cast<unsigned long long>(stats.overrun),
                static_cast<unsigned long long>(stats.fallback), static_cast<unsigned long long>(stats.raised));
    return CallbackReturn::SUCCESS;
}

return_type PolicyController::update(const rclcpp::Time &, const rclcpp::Duration &)
{
    // A row is a command for one action period, and a faster controller manager keeps it for that long.
    std::uint64_t now_ns = shmserve::now_ns();
    if (now_ns < next_row_ns_)
        return return_type::OK;
    next_row_ns_ = now_ns - next_row_ns_ < row_ns_ ? next_row_ns_ + row_ns_ : now_ns + row_ns_;

    for (std::size_t joint = 0; joint < positions_.size(); joint++)
        positions_[joint] = static_cast<float>(state_interfaces_[joint].get_value());
    auto step = chunks_->step(
        [this](shmserve::Loan &loan) { return loan.copy("joints", positions_.data(), positions_.size()); });
    if (!step) // before the first chunk: the commands stay as they are. An observation that does not fit is a fault.
        return step.status() == shmserve::Status::no_fresh_action ? return_type::OK : return_type::ERROR;
    for (std::size_t joint = 0; joint < positions_.size(); joint++)
        (void)command_interfaces_[joint].set_value(static_cast<double>(step->action[joint]));
    return return_type::OK;
}

} // namespace ros2_control_policy

PLUGINLIB_EXPORT_CLASS(ros2_control_policy::PolicyController, controller_interface::ControllerInterface)
