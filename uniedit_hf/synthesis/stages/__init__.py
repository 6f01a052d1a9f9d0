"""The stages of synthesis: each takes a draft and returns a draft or a rejection."""
