"""Export to ONNX, quantisation, parity, sealing, signing, SBOM, and adoption of existing models."""
