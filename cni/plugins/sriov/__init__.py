"""sriov: a virtual function of a network card, with its settings, in the container."""
