"""What `export/show.py` says of a bundle, an ONNX file or an engine."""
