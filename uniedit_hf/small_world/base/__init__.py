"""How the small base models in `assets/` were trained; run as `python -m uniedit_hf.small_world.base.vae`."""
