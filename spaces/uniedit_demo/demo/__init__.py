"""The page that shows a base model and a tuned one side by side.

models.py      the two models, what runs them, and ZeroGPU
limits.py      what may come in: images, texts, time
questions.py   the questions that an instruction holds, for the panel "Why"
handlers.py    what the buttons do: streams of both models, merged
links.py       settings in the page's address
layout.py      what stands where
theme.py       how it looks
main.py        puts it together and serves it
deploy.py      the same as a Space
"""
