"""`cluster`: addresses that are unique in a cluster, from blocks that nodes claim in a store."""
