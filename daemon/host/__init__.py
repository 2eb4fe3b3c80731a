"""The machine below: systemd, the journal, directories, the service lock."""
