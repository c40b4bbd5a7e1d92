"""What the guest may see of the host's files, and the daemon that shows it."""
