"""Experience that arrives from outside: read, checked, cut into blocks, and policies sent back."""
