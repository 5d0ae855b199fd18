"""Vision models of transformers and timm as files: safetensors from folders or the Hub, with their preprocessing."""
