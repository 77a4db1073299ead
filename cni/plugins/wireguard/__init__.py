"""wireguard: ptp, and a WireGuard link to the other nodes."""
