"""One pod: its plan, the recipe that builds it, its containers, and its state on disk."""
