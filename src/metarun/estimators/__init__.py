"""Meta-gradients that are found otherwise than by back-propagation."""
