"""The stores that the nodes of a cluster share: interface.py says what each engine does."""
