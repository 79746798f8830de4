"""Memory models of frameworks whose modules own their buffers: Torch7 with its sharing schemes."""
