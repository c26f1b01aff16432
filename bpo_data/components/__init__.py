"""Methods that can be swapped: one protocol each, its implementations and their names."""
