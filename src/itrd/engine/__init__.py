"""Training, evaluation, checkpoints and run folders. Importing this package does not import torch."""
