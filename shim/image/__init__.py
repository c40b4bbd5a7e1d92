"""Images for `hako run` and for tests: found, fetched, unpacked once, mounted per container."""
