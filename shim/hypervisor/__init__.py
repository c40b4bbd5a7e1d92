"""Virtual machine monitors, the probe of what this host can do, and the vsock channel into a VM."""
