"""containerd's messages in the light form, made by `python -m agent.api.generate shim/task/api`."""
