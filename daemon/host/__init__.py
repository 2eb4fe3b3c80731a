"""Interface to the host: systemd, the journal, directories, the service lock."""
