"""The fault suite: each module injects one kind of fault, states what holds, and measures it."""
