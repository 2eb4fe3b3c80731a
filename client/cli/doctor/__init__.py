"""shmserve-admin doctor: what of this machine, its limits and its installation helps or hinders a service.

The modules named `*_checks` judge texts and numbers that they are given, and `examination` reads them: files of /proc and /sys,
the installed units, and the status of a daemon that runs. Nothing is written, and no service is started.
"""
