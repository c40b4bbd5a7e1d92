"""Containers made by hand (`hako run`): what they have on the host beside their pod, and how it goes away."""
