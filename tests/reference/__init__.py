"""RWKV-7 and its operations in plain float64 NumPy: what the compiled core is measured against."""
