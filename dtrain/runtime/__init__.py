"""Ranks and machines: how they meet, wait for each other, are asked to stop, and leave."""
