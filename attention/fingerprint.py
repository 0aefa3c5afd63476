"""A model's fingerprint: traces made by one model are read by that model alone."""

import hashlib
import json

from mnemos.attention.config import ModelConfig
from mnemos.attention.tokenizer_source import TokenizerSource


def fingerprint_of(content_digest: str, config: ModelConfig, source: TokenizerSource) -> str:
    """SHA-256 (hex) over weights' digest, configuration and tokenizer; the name a user gave plays no part."""
    described = config.to_json()
    del described["name"]
    whole = json.dumps([content_digest, described, source.digest], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()
