"""Plugins that hand out addresses and leave the network alone."""
