"""The page that shows a base model and a tuned one side by side.

models.py      the two models, their device, and ZeroGPU
limits.py      limits of images, texts and time
questions.py   the questions in an instruction, for the panel "Why"
handlers.py    functions of the buttons: merged streams of both models
links.py       settings in the page's address
layout.py      the layout
theme.py       the style
main.py        assembles the page and serves it
deploy.py      the same as a Space
"""
