"""Serves signed ONNX models from a queue: stages, verifies, loads, batches, answers. Runs without torch and
transformers.
"""
