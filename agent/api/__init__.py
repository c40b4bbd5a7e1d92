"""The agent protocol: .proto files, their classes in the light form, the contract in prose (README.md)."""

LEVEL = 4
"""What host and guest expect of each other beyond the messages: higher with every change that an older peer would not survive.
The agent says its own in its first words, so that a guest image of another version is told at once.
"""
