"""The decoder engine: continuous batching of text generation over one onnxruntime session.

`plan` decides (pure), `stepper` computes one step at a time over a `Graph`, `decoder` runs it in a thread of its own
and gives an asyncio face.
"""
