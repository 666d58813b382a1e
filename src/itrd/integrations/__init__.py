"""Distillation inside the training loops that people have: plain PyTorch, Lightning, transformers.

Each module loads its library when it is imported, and says which extra to install where it is missing.
"""
