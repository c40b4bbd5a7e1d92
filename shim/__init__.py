"""The host side of hako: everything that containerd, CRI-O, podman or a user calls."""

VERSION = "0.1.0"  # as in pyproject.toml; a test compares
