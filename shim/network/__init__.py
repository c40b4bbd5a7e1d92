"""Networks on the host: a pod's links carried into its VM, and the NAT network of `hako run`."""
