"""containerd's shim v2 contract: `start`, `delete`, and the task service of the pod process."""
