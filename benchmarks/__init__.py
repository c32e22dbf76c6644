"""Measurements that anyone can run from a checkout: `python -m benchmarks.<name>`. Each prints every setting that
matters.
"""
