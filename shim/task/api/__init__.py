"""containerd's messages in the light form; made from the .proto files by `python -m agent.api.generate shim/task/api`."""
