"""Files of graphs of costs, for `memcli solve`."""
