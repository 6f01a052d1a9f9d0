"""`uniedit serve`: a model over OpenAI's routes. `docs/serving.md` describes requests; `app.py` assembles the app."""
