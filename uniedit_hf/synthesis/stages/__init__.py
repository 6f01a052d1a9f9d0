"""The stages of synthesis: each takes a draft and gives a draft or a rejection."""
