"""BAGEL (Emerging Properties in Unified Multimodal Pretraining, arXiv 2505.14683) as a transformers model."""
