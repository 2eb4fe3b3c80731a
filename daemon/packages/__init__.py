"""Model packages: what model.toml may say, read without torch."""
