"""memcli: rewrites saved model graphs so that they train in a fraction of the memory."""

__version__ = "0.1.0"
