"""ROS 2 node for the policies of a shmserve daemon."""
