"""PyTorch as an engine: graphs as ``torch.fx`` modules, run under plans."""
