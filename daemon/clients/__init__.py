"""Clients and their channels: who may attach, what each may take, what it holds."""
