"""`uniedit serve`: a model behind OpenAI's routes. `docs/serving.md` says what it takes; `app.py` puts it together."""
