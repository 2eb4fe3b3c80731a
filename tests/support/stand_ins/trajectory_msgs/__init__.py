"""std_msgs."""
