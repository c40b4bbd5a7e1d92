"""The host side of hako: everything that containerd, CRI-O, podman or a user calls."""
