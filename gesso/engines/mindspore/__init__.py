"""The MindSpore engine: the only place that imports MindSpore and mindone."""
