"""ttrpc: containerd's small RPC protocol over stream sockets (README.md has it in prose); for both sides."""
