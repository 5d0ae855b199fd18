"""A method of its own on thurl: a small network learns to order pictures by their blur."""
