"""What each command does, once for all formats and engines: these know their protocols alone."""
