"""Extraction on workers: what scheduling costs, what kills cost, how it scales."""
