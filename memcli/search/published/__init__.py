"""Techniques of systems before memcli, as they were published."""
