"""Networks in forms that are made for inference."""
