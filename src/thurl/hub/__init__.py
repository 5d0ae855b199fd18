"""The way to the Hugging Face Hub and back: what is pushed, how, cards, and nothing secret on the way."""
