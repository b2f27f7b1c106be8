"""Trained models as graphs that run without torch and dtrain: ONNX, or a program of torch.export."""
