"""Clients of other policy servers, by their own names, over shared memory; each is imported only when asked for."""
