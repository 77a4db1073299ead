"""The stores in which nodes claim blocks: interface.py says what each engine does."""
