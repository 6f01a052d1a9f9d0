"""Chat models and image editors. Each turns a request into a reply; errors say whether a retry may help."""
