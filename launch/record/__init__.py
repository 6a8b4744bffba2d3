"""How runs were launched, and how they stand, read from their folders."""
