"""The models as the Hub knows them: one folder each, importing only torch, transformers and its own configuration."""
