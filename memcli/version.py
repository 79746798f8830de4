"""The version of memcli, which plans that it writes carry."""

__version__ = "0.1.0"
