"""Every other way in which a robot process can ask a model on the same host, measured side by side."""
