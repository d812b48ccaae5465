"""Environments: many copies of one game behind one asynchronous Gymnasium `VectorEnv`.

Looked up by entry string (`envs.atari:make`, `envs.catch:make`, `envs.classic:make`).
Invariant: this package needs numpy, Gymnasium and the emulators only; it knows nothing of
Ray, torch or the training system.
"""
