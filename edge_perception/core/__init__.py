"""Domain types and arithmetic shared by every layer; needs the standard library and NumPy alone."""
