"""What we ask of the kernel's packet filter: nf_tables, iptables, connection tracking."""
