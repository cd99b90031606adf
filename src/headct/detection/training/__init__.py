"""Ways to learn findings that train networks: attention over frozen tokens, adapters, all weights, and FM-HCT's way."""
