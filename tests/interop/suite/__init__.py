"""The interop suite of ClawHub Edge: real registries, real clients, and the edge between them."""
