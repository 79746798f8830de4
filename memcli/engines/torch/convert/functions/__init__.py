"""Functions that converted graphs call where PyTorch has none of exactly that meaning.

All are pure unless they say otherwise, and take tensors and plain Python values.
"""
