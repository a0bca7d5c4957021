"""Files of the safetensors format: a JSON header, then the tensors' bytes; read with every number checked, and written in parts."""
