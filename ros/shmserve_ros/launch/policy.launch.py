"""Launch description of one policy node with the parameters of a file."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    example = PathJoinSubstitution([FindPackageShare("shmserve_ros"), "config", "policy.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("parameters", default_value=example, description="File with the node's parameters"),
            Node(
                package="shmserve_ros",
                executable="policy",
                name="policy",
                parameters=[LaunchConfiguration("parameters")],
                output="screen",
            ),
        ]
    )
