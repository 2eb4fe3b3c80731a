"""sensor_msgs."""
