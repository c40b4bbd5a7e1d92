"""The OCI runtime of the guest: containers made by forking the agent."""
