"""Checkpoints: saved and loaded at any parallel layout, and read and written without a model.

- `store`: what training saves and loads.
- `conversion`: Hugging Face in and out, resharding, comparing.
- `merge`: several versions of one model into one.
- The other files know the two kinds of directories, tensor by tensor; `modeling_step1` goes along with exported models.
"""
