"""Detectors outside of their training code: ONNX, torch.export and OpenVINO."""
