"""What a supervisor and its engines share: messages, counters, the release check."""
