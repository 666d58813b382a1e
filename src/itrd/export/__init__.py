"""Networks in forms that are made for inference."""

from itrd.export.bundle import FORMATS, Exported, export_model, export_trained

__all__ = ["FORMATS", "Exported", "export_model", "export_trained"]
