"""Meta's original Llama layout: params.json beside consolidated.*.pth (never unpickled) or consolidated.safetensors."""
