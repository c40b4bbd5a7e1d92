"""hako's guest agent: PID 1 of the VM; runs the pod's containers. This directory is what the guest gets."""

VERSION = "0.1.0"
