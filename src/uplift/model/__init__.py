"""Models behind one seam: opening them safely, packed attention, heads, saving."""
