"""Recorded cameras as a benchmark: reading and writing bags, open-loop playing, the report."""
