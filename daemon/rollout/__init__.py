"""Which model version serves: the first, the next, and back."""
