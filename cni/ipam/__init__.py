"""Plugins that allocate addresses, and do not change the network."""
