"""What becomes of the round trip when there is more of something: clients, silence, updates, batches."""
