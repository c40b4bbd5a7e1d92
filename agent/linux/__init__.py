"""The kernel's interfaces, one module per facility: system calls, netlink, cgroupfs, procfs, epoll."""
