"""Networks whose inner convolutions have one-bit weights and one-bit activations, after ReCU.

Xu, Ji, Lin et al.: ReCU: Reviving the dead weights in binary neural networks, ICCV 2021, arXiv 2103.12369.
"""
