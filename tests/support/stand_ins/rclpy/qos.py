"""The name of a quality of service."""

qos_profile_sensor_data = "best effort, the last five"
