"""Scripts that ``memcli export`` writes: each module here stands alone, and imports no memcli."""
