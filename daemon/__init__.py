"""The service's side: a supervisor without torch, and the engines it starts."""
