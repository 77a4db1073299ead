"""Requests to the kernel's packet filter: nf_tables, iptables, connection tracking."""
