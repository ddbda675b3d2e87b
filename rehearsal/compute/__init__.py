"""Compute Engine's machines and network for a rehearsal, on this computer."""
