"""The two varlink interfaces: what clients ask of the service, and what operators do."""
