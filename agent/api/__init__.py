"""The agent protocol: .proto files, their classes in the light form, the contract in prose (README.md)."""
