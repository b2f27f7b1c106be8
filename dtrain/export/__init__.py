"""Trained models as graphs that run without dtrain: ONNX, which needs no torch either, or a program of torch.export."""
