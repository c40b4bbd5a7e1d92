"""A process of a container as the agent sees it: its exit, its standard streams, its terminal."""
