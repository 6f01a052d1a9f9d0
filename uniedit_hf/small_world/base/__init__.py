"""How the small base models in `assets/` were trained; each file runs as `python -m uniedit_hf.small_world.base.NAME`.

The first bases, on a CPU: `vae`, `bagel_base`, `janus_base`, then `publish`, over `samples`, `scenes`, `small_model`,
`base_items` and `measure`. The second BAGEL base continues the first (`second_base`), and `publish_tuned` ships a long
tuning of it.

A second BAGEL base and recipes that tune it, on a GPU with only PyTorch: `world_tables` makes all data in
advance, `gpu_session` runs `gpu_base` and `gpu_recipes`, and `export_base` makes a checkpoint of the weights. They use
`static_model` (the model as a function of tensors), `static_vae`, `static_world` and `static_draws` (data on the
device), `static_training` (the loop), `static_items` and `item_scores` (the measured items and their scores).
"""
