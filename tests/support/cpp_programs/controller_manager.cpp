/* Runs the controller of examples/ros2_control_policy as ros2_control would, with three joints that are where they are
 * sent.
 *
 *     controller_manager SERVICE
 *
 * update() is called each 2 ms, with traps where they are preloaded. A line "COMMANDS first second third" follows each
 * change of the commands, and "silent" the first 200 ms without one. It ends at the end of its standard input.
 */

#include "../c_programs/real_time_calls.h"

#include <ros2_control_policy/policy_controller.hpp>

#include <array>
#include <cstdio>
#include <poll.h>
#include <time.h>

std::unique_ptr<controller_interface::ControllerInterface> make_controller();

int main(int count, char **arguments)
{
    using controller_interface::CallbackReturn;
    static char printed[1 << 12];
    std::setvbuf(stdout, printed, _IOLBF, sizeof printed);
    if (count != 2)
        return 2;
    auto controller = make_controller();
    controller->get_node()->parameters["service"] = rclcpp::Parameter(std::string(arguments[1]));
    controller->get_node()->parameters["joints"] =
        rclcpp::Parameter(std::vector<std::string>{"shoulder", "elbow", "wrist"});
    if (controller->on_init() != CallbackReturn::SUCCESS || controller->on_configure({}) != CallbackReturn::SUCCESS)
        return 3;
    for (const std::string &name : controller->command_interface_configuration().names)
        std::printf("commands %s\n", name.c_str());
    std::array<double, 3> positions = {1, 1, 1};
    for (double &position : positions) {
        controller->command_interfaces_.emplace_back(&position);
        controller->state_interfaces_.emplace_back(&position);
    }
    if (controller->on_activate({}) != CallbackReturn::SUCCESS)
        return 4;
    std::array<double, 3> before = positions;
    pollfd input{0, POLLIN, 0};
    int unchanged = 0;
    while (poll(&input, 1, 0) == 0) {
        arm(1);
        auto ended = controller->update({}, {});
        arm(0);
        if (ended != controller_interface::return_type::OK)
            return 5;
        unchanged = positions == before ? unchanged + 1 : 0;
        if (unchanged == 0)
            std::printf("%.3f %.3f %.3f\n", positions[0], positions[1], positions[2]);
        if (unchanged == 100)
            std::printf("silent\n");
        before = positions;
        timespec pause{0, 2'000'000};
        (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, nullptr);
    }
    if (controller->on_deactivate({}) != CallbackReturn::SUCCESS)
        return 6;
    return 0;
}
