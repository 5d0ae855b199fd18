"""One module per family of label files. `thurl.data.labels` is the public door."""
