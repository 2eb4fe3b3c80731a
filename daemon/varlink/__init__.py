"""A varlink server: sockets, connections, calls, and who is at the other end."""
