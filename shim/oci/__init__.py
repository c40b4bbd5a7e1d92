"""The OCI specification: config.json as data, and its translation for the guest. Pure."""
