"""One decoder for all families.

Dimensions: B batch, T query tokens, S key tokens, D model, N query heads, K KV heads, H head dim, F FFN, V vocabulary, E experts,
k experts a token, L layers, P blocks of the layer pattern, R = L / P its repeats.
"""
